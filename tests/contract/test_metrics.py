"""The declarations of metrics: what those who query them rely on."""

import itertools

import pytest

from cloze_api import metrics


def test_request_durations_are_told_apart_where_canaries_are_judged() -> None:
    """From 2 ms to 1 s two boundaries are at most 15 % apart; coarse outside, so that series stay few."""
    bounds = metrics.REQUEST_DURATION.buckets
    fine = [bound for bound in bounds if 0.002 <= bound <= 1]
    assert (fine[0], fine[-1]) == (0.002, 1.0)
    assert all(upper / lower <= 1.15 for lower, upper in itertools.pairwise(fine))
    assert len(bounds) < 64
    assert bounds[-1] == 600, "the longest timeout"


@pytest.mark.parametrize("metric", [each for each in metrics.ALL if each.kind == "histogram"])
def test_boundaries_grow(metric: metrics.Metric) -> None:
    """A histogram with boundaries out of order can't be made."""
    assert metric.buckets
    assert list(metric.buckets) == sorted(set(metric.buckets))


@pytest.mark.parametrize("seconds", metrics.OBJECTIVE_SECONDS)
def test_an_objective_is_a_boundary(seconds: float) -> None:
    """Else how many requests met it isn't known."""
    assert seconds in metrics.REQUEST_DURATION.buckets


def test_boundaries_are_readable() -> None:
    """At most three significant digits: they are typed in queries."""
    assert all(float(f"{bound:.3g}") == bound for bound in metrics.REQUEST_DURATION.buckets)
