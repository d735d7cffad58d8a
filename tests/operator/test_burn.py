"""A fast burn needs both windows, enough errors and fresh evidence."""

from datetime import UTC, datetime, timedelta

import pytest

from cloze_operator.analysis.burn import Burn, fast_burn
from cloze_operator.analysis.checks import Evidence
from cloze_operator.analysis.counters import Grid
from cloze_operator.analysis.counts import Counts, Pair
from cloze_operator.decide.answers import Unavailable

NOW = datetime(2026, 1, 1, tzinfo=UTC)
QUIET, BAD = Counts(0, 100), Counts(5, 100)


def burn(counts: list[Counts], *, step: float = 15.0, late: float = 5.0, arm: str = "canary") -> Burn:
    """Of intervals of which the last ended `late` seconds ago; the other arm is quiet."""
    grid = Grid(NOW.timestamp() - late - step * len(counts), step, len(counts))
    pairs = [Pair(one, QUIET) if arm == "canary" else Pair(QUIET, one) for one in counts]
    evidence = Evidence(recent=tuple(pairs), recent_grid=grid)
    return fast_burn(evidence, "canary", availability=0.999, now=NOW)


def test_errors_in_both_windows_burn() -> None:
    seen = burn([BAD] * 20)
    assert seen.burning
    assert (seen.ratio, seen.requests, seen.events) == (0.05, 2000, 100)
    assert "5.00 % of 2,000 requests failed in the last 300 s" in seen.message


def test_what_is_over_does_not_burn() -> None:
    """The last minute is quiet."""
    assert not burn([*[BAD] * 16, *[QUIET] * 4]).burning
    assert burn([*[BAD] * 16, *[QUIET] * 3, Counts(10, 100)]).burning


def test_a_minute_alone_does_not_burn() -> None:
    """The errors of the last minute are less than 14.4 times the budget, 1.44 %, of five."""
    assert not burn([*[QUIET] * 16, *[Counts(7, 100)] * 4]).burning
    assert burn([*[QUIET] * 16, *[Counts(8, 100)] * 4]).burning


def test_a_few_errors_do_not_burn_whatever_their_ratio() -> None:
    assert not burn([Counts(1, 1)] * 4).burning
    assert burn([Counts(1, 1)] * 5).burning


def test_the_other_arms_errors_are_not_this_ones() -> None:
    assert not burn([BAD] * 20, arm="stable").burning


def test_windows_have_an_interval_at_least() -> None:
    seen = burn([BAD], step=600.0)
    assert seen.burning
    assert "in the last 600 s" in seen.message


def test_old_evidence_is_none() -> None:
    assert not burn([BAD] * 20, late=200.0).burning


@pytest.mark.parametrize(
    "evidence",
    [
        Evidence(),
        Evidence(unavailable="Prometheus doesn't answer"),
        Evidence(recent=Unavailable("refused"), recent_grid=Grid((NOW - timedelta(60)).timestamp(), 15, 4)),
    ],
)
def test_no_evidence_is_no_burn(evidence: Evidence) -> None:
    seen = fast_burn(evidence, "stable", availability=0.999, now=NOW)
    assert not seen.burning
    assert seen.message
