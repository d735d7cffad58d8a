"""Raw counters of many pods turned into what was counted in each interval, whatever restarted or wasn't scraped.

PromQL's `increase` extrapolates, so that three errors become 3.2, or 4.1 where a pod was born within the window. A test
on counts needs the counts: these are differences of the counters' values at the ends of the intervals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final


@dataclass(frozen=True, slots=True)
class Series:
    """One series of a range query. samples: pairs of time (seconds since the epoch) and value, in order of time."""

    labels: Mapping[str, str]
    samples: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """`count` intervals of `step` seconds from `start` (seconds since the epoch) on."""

    start: float
    step: float
    count: int

    @property
    def end(self) -> float:
        """End of the last interval."""
        return self.start + self.count * self.step

    def index(self, moment: float) -> int:
        """Number of the boundary nearest to this time: 0 is the start."""
        return round((moment - self.start) / self.step)


NO_INTERVALS: Final = Grid(0.0, 1.0, 0)


@dataclass(frozen=True, slots=True)
class Increase:
    """What one series counted in each interval of a grid. first: its value at the grid's start, 0 without one."""

    labels: Mapping[str, str]
    counts: tuple[float, ...]
    first: float


def increases(series: Sequence[Series], grid: Grid, *, target: Sequence[str], born: bool) -> list[Increase]:
    """What each series counted in each interval.

    target: labels that name the process which counts; when one of its counters falls, it was restarted, and all of its
    counters count from zero. born: these processes were started for the rollout, so that their first values count;
    otherwise the first values of a process that appears later are only a baseline: it may be old, and new to
    Prometheus alone. A counter that appears beside others of its process was created by its first count. Where a
    process wasn't scraped, its counts fall into the interval in which it is scraped again.
    """

    def process(one: Series) -> tuple[str, ...]:
        return tuple(one.labels.get(label, "") for label in target)

    found: list[Increase] = []
    for _, members in groupby(sorted(series, key=process), key=process):
        found += _of_process(list(members), grid, born=born)
    return found


def _of_process(series: Sequence[Series], grid: Grid, *, born: bool) -> list[Increase]:
    values: list[dict[int, float]] = [{} for _ in range(grid.count + 1)]
    for number, one in enumerate(series):
        for moment, value in one.samples:
            at = grid.index(moment)
            if 0 <= at <= grid.count:
                values[at][number] = value
    counts = [[0.0] * grid.count for _ in series]
    last: dict[int, float] = {}
    for at, seen in enumerate(values):
        restarted = any(value < last[number] for number, value in seen.items() if number in last)
        if restarted:
            last = dict.fromkeys(last, 0.0)
        known = bool(last) or born
        if at and known:
            for number, value in seen.items():
                counts[number][at - 1] = value - last.get(number, 0.0)
        last.update(seen)
    return [
        Increase(one.labels, tuple(counts[number]), values[0].get(number, 0.0)) for number, one in enumerate(series)
    ]
