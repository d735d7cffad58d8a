"""Entities that labels of words mark, as CoNLL's evaluation reads them, also where a model's labels don't go together.

Prefixes are those of IOB (B, I), IOBES (B, I, E, S) and BILOU (B, I, L, U).
"""

from collections.abc import Collection, Sequence

Span = tuple[str, int, int]
"""What it is, its first word, and its last."""

OUTSIDE = "O"
_BEGINS, _ENDS = frozenset("BSU"), frozenset("ELSU")
_PREFIXES = _BEGINS | _ENDS | {"I"}


def is_scheme(labels: Collection[str]) -> bool:
    """Whether labels mark entities: `O`, and others as `B-PER`."""
    others = [label for label in labels if label != OUTSIDE]
    return OUTSIDE in labels and bool(others) and all(_split(label)[0] in _PREFIXES for label in others)


def _split(label: str) -> tuple[str, str]:
    prefix, dash, name = label.partition("-")
    return (prefix, name) if dash else ("", "")


def compare(predicted: Sequence[str], true: Sequence[str]) -> tuple[int, int, int]:
    """How many entities of one text's words are right, predicted, and there."""
    found, there = spans(predicted), spans(true)
    return len(found & there), len(found), len(there)


def spans(labels: Sequence[str]) -> set[Span]:
    """The entities of one text's words.

    One begins with a prefix that says so, and wherever a word that is inside has none before it that it could go on:
    it is the first, or the one before is outside, of another kind, or the last of its own.
    """
    found: set[Span] = set()
    began = -1
    before = ("", "")
    for place, label in enumerate(labels):
        prefix, name = _split(label)
        goes_on = bool(prefix) and began >= 0 and prefix not in _BEGINS and before[0] not in _ENDS and before[1] == name
        if began >= 0 and not goes_on:
            found.add((before[1], began, place - 1))
            began = -1
        if prefix and not goes_on:
            began = place
        before = prefix, name
    if began >= 0:
        found.add((before[1], began, len(labels) - 1))
    return found
