"""Simulated rollouts with everything that is counted: errors, latencies, unknown tokens, labels.

As in canary_rollouts.py an interval has about 500 requests, a tenth of them the canary's. Latencies are log-normal
within classes of length and slow down for both arms together now and then. A text has about 30 tokens and an unknown
share of its own; its words get labels of which the text, too, has shares of its own: tokens come in clusters, and what
is asked drifts over time for both arms alike.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
from canary_rollouts import Scenario, rollout

from cloze_api.metrics import REQUEST_DURATION
from cloze_api.rollout import Analysis
from cloze_operator.analysis.checks import Evidence, LatencyEvidence, Result, judge
from cloze_operator.analysis.counters import Grid
from cloze_operator.analysis.counts import Counts, Pair
from cloze_operator.analysis.latency import Classes, Histogram

BEGAN: Final = datetime(2026, 1, 1, tzinfo=UTC)
BOUNDS: Final = (*REQUEST_DURATION.buckets, math.inf)
#: Median in seconds and share of the requests, by class of length.
CLASSES: Final = {"32": (0.012, 0.6), "128": (0.03, 0.3), "512": (0.11, 0.1)}
LABELS: Final = {"O": 0.8, "PER": 0.08, "LOC": 0.07, "ORG": 0.05}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with a canary; nothing by default.

    errors: its error ratio, of 0.1 % in the stable arm. slower: times as long as the stable arm. unknown: share of
    unknown tokens, of 1 % in the stable arm. lost: share of the words with a label that get `O` instead.
    """

    errors: float = 0.001
    slower: float = 1.0
    unknown: float = 0.01
    lost: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """spread: standard deviation of the logarithm of the latency within a class. requests: the canary's in all."""

    spread: float = 0.6
    requests: int = 2000
    kind: str = "independent"


def evidence(random: np.random.Generator, world: World, fault: Fault) -> Evidence:
    """What is known at the end of one rollout."""
    scenario = Scenario(stable=0.001, canary=fault.errors, requests=world.requests, kind=world.kind)
    errors = [pair for interval in rollout(random, scenario) for pair in interval]
    median = np.exp(random.uniform(math.log(0.3), math.log(5)))
    canary: list[Classes] = []
    stable: list[Classes] = []
    unknown: list[Pair] = []
    labels: dict[str, list[Pair]] = {label: [] for label in LABELS}
    for at, pair in enumerate(errors):
        ours, theirs = (int(counts.trials - counts.events) for counts in (pair.canary, pair.stable))
        slow = median * math.exp(random.normal(0, 0.1))
        canary.append(_latencies(random, ours, slow * fault.slower, world.spread))
        stable.append(_latencies(random, theirs, slow, world.spread))
        drift = 1 + 0.5 * math.sin(at / 6)
        unknown.append(Pair(_unknown(random, ours, fault.unknown * drift), _unknown(random, theirs, 0.01 * drift)))
        shares = np.array([1 - 0.2 * drift, *(share * drift for share in list(LABELS.values())[1:])])
        mine, other = _labels(random, ours, shares, fault.lost), _labels(random, theirs, shares, 0.0)
        for number, label in enumerate(LABELS):
            labels[label].append(Pair(Counts(mine[number], sum(mine)), Counts(other[number], sum(other))))
    return Evidence(
        grid=Grid(BEGAN.timestamp(), 15.0, len(errors)),
        errors=tuple(errors),
        answered=tuple(pair.canary.trials - pair.canary.events for pair in errors),
        latency=LatencyEvidence(
            canary=tuple(canary), stable=tuple(stable), before=_latencies(random, 5000, median, world.spread)
        ),
        unknown_tokens=tuple(unknown),
        predictions={label: tuple(pairs) for label, pairs in labels.items()},
    )


def failed(found: Evidence) -> frozenset[str]:
    """Names of the checks that fail, with the settings that a ModelDeployment has by default."""
    judgements = judge(Analysis(), found, since=BEGAN)
    return frozenset(one.name for one in judgements if one.result == Result.FAIL)


def _latencies(random: np.random.Generator, requests: int, slow: float, spread: float) -> Classes:
    counts = random.multinomial(requests, [share for _, share in CLASSES.values()])
    found = {}
    for (name, (median, _)), count in zip(CLASSES.items(), counts, strict=True):
        if count:
            seconds = slow * median * np.exp(random.normal(0, spread, count))
            each = np.bincount(np.searchsorted(BOUNDS, seconds), minlength=len(BOUNDS))
            found[name] = Histogram(BOUNDS, tuple(map(float, each)))
    return found


def _tokens(random: np.random.Generator, texts: int) -> np.ndarray:
    lengths: np.ndarray = np.maximum(3, np.exp(random.normal(3.2, 0.7, texts)).astype(int))
    return lengths


def _unknown(random: np.random.Generator, texts: int, share: float) -> Counts:
    tokens = _tokens(random, texts)
    return Counts(int(random.binomial(tokens, random.beta(0.5, 0.5 / share - 0.5, texts)).sum()), int(tokens.sum()))


def _labels(random: np.random.Generator, texts: int, shares: np.ndarray, lost: float) -> list[int]:
    words = _tokens(random, texts)
    own = random.dirichlet(10 * shares, texts)
    counts = random.multinomial(words, own).sum(axis=0)
    gone = random.binomial(counts[1:], lost)
    return [int(counts[0] + gone.sum()), *map(int, counts[1:] - gone)]


def share_failed(world: World, fault: Fault, rollouts: int, seed: int, check: str = "") -> float:
    """Of so many rollouts the share in which a check fails; any of them by default."""
    random = np.random.default_rng(seed)
    found = [failed(evidence(random, world, fault)) for _ in range(rollouts)]
    return sum(check in names if check else bool(names) for names in found) / rollouts
