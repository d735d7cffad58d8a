"""What the two arms of a canary count, by interval and by kind of request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: Intervals that are taken together at most.
_LONGEST_SPAN: Final = 4


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests of one arm in one interval, and how many of them were of the counted kind."""

    events: float
    trials: float

    def __post_init__(self) -> None:
        if not 0 <= self.events <= self.trials:
            raise ValueError(f"{self.events} events of {self.trials} requests")

    @property
    def ratio(self) -> float:
        """Events by request; 0 without requests."""
        return self.events / self.trials if self.trials else 0.0


@dataclass(frozen=True, slots=True)
class Pair:
    """What both arms counted among requests of the same kind (one route, one class of lengths)."""

    canary: Counts
    stable: Counts


Interval = Sequence[Pair]
"""What was counted in one stretch of time: a pair for each kind of request. Kinds aren't compared with each other, so
that a canary which gets more of the slow ones isn't called slow for it."""


def total(counts: Sequence[Counts]) -> Counts:
    """All of them together."""
    return Counts(sum(count.events for count in counts), sum(count.trials for count in counts))


def spans(canary: Sequence[float], stable: Sequence[float]) -> list[slice]:
    """Which intervals to take together so that both arms have trials, given their trials by interval.

    Pods are scraped at moments of their own: with few requests, or an interval shorter than it should be, one arm's
    trials show in an interval and the other's in the next, and neither could be compared. Trials alone decide, so
    nothing is chosen by its events. What has no counterpart soon is left by itself: at another time it may go worse for
    everybody.
    """
    found: list[slice] = []
    start = 0
    for at in range(len(canary)):
        ours, theirs = sum(canary[start : at + 1]), sum(stable[start : at + 1])
        if (ours and theirs) or not (ours or theirs) or at + 1 - start == _LONGEST_SPAN:
            found.append(slice(start, at + 1))
            start = at + 1
    return [*found, slice(start, len(canary))] if start < len(canary) else found


def joined(pairs: Sequence[Pair]) -> list[Interval]:
    """Intervals with one kind of requests, those taken together that `spans` says."""
    parts = spans([pair.canary.trials for pair in pairs], [pair.stable.trials for pair in pairs])
    return [
        [Pair(total([pair.canary for pair in pairs[part]]), total([pair.stable for pair in pairs[part]]))]
        for part in parts
    ]
