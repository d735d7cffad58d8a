"""The sequential test: its bound, what it ignores, what it finds."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_operator.analysis.counts import Counts, Interval, Pair, joined, spans
from cloze_operator.analysis.evidence import Comparison, canary_share, compare

ALPHA = 0.008


def weigh(intervals: Sequence[Interval], tolerance: float = 1.0) -> Comparison:
    return compare(intervals, alpha=ALPHA, tolerance=tolerance, least_difference=0.001)


def steady(canary: float, stable: float, intervals: int, requests: int = 1000, share: float = 0.1) -> list[Interval]:
    """Both arms' ratios as they are expected, without chance."""
    ours, theirs = requests * share, requests * (1 - share)
    pair = Pair(Counts(canary * ours, ours), Counts(stable * theirs, theirs))
    return [[pair]] * intervals


@pytest.mark.parametrize("lift", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("trials", [(10, 90), (50, 50), (5, 495)])
@pytest.mark.parametrize("events", [1, 3, 12])
def test_the_expectation_is_one_at_most_unless_the_canary_is_worse(
    lift: float, trials: tuple[int, int], events: int
) -> None:
    """What bounds the false alarms: over all ways in which the events can fall, the likelihood ratio averages ≤ 1."""
    mine = canary_share(lift, trials[0] / sum(trials))
    average = 0.0
    for ours in range(min(events, trials[0]) + 1):
        chance = math.comb(events, ours) * mine**ours * (1 - mine) ** (events - ours)
        seen = weigh([[Pair(Counts(ours, trials[0]), Counts(events - ours, trials[1]))]])
        # What is reported is never below 0, so the rest of the average is bounded by leaving it out.
        average += chance * math.exp(seen.evidence) if seen.evidence > 0 else 0.0
    assert average <= 1.0


@given(
    events=st.integers(0, 500),
    trials=st.integers(500, 5000),
    calm=st.integers(0, 40),
    share=st.floats(0.02, 0.5),
)
def test_one_burst_proves_nothing(events: int, trials: int, calm: int, share: float) -> None:
    """However many errors fall into one interval: a fault shows itself in others too."""
    burst = [Pair(Counts(events, trials), Counts(0, trials / share))]
    assert not weigh([*steady(0.0, 0.0, calm), burst]).worse
    assert not weigh([burst, *steady(0.0, 0.0, calm)]).worse


@given(ratio=st.floats(0.0, 1.0), intervals=st.integers(1, 60))
def test_an_outage_of_both_is_not_the_canarys(ratio: float, intervals: int) -> None:
    """Equal ratios prove nothing at any height."""
    assert not weigh(steady(ratio, ratio, intervals)).worse


def test_a_tenfold_ratio_is_found() -> None:
    assert weigh(steady(0.01, 0.001, 20)).worse
    assert not weigh(steady(0.01, 0.001, 2)).worse


@given(
    canary=st.floats(0.3, 1.0),
    stable=st.floats(0.0, 0.05),
    share=st.floats(0.02, 0.5),
    requests=st.integers(500, 5000),
)
def test_the_plainest_fault_is_found_soonest(canary: float, stable: float, share: float, requests: int) -> None:
    """Failing (nearly) always beside a stable arm that (nearly) never does is no cluster, however high the lift is."""
    assert weigh(steady(canary, stable, 5, requests, share)).worse


def test_a_few_clusters_are_not_taken_for_it() -> None:
    """Three intervals in which everything failed, of forty: by chance they may all have hit the canary."""
    quiet = Pair(Counts(0, 50), Counts(0, 450))
    down = Pair(Counts(50, 50), Counts(0, 450))
    assert not weigh([[down if at in (3, 17, 31) else quiet] for at in range(40)]).worse


@given(
    calm=st.integers(0, 100),
    canary=st.floats(0.3, 1.0),
    stable=st.floats(0.0, 0.02),
    share=st.floats(0.02, 0.5),
    requests=st.integers(1000, 5000),
)
def test_a_canary_that_turns_bad_in_the_middle_is_found(
    calm: int, canary: float, stable: float, share: float, requests: int
) -> None:
    """However long it was good before: it isn't asked to be bad for as long."""
    good, bad = steady(0.0, stable, calm, requests, share), steady(canary, stable, 6, requests, share)
    assert weigh([*good, *bad]).worse


def test_a_canary_that_was_better_and_turns_bad_is_found_as_soon() -> None:
    """No error of 500 requests beside eight of 500 doesn't look like a cluster of the stable version's errors."""
    assert weigh([*steady(0.0, 1 / 64, 1, share=0.5), *steady(1.0, 1 / 64, 6, share=0.5)]).worse


def test_a_canary_that_cannot_keep_up_is_found() -> None:
    """What two busy cores counted: slow replies by interval, of a canary for which half of them are too many."""
    counted = (
        *((5, 9, 70, 147), (9, 21, 13, 123), (0, 13, 0, 161), (0, 18, 0, 108), (1, 12, 0, 161), (0, 17, 0, 108)),
        *((0, 13, 0, 162), (0, 17, 0, 108), (6, 40, 0, 100), (45, 46, 14, 71), (45, 45, 1, 80), (39, 39, 0, 22)),
        *((37, 37, 0, 57), (56, 57, 0, 37), (59, 63, 0, 26)),
    )
    assert weigh([[Pair(Counts(*each[:2]), Counts(*each[2:]))] for each in counted]).worse


def test_a_proof_stays_a_proof() -> None:
    """A canary that was worse and then is quiet was worse."""
    assert weigh([*steady(0.05, 0.001, 10), *steady(0.0, 0.001, 200)]).worse


def test_a_tolerated_ratio_is_none() -> None:
    """Half as many again is called equal where twice as many is tolerated."""
    assert weigh(steady(0.03, 0.02, 200)).worse
    assert not weigh(steady(0.03, 0.02, 200), tolerance=2.0).worse


def test_a_proven_but_harmless_difference_is_let_pass() -> None:
    """From 1 in 100,000 to 1 in 10,000: certain, and too small to stop a release for."""
    seen = weigh(steady(0.0001, 0.00001, 4000))
    assert seen.evidence > seen.needed
    assert not seen.worse


def test_kinds_of_requests_are_not_mixed_up() -> None:
    """A canary that gets most of the requests that fail more often isn't worse for it."""
    easy = Pair(Counts(0.001 * 10, 10), Counts(0.001 * 900, 900))
    hard = Pair(Counts(0.1 * 90, 90), Counts(0.1 * 10, 10))
    assert not weigh([[easy, hard]] * 100).worse
    mixed = Pair(Counts(easy.canary.events + hard.canary.events, 100), Counts(easy.stable.events + 1, 910))
    assert weigh([[mixed]] * 100).worse


def test_clusters_weigh_as_many_as_they_are() -> None:
    """Twelve errors in two clusters of six prove less than twelve single ones."""
    quiet = Pair(Counts(0, 50), Counts(0, 450))
    errors = Pair(Counts(0, 50), Counts(1, 450))

    def rollout(canary: list[int]) -> Comparison:
        ours = {at: Pair(Counts(count, 50), Counts(0, 450)) for at, count in enumerate(canary) if count}
        return weigh([[ours.get(at, errors if at % 7 == 0 else quiet)] for at in range(60)])

    single = rollout([1] * 12)
    clustered = rollout([0, 6, *([0] * 20), 6])
    assert clustered.dispersion > 2 > single.dispersion
    assert clustered.evidence < single.evidence
    assert single.worse
    assert not clustered.worse


def test_arms_that_are_scraped_in_turn_are_compared_all_the_same() -> None:
    """An interval shorter than the time between two scrapes never has requests of both."""
    ours, theirs = Counts(3, 50), Counts(0, 450)
    alternating = [Pair(ours, Counts(0, 0)), Pair(Counts(0, 0), theirs)] * 10
    seen = weigh(joined(alternating))
    assert seen.worse
    assert seen.evidence == weigh([[Pair(ours, theirs)]] * 10).evidence


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20))
def test_spans_are_all_intervals_in_order(trials: list[tuple[int, int]]) -> None:
    """None is left out or counted twice, and only what has no counterpart yet is taken together."""
    canary, stable = [ours for ours, _ in trials], [theirs for _, theirs in trials]
    parts = spans(canary, stable)
    assert [at for part in parts for at in range(part.start, part.stop)] == list(range(len(trials)))
    for part in parts:
        assert part.stop - part.start <= 4
        assert not (any(canary[part.start : part.stop - 1]) and any(stable[part.start : part.stop - 1]))


