"""The best spans of a context by the logits of its windows. Pure.

Start and end are each a distribution over the context's tokens and the place that stands for no answer, normalised over
all windows at once: a window that has no answer would otherwise praise its least bad span as highly as the right one.
A token that two windows hold counts once, with its better logit, so that an answer in the overlap isn't at a
disadvantage. For one window that is softmax, and the score of a span of tokens the product of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloze_server.windows import Window, covered

Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Logits of one window: start and end for each of its tokens, and for no answer."""

    starts: Scores
    ends: Scores
    no_start: float
    no_end: float


class Spans:
    """All spans of a context. no_answer: the score of none."""

    def __init__(self, windows: Sequence[Window], evidence: Sequence[Evidence]) -> None:
        self._windows = list(zip(windows, evidence, strict=True))
        self._first = covered(windows).start
        # A window that holds the answer says no to no answer; it takes all windows to agree on there being none.
        none = min(evidence, key=lambda each: each.no_start + each.no_end)
        self._start_total = self._log_total([each.starts for each in evidence], none.no_start)
        self._end_total = self._log_total([each.ends for each in evidence], none.no_end)
        self.no_answer = float(np.exp(none.no_start - self._start_total + none.no_end - self._end_total))

    def _log_total(self, logits: Sequence[Scores], none: float) -> float:
        """Logarithm of the summed exponentials over the context's tokens and no answer."""
        windows = [window for window, _ in self._windows]
        best = np.full(len(covered(windows)), -np.inf)
        for window, each in zip(windows, logits, strict=True):
            span = slice(window.start - self._first, window.stop - self._first)
            best[span] = np.maximum(best[span], each)
        return float(np.logaddexp.reduce([*best, none]))

    def best(self, count: int, longest: int, word_of: Sequence[int]) -> list[tuple[int, int, float]]:
        """The `count` best spans of words as first word, last word and score, best first.

        longest: most tokens of a span. word_of: the word of each of the context's tokens, ascending. The score is the
        sum over the spans of tokens that begin in the first word and end in the last one; of two windows' the better
        counts, and of equals the earlier span.
        """
        found: dict[tuple[int, int], float] = {}
        words = np.asarray(word_of, np.int64)
        for window, evidence in self._windows:
            places = words[window.start - self._first : window.stop - self._first]
            for span, score in self._best_of(evidence, count, longest, places):
                found[span] = max(score, found.get(span, 0.0))
        ranked = sorted(found.items(), key=lambda each: (-each[1], each[0]))[:count]
        return [(first, last, score) for (first, last), score in ranked]

    def _best_of(
        self, evidence: Evidence, count: int, longest: int, places: NDArray[np.int64]
    ) -> list[tuple[tuple[int, int], float]]:
        """One window's `count` best spans of words. places: the word of each token."""
        tokens = len(places)
        if not tokens:
            return []
        starts = np.exp(evidence.starts.astype(np.float64) - self._start_total)
        ends = np.exp(evidence.ends.astype(np.float64) - self._end_total)
        begin, more = np.meshgrid(np.arange(tokens), np.arange(min(longest, tokens)), indexing="ij")
        inside = begin + more < tokens
        begin, end = begin[inside], (begin + more)[inside]
        base = int(places[-1]) + 1
        keys, member = np.unique(places[begin] * base + places[end], return_inverse=True)
        scores = np.bincount(member, weights=starts[begin] * ends[end])
        chosen = np.lexsort((keys, -scores))[:count]
        return [(divmod(int(keys[each]), base), float(scores[each])) for each in chosen]
