"""What both arms counted, interval by interval, from the series that Prometheus gave."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cloze_operator.analysis.counters import Grid, Increase, Series, increases
from cloze_operator.analysis.counts import Counts, Pair
from cloze_operator.analysis.latency import Classes, Histogram
from cloze_operator.analysis.queries import POD


@dataclass(frozen=True, slots=True)
class Arms:
    """What Prometheus gave for one question about the canary, and about the stable revision."""

    canary: Sequence[Series]
    stable: Sequence[Series]

    def __bool__(self) -> bool:
        return bool(self.canary or self.stable)

    def increases(self, grid: Grid, target: Sequence[str] = POD) -> tuple[list[Increase], list[Increase]]:
        """What each series of either arm counted. The canary's pods, and its Service, exist since the rollout began."""
        return (
            increases(self.canary, grid, target=target, born=True),
            increases(self.stable, grid, target=target, born=False),
        )


def errors(requests: Arms, grid: Grid, *, status: str, target: Sequence[str] = POD) -> tuple[Pair, ...]:
    """Server errors among requests. status: the label that holds the HTTP status. Empty without any series."""
    if not requests:
        return ()
    canary, stable = requests.increases(grid, target)

    def is_error(labels: Mapping[str, str]) -> bool:
        return labels.get(status, "").startswith("5")

    return _pairs(
        _sums(canary, grid, is_error), _sums(canary, grid), _sums(stable, grid, is_error), _sums(stable, grid)
    )


def answered(requests: Sequence[Series], grid: Grid) -> tuple[float, ...]:
    """The canary's successful requests in each interval."""
    found = increases(requests, grid, target=POD, born=True)
    return tuple(_sums(found, grid, lambda labels: labels.get("status", "").startswith("2")))


def token_pairs(unknown: Arms, tokens: Arms, grid: Grid) -> tuple[Pair, ...]:
    """Unknown tokens among all. Empty where the canary has no such series."""
    if not unknown.canary:
        return ()
    unread, every = unknown.increases(grid), tokens.increases(grid)
    return _pairs(
        *(_sums(unread[0], grid), _sums(every[0], grid)),
        *(_sums(unread[1], grid), _sums(every[1], grid)),
    )


def prediction_pairs(predictions: Arms, grid: Grid) -> dict[str, tuple[Pair, ...]]:
    """For each label of either arm its predictions among all of that arm."""
    canary, stable = predictions.increases(grid)
    ours, theirs = _by_label(canary, grid), _by_label(stable, grid)
    of_ours, of_theirs = _sums(canary, grid), _sums(stable, grid)
    none = [0.0] * grid.count
    return {
        label: _pairs(ours.get(label, none), of_ours, theirs.get(label, none), of_theirs)
        for label in sorted(ours.keys() | theirs.keys())
    }


def histograms(durations: Arms, grid: Grid) -> tuple[tuple[Classes, ...], tuple[Classes, ...], Classes]:
    """The canary's histograms by interval, the stable arm's, and the latter's from before the grid.

    Only boundaries that both arms have, so that servers of different releases can be compared. A bucket's boundary
    that isn't a number raises ValueError.
    """
    canary, stable = durations.increases(grid)
    bounds = _bounds(canary) & _bounds(stable) | {math.inf}
    ordered = tuple(sorted(bounds))
    return (
        tuple(_classes(canary, ordered, [one.counts[at] for one in canary]) for at in range(grid.count)),
        tuple(_classes(stable, ordered, [one.counts[at] for one in stable]) for at in range(grid.count)),
        _classes(stable, ordered, [one.first for one in stable]),
    )


def _bounds(found: Iterable[Increase]) -> set[float]:
    return {float(one.labels["le"]) for one in found}


def _classes(found: Sequence[Increase], bounds: tuple[float, ...], counts: Sequence[float]) -> Classes:
    """counts: one for each of the found."""
    cumulative: dict[str, dict[float, float]] = {}
    for one, count in zip(found, counts, strict=True):
        at_most = cumulative.setdefault(one.labels.get("length", ""), dict.fromkeys(bounds, 0.0))
        bound = float(one.labels["le"])
        if bound in at_most:
            at_most[bound] += count
    classes = {}
    for name, at_most in cumulative.items():
        below = [0.0, *(at_most[bound] for bound in bounds)]
        # A scrape reads a histogram while it is counted into, so that a bucket may be one behind the next lower one.
        each = tuple(max(0.0, high - low) for low, high in itertools.pairwise(below))
        if sum(each):
            classes[name] = Histogram(bounds, each)
    return classes


def _sums(
    found: Iterable[Increase], grid: Grid, wanted: Callable[[Mapping[str, str]], bool] | None = None
) -> list[float]:
    total = [0.0] * grid.count
    for one in found:
        if wanted is None or wanted(one.labels):
            for at, count in enumerate(one.counts):
                total[at] += count
    return total


def _by_label(found: Iterable[Increase], grid: Grid) -> dict[str, list[float]]:
    members: dict[str, list[Increase]] = {}
    for one in found:
        members.setdefault(one.labels.get("label", ""), []).append(one)
    return {label: _sums(own, grid) for label, own in members.items()}


def _pairs(
    events: Sequence[float], trials: Sequence[float], stable_events: Sequence[float], stable_trials: Sequence[float]
) -> tuple[Pair, ...]:
    return tuple(
        Pair(_counts(ours, of_ours), _counts(theirs, of_theirs))
        for ours, of_ours, theirs, of_theirs in zip(events, trials, stable_events, stable_trials, strict=True)
    )


def _counts(events: float, trials: float) -> Counts:
    # Tokens are counted when the model runs, unknown ones when the reply is made: a scrape may fall in between.
    return Counts(events, max(events, trials))
