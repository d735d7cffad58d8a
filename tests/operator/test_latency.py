"""Latency as counts beyond the stable arm's quantile."""

import math
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_operator.analysis.counts import Counts
from cloze_operator.analysis.evidence import Comparison, compare
from cloze_operator.analysis.latency import Classes, Histogram, excesses

BOUNDS = (*(0.005 * 1.15**step for step in range(48)), math.inf)
# Median in seconds, deviation of the logarithm, share of the requests.
CLASSES = {"short": (0.02, 0.4, 0.6), "medium": (0.05, 0.35, 0.3), "long": (0.2, 0.5, 0.1)}


def histogram(seconds: Iterable[float]) -> Histogram:
    counts = [0] * len(BOUNDS)
    for value in seconds:
        counts[next(index for index, bound in enumerate(BOUNDS) if value <= bound)] += 1
    return Histogram(BOUNDS, tuple(counts))


def arm(
    source: random.Random, requests: int, slower: float = 1.0, shares: tuple[float, ...] = (0.6, 0.3, 0.1)
) -> Classes:
    names = source.choices(list(CLASSES), shares, k=requests)
    seconds: dict[str, list[float]] = {name: [] for name in CLASSES}
    for name in names:
        median, deviation, _ = CLASSES[name]
        seconds[name].append(slower * median * math.exp(source.gauss(0, deviation)))
    return {name: histogram(values) for name, values in seconds.items()}


def rollout(
    slower: float,
    *,
    intervals: int = 40,
    shares: tuple[float, ...] = (0.6, 0.3, 0.1),
    noise: float = 0.0,
    former: float = 1.0,
) -> Comparison:
    """A tenth of 500 requests an interval to the canary; `noise` slows or speeds both arms up together.

    former: how many times as long the stable arm took before.
    """
    source = random.Random(5)  # noqa: S311 - reproducible requests, no secret
    before = arm(source, 5000, former)
    canary, stable = [], []
    for _ in range(intervals):
        both = math.exp(source.gauss(0, noise))
        canary.append(arm(source, 50, slower * both, shares))
        stable.append(arm(source, 450, both))
    return compare(
        excesses(canary, stable, quantile=0.95, tolerance=1.05, before=before), alpha=0.008, least_difference=0.01
    )


def test_a_p95_that_is_three_tenths_higher_is_found_within_2000_requests() -> None:
    assert rollout(1.3).worse
    assert rollout(1.3, noise=0.15).worse


@pytest.mark.parametrize("former", [0.1, 10.0])
def test_another_time_is_no_measure(former: float) -> None:
    """A stable arm that was slower, or faster, before the rollout: what counts is what it takes now."""
    assert rollout(1.3, former=former).worse
    assert not rollout(1.0, former=former).worse


def test_an_equal_one_is_not() -> None:
    """Nor one that shares its slow moments with the stable arm, nor one that is slower by less than the tolerance."""
    assert not rollout(1.0).worse
    assert not rollout(1.0, noise=0.3).worse
    assert not rollout(1.04).worse


def test_arms_that_are_scraped_in_turn_are_compared_all_the_same() -> None:
    """Also within classes of length."""
    one = {"short": histogram([0.02] * 10)}
    counted = excesses([one, {}, one, {}], [{}, one, {}, one], quantile=0.95, tolerance=1.0, before=one)
    assert [len(interval) for interval in counted] == [1, 1]


def test_a_canary_that_gets_the_long_requests_is_not_slow_for_it() -> None:
    assert not rollout(1.0, shares=(0.1, 0.3, 0.6)).worse


@given(st.lists(st.integers(0, 9), min_size=len(BOUNDS), max_size=len(BOUNDS)), st.floats(0.01, 0.99))
def test_the_boundary_has_the_quantile_at_or_below_it(counts: list[int], quantile: float) -> None:
    """And the one before it hasn't."""
    found = Histogram(BOUNDS, tuple(counts))
    index = found.boundary(quantile)
    if not sum(counts):
        assert index is None
        return
    assert index is not None
    assert sum(counts[: index + 1]) >= quantile * sum(counts)
    assert not sum(counts[:index]) or sum(counts[:index]) < quantile * sum(counts)


def test_requests_within_a_bucket_lie_evenly_in_the_logarithm_of_their_time() -> None:
    """And those of the first and the last bucket, of which nothing is known, count whole."""
    one = Histogram((0.1, 0.4, math.inf), (8, 10, 2))
    assert one.beyond(0.2) == Counts(7, 20)
    assert one.beyond(0.4) == Counts(2, 20)
    assert one.beyond(0.1) == Counts(12, 20)
    assert one.beyond(0.05) == Counts(20, 20)
    assert one.beyond(5) == Counts(2, 20)


@given(
    st.lists(st.integers(0, 9), min_size=len(BOUNDS), max_size=len(BOUNDS)),
    st.integers(0, len(BOUNDS) - 1),
    st.floats(1.0, 3.0),
)
def test_no_tolerance_makes_the_stable_arm_look_faster(counts: list[int], index: int, tolerance: float) -> None:
    """What a canary that is no worse is compared with is never less than what was counted."""
    one = Histogram(BOUNDS, tuple(counts))
    assert one.beyond(BOUNDS[index] / tolerance).events >= one.above(index).events


def test_a_class_that_was_never_seen_before_is_left_out() -> None:
    """There is no quantile to compare with; from the next interval on there is."""
    one = {"short": histogram([0.02] * 10)}
    counted = excesses([one, one], [one, one], quantile=0.95, tolerance=1.0, before={})
    assert [len(interval) for interval in counted] == [0, 1]


def test_other_boundaries_are_refused() -> None:
    with pytest.raises(ValueError, match="different boundaries"):
        Histogram((1.0, math.inf), (1, 1)) + Histogram((2.0, math.inf), (1, 1))
    with pytest.raises(ValueError, match="ascending"):
        Histogram((2.0, 1.0), (1, 1))
