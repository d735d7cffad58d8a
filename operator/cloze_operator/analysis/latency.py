"""Latency as counts: how many requests took longer than the stable arm's quantile, within classes of token length.

A quantile of a histogram is known to one bucket only, and its uncertainty is hard to state. How many requests are above
a bucket's boundary is known exactly. So the boundary is chosen where the stable arm's quantile lies, and the question
"is the canary's p95 higher?" becomes "are more than 5 % of its requests above it?", which `evidence.compare` answers
with its errors bounded. Buckets are at most 15 % apart around an objective, and that is how fine the answer is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cloze_operator.analysis.counts import Counts, Interval, Pair, spans

#: A quantile is of the newest intervals that have so many requests of a class together: at night all are faster.
_ENOUGH: Final = 200.0


@dataclass(frozen=True, slots=True)
class Histogram:
    """Requests by latency. bounds: ascending upper boundaries in seconds, the last one infinite.

    counts: requests in each bucket (not cumulative), as many as there are bounds.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.bounds) != len(self.counts) or list(self.bounds) != sorted(set(self.bounds)):
            raise ValueError("a histogram has one count for each of its ascending boundaries")

    @property
    def total(self) -> float:
        """All requests."""
        return sum(self.counts)

    def above(self, index: int) -> Counts:
        """Requests that took longer than the boundary with this index."""
        return Counts(sum(self.counts[index + 1 :]), self.total)

    def beyond(self, seconds: float) -> Counts:
        """Requests that took longer than this: a bucket's requests lie evenly in the logarithm of their time.

        Latencies thin out towards their tail, so that this is rather too many there than too few.
        """
        events, lower = 0.0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            if lower >= seconds:
                events += count
            elif bound > seconds:
                known = lower > 0 and bound < math.inf
                events += count * (math.log(bound / seconds) / math.log(bound / lower) if known else 1.0)
            lower = bound
        return Counts(events, self.total)

    def boundary(self, quantile: float) -> int | None:
        """Index of the lowest boundary that has this share of the requests at or below it; None without requests."""
        seen = 0.0
        for index, count in enumerate(self.counts):
            seen += count
            if seen and seen >= quantile * self.total:
                return index
        return None

    def __add__(self, other: "Histogram") -> "Histogram":
        if self.bounds != other.bounds:
            raise ValueError("histograms with different boundaries can't be added")
        return Histogram(self.bounds, tuple(one + two for one, two in zip(self.counts, other.counts, strict=True)))


Classes = Mapping[str, Histogram]
"""An arm's histograms in one interval, by class of token length."""


def excesses(
    canary: Sequence[Classes], stable: Sequence[Classes], *, quantile: float, tolerance: float, before: Classes
) -> list[Interval]:
    """The intervals of a rollout as counts of requests beyond the stable arm's quantile.

    canary, stable: both arms' histograms, interval by interval. tolerance: the canary may take so many times as long (1
    or more): of the stable arm those requests count that would be beyond the boundary if they took so many times as
    long. before: the stable arm's histograms before the rollout. An interval's boundary is chosen from what was known
    before that interval, as the test needs, and of that from the newest.
    """
    if not 0 < quantile < 1 or tolerance < 1:
        raise ValueError("a quantile is between 0 and 1, a tolerance at least 1")
    known = {name: [histogram] for name, histogram in before.items()}
    found: list[Interval] = []
    for part in spans(_totals(canary), _totals(stable)):
        ours, theirs = _together(canary[part]), _together(stable[part])
        found.append(
            [
                pair
                for name in sorted(ours.keys() & theirs.keys() & known.keys())
                if (pair := _pair(ours[name], theirs[name], _newest(known[name]), quantile, tolerance))
            ]
        )
        for name, histogram in theirs.items():
            known.setdefault(name, []).append(histogram)
    return found


def _newest(histograms: Sequence[Histogram]) -> Histogram:
    """The newest that have enough requests together, or all of them."""
    *others, found = histograms
    for other in reversed(others):
        if found.total >= _ENOUGH:
            break
        found += other
    return found


def _totals(intervals: Sequence[Classes]) -> list[float]:
    return [sum(histogram.total for histogram in classes.values()) for classes in intervals]


def _together(intervals: Sequence[Classes]) -> dict[str, Histogram]:
    whole: dict[str, Histogram] = {}
    for classes in intervals:
        for name, histogram in classes.items():
            whole[name] = whole[name] + histogram if name in whole else histogram
    return whole


def _pair(canary: Histogram, stable: Histogram, known: Histogram, quantile: float, tolerance: float) -> Pair | None:
    index = known.boundary(quantile)
    if index is None:
        return None
    return Pair(canary.above(index), stable.beyond(known.bounds[index] / tolerance))
