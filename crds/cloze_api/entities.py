"""Which entities labels of words mark: the same that are answered and that are evaluated."""

from collections.abc import Sequence

OUTSIDE = "O"

Span = tuple[str, int, int]
"""What an entity is, its first word, and its last."""

_BASIC = frozenset("BI")
_BEGINS, _ENDS = frozenset("BSU"), frozenset("ELSU")
_ALL = _BASIC | _BEGINS | _ENDS


class Scheme:
    """How a model's labels mark entities.

    IOB2 (B- begins, I- goes on) and its kin with E- or L- for the last word and S- or U- for the only one; or names
    alone beside an O, where neighbours of one name are one entity. Any other set, such as parts of speech, marks none:
    there every word stands for itself.

    joins: whether they mark any. names: the entities' kinds. mixed: labels besides O without a prefix where others have
    one, as of a slip.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        named = [label for label in labels if label != OUTSIDE]
        prefixes = {label[:1] for label in named if label[1:2] == "-"}
        prefixed = all(label[1:2] == "-" for label in named)
        # Else `E-mail` would be the end of a mail.
        whole = prefixed and prefixes <= _ALL and bool(prefixes & _BASIC)
        self._prefixes = _ALL if whole else _BASIC
        bare = [label for label in named if not self.split(label)[0]]
        self.mixed = bare if 0 < len(bare) < len(named) else []
        # Some parts of speech have an O, too, and a label for punctuation, such as `,`.
        names = all(any(map(str.isalnum, label)) for label in named)
        self.joins = bool(named) and ((OUTSIDE in labels and names) or not bare)
        self.names = list(dict.fromkeys(self.split(label)[1] for label in named)) if self.joins else []

    def split(self, label: str) -> tuple[str, str]:
        """`B-PER` as ("B", "PER"); a label without a prefix has the prefix ""."""
        prefix, dash, name = label.partition("-")
        return (prefix, name) if dash and prefix in self._prefixes else ("", label)

    def spans(self, labels: Sequence[str]) -> list[Span]:
        """The entities of one text's words, or parts of words, as CoNLL's evaluation reads them; none where none join.

        One begins with a prefix that says so, and wherever a word that is inside has none before it that it could go
        on: it is the first, or the one before is outside, of another kind, or the last of its own.
        """
        found: list[Span] = []
        before = ""
        for place, label in enumerate(labels if self.joins else ()):
            prefix, name = self.split(label)
            if label != OUTSIDE:
                beside = bool(found) and found[-1][2] == place - 1 and found[-1][0] == name
                goes_on = beside and before not in _ENDS and prefix not in _BEGINS
                found.append((name, found.pop()[1] if goes_on else place, place))
            before = prefix
        return found

    def compare(self, predicted: Sequence[str], true: Sequence[str]) -> tuple[int, int, int]:
        """How many entities of one text's words are right, predicted, and there."""
        found, there = set(self.spans(predicted)), set(self.spans(true))
        return len(found & there), len(found), len(there)
