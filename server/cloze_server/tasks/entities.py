"""From scores of tokens to labels of words, and from those to entities. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from cloze_api.entities import Scheme
from cloze_server.backend import Logits

Aggregation = Literal["none", "simple", "first", "average", "max"]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A label of the characters start to end (exclusive) of a text."""

    label: str
    score: float
    start: int
    end: int


def join(scheme: Scheme, parts: Sequence[Labelled]) -> list[Labelled]:
    """Entities from consecutive words or sub-words; their score is the mean over the parts."""
    spans = scheme.spans([part.label for part in parts])
    groups = ((name, parts[first : last + 1]) for name, first, last in spans)
    return [
        Labelled(name, sum(part.score for part in group) / len(group), group[0].start, group[-1].end)
        for name, group in groups
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
