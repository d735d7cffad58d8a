"""Simulated rollouts: requests to a stable version and a canary, with errors that come alone, in bursts or clusters.

An interval has about 500 requests, a tenth of which go to the canary. `independent` errors are Bernoulli; a `burst` is
an outage that hits both arms (one interval in 33, fifty times the errors); `clustered` errors come in groups of four on
average, each group in one arm and one interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cloze_operator.analysis.counts import Counts, Interval, Pair
from cloze_operator.analysis.evidence import compare

KINDS: Final = ("independent", "burst", "clustered")
ALPHA: Final = 0.008
LEAST_DIFFERENCE: Final = 0.001

_REQUESTS: Final = 500
_SHARE: Final = 0.1
_BURST_CHANCE: Final = 0.03
_BURST_FACTOR: Final = 50.0
_CLUSTER: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """stable, canary: error ratios. requests: how many the canary gets until the rollout ends."""

    stable: float
    canary: float
    requests: int
    kind: str = "independent"


def rollout(random: np.random.Generator, scenario: Scenario) -> list[Interval]:
    """The counts of one rollout."""
    intervals: list[Interval] = []
    sent = 0
    while sent < scenario.requests:
        requests = int(random.poisson(_REQUESTS))
        ours = min(int(random.binomial(requests, _SHARE)), scenario.requests - sent)
        factor = _BURST_FACTOR if scenario.kind == "burst" and random.random() < _BURST_CHANCE else 1.0
        canary = _errors(random, ours, scenario.canary * factor, scenario.kind)
        stable = _errors(random, requests - ours, scenario.stable * factor, scenario.kind)
        intervals.append([Pair(canary, stable)])
        sent += ours
    return intervals


def _errors(random: np.random.Generator, requests: int, ratio: float, kind: str) -> Counts:
    ratio = min(1.0, ratio)
    if kind != "clustered":
        return Counts(int(random.binomial(requests, ratio)), requests)
    groups = int(random.poisson(requests * ratio / _CLUSTER))
    return Counts(min(int(random.geometric(1 / _CLUSTER, size=groups).sum()), requests), requests)


def rolled_back(intervals: Sequence[Interval]) -> bool:
    """What Cloze decides."""
    return compare(intervals, alpha=ALPHA, least_difference=LEAST_DIFFERENCE).worse


def crosses_threshold(intervals: Sequence[Interval], limit: float = 0.05, failures: int = 3) -> bool:
    """What a fixed threshold decides: as many intervals as `failures` whose canary error ratio is above `limit`."""
    return sum(pair.canary.ratio > limit for interval in intervals for pair in interval) >= failures


def share_rolled_back(scenario: Scenario, rollouts: int, seed: int) -> float:
    """Of so many rollouts the share that Cloze rolls back."""
    random = np.random.default_rng(seed)
    return sum(rolled_back(rollout(random, scenario)) for _ in range(rollouts)) / rollouts
