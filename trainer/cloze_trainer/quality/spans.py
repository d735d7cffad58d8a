"""The answer that a server gives, from the logits of a context's windows. Pure.

Start and end are each a distribution over the context's tokens and the place that stands for no answer, normalised over
all windows at once. A token that two windows hold counts once there, with its better logit, and a span with its better
score. For no answer it takes all windows: the one that is least for it counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LONGEST = 15
"""Tokens of the longest answer, as servers have it where a request doesn't say."""


@dataclass(frozen=True, slots=True)
class Window:
    """first: the context's token that is its first. logits_T2: of each token as start and as end. none: the same of no
    answer.
    """

    first: int
    logits_T2: npt.NDArray[Any]
    none: tuple[float, float]


def best_span(windows: Sequence[Window], word_of: Sequence[int]) -> tuple[int, int] | None:
    """First and last word of the best answer; None where no answer is likelier.

    word_of: the word of each of the context's tokens, ascending. A span of words has the sum of the scores of the spans
    of tokens that begin in the first and end in the last one.
    """
    words_T = np.asarray(word_of, np.int64)
    none = min((window.none for window in windows), key=sum)
    best_T2 = np.full((len(words_T), 2), -np.inf)
    for window in windows:
        own = slice(window.first, window.first + len(window.logits_T2))
        best_T2[own] = np.maximum(best_T2[own], window.logits_T2)
    totals_2 = np.logaddexp(np.logaddexp.reduce(best_T2, axis=0, initial=-np.inf), none)
    highest, found = float(np.exp(np.sum(none - totals_2))), None
    for window in windows:
        shares_T2 = np.exp(window.logits_T2.astype(np.float64) - totals_2)
        tokens = len(shares_T2)
        begin, more = np.meshgrid(np.arange(tokens), np.arange(min(LONGEST, tokens)), indexing="ij")
        inside = begin + more < tokens
        begin, end = begin[inside], (begin + more)[inside]
        if not len(begin):
            continue
        words = words_T[window.first : window.first + tokens]
        base = int(words[-1]) + 1
        spans, member = np.unique(words[begin] * base + words[end], return_inverse=True)
        scores = np.bincount(member, weights=shares_T2[begin, 0] * shares_T2[end, 1])
        place = int(scores.argmax())
        span = divmod(int(spans[place]), base)
        if scores[place] > highest or (found is not None and scores[place] == highest and span < found):
            highest, found = float(scores[place]), span
    return found