def test_nothing_is_said_without_requests() -> None:
    for empty in ([], steady(0.0, 0.0, 3, requests=0), [[Pair(Counts(0, 0), Counts(5, 100))]] * 9):
        seen = weigh(empty)
        assert not seen.worse
        assert seen.evidence == 0
        assert seen.detectable is None


def test_more_requests_detect_less() -> None:
    """The smallest detectable ratio shrinks towards the stable arm's, and is a ratio that would be found."""
    ratios = [weigh(steady(0.001, 0.001, intervals)).detectable for intervals in (5, 20, 100, 1000)]
    assert all(ratio is not None for ratio in ratios)
    assert ratios == sorted(ratios, key=lambda ratio: -(ratio or 0))
    assert 0.001 < (ratios[-1] or 0) < 0.002
    assert weigh(steady((ratios[1] or 0) * 1.1, 0.001, 20)).worse


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"alpha": 1.0}, {"tolerance": 0.5}, {"least_difference": 1.0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="alpha"):
        compare([], **{"alpha": 0.01, **wrong})


@pytest.mark.parametrize(("events", "trials"), [(-1, 5), (6, 5)])
def test_impossible_counts_are_refused(events: int, trials: int) -> None:
    with pytest.raises(ValueError, match="events of"):
        Counts(events, trials)
