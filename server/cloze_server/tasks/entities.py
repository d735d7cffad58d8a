"""From scores of tokens to labels of words, and from those to entities. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from cloze_server.backend import Logits

OUTSIDE = "O"

Aggregation = Literal["none", "simple", "first", "average", "max"]

_BASIC = ("B", "I")
_ALL = ("B", "I", "E", "L", "S", "U")


@dataclass(frozen=True, slots=True)
class Labelled:
    """A label of the characters start to end (exclusive) of a text."""

    label: str
    score: float
    start: int
    end: int


class Scheme:
    """How a model's labels mark entities.

    IOB2 (B- begins, I- goes on) and its kin with E- or L- for the last word and S- or U- for the only one; or names
    alone beside an O, where neighbours of one name are one entity. Any other set, such as parts of speech, marks none:
    there every word stands for itself.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        named = [label for label in labels if label != OUTSIDE]
        prefixes = {label[:1] for label in named if label[1:2] == "-"}
        prefixed = all(label[1:2] == "-" for label in named)
        # Else `E-mail` would be the end of a mail.
        whole = prefixed and prefixes <= set(_ALL) and bool(prefixes & set(_BASIC))
        self._prefixes = _ALL if whole else _BASIC
        self.joins = bool(named) and (OUTSIDE in labels or all(self.split(label)[0] for label in named))
        self.names = list(dict.fromkeys(self.split(label)[1] for label in named)) if self.joins else []

    def split(self, label: str) -> tuple[str, str]:
        """`B-PER` as ("B", "PER"); a label without a prefix has the prefix ""."""
        prefix, dash, name = label.partition("-")
        return (prefix, name) if dash and prefix in self._prefixes else ("", label)

    def join(self, parts: Sequence[Labelled]) -> list[Labelled]:
        """Entities from consecutive words or sub-words; their score is the mean over the parts.

        One that goes on without a beginning starts an entity, as conlleval counts it.
        """
        groups: list[list[Labelled]] = []
        names: list[str] = []
        open_name = ""
        for part in parts:
            prefix, name = self.split(part.label)
            if part.label == OUTSIDE:
                open_name = ""
                continue
            if name == open_name and prefix not in ("B", "S", "U"):
                groups[-1].append(part)
            else:
                groups.append([part])
                names.append(name)
            open_name = "" if prefix in ("E", "L", "S", "U") else name
        return [
            Labelled(name, sum(part.score for part in group) / len(group), group[0].start, group[-1].end)
            for name, group in zip(names, groups, strict=True)
        ]


def words_of(words: Sequence[int | None]) -> list[range]:
    """The tokens of each word, as ranges of indexes into `words`: each token's word."""
    spans = []
    start = 0
    for _, group in groupby(words):
        stop = start + len(list(group))
        spans.append(range(start, stop))
        start = stop
    return spans


def labels_of(scores_NC: Logits, spans: Sequence[range], aggregation: Aggregation) -> list[tuple[int, float]]:  # noqa: N803 - N tokens, C classes
    """The class of each span of tokens, and its probability.

    `average`: the best of the mean probabilities; `max`: that of the token which is surest; else that of the first.
    """
    found = []
    for span in spans:
        inside = scores_NC[span.start : span.stop]
        match aggregation:
            case "average":
                scores = inside.mean(axis=0)
            case "max":
                scores = inside[inside.max(axis=1).argmax()]
            case _:
                scores = inside[0]
        label = int(np.argmax(scores))
        found.append((label, float(scores[label])))
    return found


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without the white space at its edges, which some tokenizers count to the word that follows it."""
    inside = text[start:end]
    stripped = inside.strip()
    if not stripped:
        return start, end
    start += len(inside) - len(inside.lstrip())
    return start, start + len(stripped)
