"""What each check says of a canary, and when it says nothing."""

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloze_api.rollout import Analysis, OnNoData, Query
from cloze_operator.analysis.bounds import course
from cloze_operator.analysis.checks import Evidence, Judgement, LatencyEvidence, Result, judge
from cloze_operator.analysis.counters import Grid, Series
from cloze_operator.analysis.counts import Counts, Pair
from cloze_operator.analysis.latency import Classes, Histogram
from cloze_operator.analysis.shifts import largest_shift
from cloze_operator.decide.answers import Unavailable

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
INTERVALS = 20
GRID = Grid(BEGAN.timestamp(), 15.0, INTERVALS)
BOUNDS = (0.08, 0.1, 0.11, math.inf)


def pairs(canary: float, stable: float = 0.0, trials: int = 50) -> tuple[Pair, ...]:
    """As many of the canary's trials in each interval, and nine times as many of the stable revision."""
    return (Pair(Counts(canary * trials, trials), Counts(stable * 9 * trials, 9 * trials)),) * INTERVALS


def slow(share: float, requests: int) -> Classes:
    """Requests of which a share takes longer than 0.1 s."""
    return {"128": Histogram(BOUNDS, (0.8 * requests, (0.2 - share) * requests, 0, share * requests))}


def latency(share: float) -> LatencyEvidence:
    return LatencyEvidence(
        canary=(slow(share, 50),) * INTERVALS, stable=(slow(0.04, 450),) * INTERVALS, before=slow(0.04, 1000)
    )


GOOD = Evidence(
    grid=GRID,
    errors=pairs(0.02, 0.02),
    answered=(49.0,) * INTERVALS,
    latency=latency(0.04),
    unknown_tokens=pairs(0.05, 0.05, 1000),
    predictions={"ham": pairs(0.7, 0.7), "spam": pairs(0.3, 0.3)},
)


def judged(evidence: Evidence, *, since: datetime = BEGAN, **analysis: Any) -> dict[str, Judgement]:
    return {one.name: one for one in judge(Analysis.model_validate(analysis), evidence, since=since)}


def results(evidence: Evidence, **settings: Any) -> dict[str, str]:
    return {name: str(one.result) for name, one in judged(evidence, **settings).items()}


EQUAL = dict.fromkeys(("errors", "latency", "unknown-tokens", "predictions"), "Pass")


def test_an_equal_canary_passes_each_check() -> None:
    found = judged(GOOD)
    assert {name: str(one.result) for name, one in found.items()} == EQUAL
    assert list(found) == ["errors", "latency", "unknown-tokens", "predictions"]
    assert found["errors"].requests == found["errors"].step_requests == 1000
    assert found["latency"].requests == 980
    assert found["errors"].message.startswith(
        "2.00 % of 1,000 requests of the canary fail, 2.00 % of 9,000 of the stable revision: no worse so far (evidence"
    )


WORSE: Mapping[str, dict[str, Any]] = {
    "errors": {"errors": pairs(0.2, 0.02)},
    "latency": {"latency": latency(0.2)},
    "unknown-tokens": {"unknown_tokens": pairs(0.1, 0.05, 1000)},
    "predictions": {"predictions": {"ham": pairs(0.3, 0.7), "spam": pairs(0.7, 0.3)}},
}


@pytest.mark.parametrize("check", WORSE)
def test_each_check_finds_what_is_its_own(check: str) -> None:
    found = judged(replace(GOOD, **WORSE[check]))
    assert {name: str(one.result) for name, one in found.items()} == {**EQUAL, check: "Fail"}
    assert "proven" in found[check].message


@pytest.mark.parametrize("check", WORSE)
def test_a_check_that_is_switched_off_says_nothing(check: str) -> None:
    off = {"unknown-tokens": "unknownTokens"}.get(check, check)
    assert check not in judged(replace(GOOD, **WORSE[check]), **{off: {"enabled": False}})


def test_a_proof_needs_no_minimum_of_requests() -> None:
    """What is proven is proven; what isn't waits for the requests that the step asks for."""
    evidence = replace(GOOD, errors=pairs(0.2, 0.02))
    found = judged(evidence, minimumRequests=5000)
    assert found["errors"].result == Result.FAIL
    assert found["latency"].result == Result.WAITING
    assert found["latency"].message.startswith("980 of 5,000 requests in this step; ")


def test_only_the_steps_own_requests_count_for_its_minimum() -> None:
    """The interval in which the step began is the former one's."""
    for late, expected in ((0.0, 500), (0.1, 450), (15.0, 450)):
        since = BEGAN + timedelta(seconds=10 * 15 + late)
        found = judged(GOOD, since=since)["errors"]
        assert (found.requests, found.step_requests) == (1000, expected)
    assert judged(GOOD, since=BEGAN + timedelta(hours=1))["errors"].result == Result.WAITING


def test_each_check_may_have_rules_of_its_own() -> None:
    own = {"minimumRequests": 2000, "onNoData": "Rollback", "inconclusiveLimit": 2}
    found = judged(GOOD, intervalSeconds=30, latency=own)
    assert found["latency"].result == Result.WAITING
    assert (found["latency"].on_no_data, found["latency"].patience_seconds) == (OnNoData.ROLLBACK, 60)
    assert found["errors"].result == Result.PASS
    assert (found["errors"].on_no_data, found["errors"].patience_seconds) == (OnNoData.PAUSE, 1200)


def test_no_answer_never_passes() -> None:
    found = judged(
        Evidence(unavailable="nobody answers", grid=GRID), queries=[{"name": "own", "query": "1", "minimum": 0}]
    )
    assert {(one.result, one.message, one.requests) for one in found.values()} == {
        (Result.UNKNOWN, "nobody answers", 0)
    }
    assert len(found) == 5


PARTS = {"errors": "errors", "latency": "latency", "unknown_tokens": "unknown-tokens", "predictions": "predictions"}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_was_refused_is_unknown_alone(part: str) -> None:
    refused = replace(GOOD, **{part: Unavailable("too many samples")})
    assert results(refused) == {**EQUAL, PARTS[part]: "Unknown"}


def test_without_the_canarys_series_everything_waits_but_what_nobody_has() -> None:
    """Prometheus answers, and knows nothing of the canary: that is no good news."""
    found = judged(Evidence(grid=GRID))
    assert {one.result for one in found.values()} == {Result.WAITING}
    assert found["errors"].message == ("Prometheus has counted no requests of the canary and of the stable revision")


def test_without_the_stable_revisions_requests_there_is_nothing_to_compare_with() -> None:
    alone = tuple(Pair(pair.canary, Counts(0, 0)) for pair in pairs(0.5))
    found = judged(replace(GOOD, errors=alone))["errors"]
    assert found.result == Result.WAITING
    assert found.message == "Prometheus has counted no requests of the stable revision"


def test_what_neither_revision_has_is_no_reason_to_wait() -> None:
    """A model that fills masks answers no labels, and one that only echoes reads no tokens."""
    none = (Pair(Counts(0, 0), Counts(0, 0)),) * INTERVALS
    assert results(replace(GOOD, predictions={}, unknown_tokens=none)) == EQUAL
    assert results(replace(GOOD, predictions={"spam": none, "ham": none})) == EQUAL


def test_what_only_the_canary_lacks_is() -> None:
    lost = tuple(Pair(Counts(0, 0), pair.stable) for pair in pairs(0.0, 0.5))
    found = results(replace(GOOD, predictions={"spam": lost}, unknown_tokens=lost))
    assert found == {**EQUAL, "predictions": "Waiting", "unknown-tokens": "Waiting"}


def test_the_false_alarms_of_all_checks_together_are_bounded() -> None:
    """The evidence needed is the logarithm of one by the check's part; the parts add up to the whole.

    But for predictions a tenth of each is for comparisons that start later.
    """

    def needed(evidence: Evidence, **settings: Any) -> dict[str, float]:
        messages = {name: one.message for name, one in judged(evidence, **settings).items()}
        return {name: float(text.split(" needed")[0].split(" of ")[-1]) for name, text in messages.items()}

    # Four comparisons of predictions: two labels, both ways.
    parts = needed(GOOD, falseAlarmRatio=0.01)
    assert parts == {"errors": 4.9, "latency": 7.0, "unknown-tokens": 7.7, "predictions": 9.0}
    off = {name: {"enabled": False} for name in ("latency", "unknownTokens", "predictions")}
    assert needed(GOOD, falseAlarmRatio=0.01, **off) == {"errors": 4.7}


def test_a_proven_difference_that_is_small_passes() -> None:
    small = replace(GOOD, errors=pairs(0.2, 0.02))
    found = judged(small, errors={"leastDifference": 0.5})["errors"]
    assert found.result == Result.PASS
    assert "too small to matter" in found.message


def test_a_label_that_is_answered_less_often_is_a_shift_too() -> None:
    """Of many labels each becomes a little more frequent, and one much less."""
    rising = {f"label-{number}": pairs(0.14, 0.1) for number in range(5)}
    shift = largest_shift({**rising, "falling": pairs(0.3, 0.5)}, alpha=0.001, least_difference=0.1)
    assert (shift.label, shift.upwards, shift.seen.worse) == ("falling", False, True)
    assert (shift.canary.ratio, shift.stable.ratio) == (pytest.approx(0.3), pytest.approx(0.5))


def test_of_several_shifts_the_surest_is_told() -> None:
    moved = {"a": pairs(0.25, 0.1), "b": pairs(0.5, 0.1), "c": pairs(0.25, 0.1)}
    assert largest_shift(moved, alpha=0.001, least_difference=0.1).label == "b"
    equal = {"a": pairs(0.11, 0.1), "b": pairs(0.12, 0.1), "c": pairs(0.1, 0.1)}
    assert largest_shift(equal, alpha=0.001, least_difference=0.1).label == "b"


def test_a_shift_that_was_large_once_was_large() -> None:
    """A proof stays a proof, though the canary's answers are ordinary again by now."""
    early = [*pairs(0.9, 0.1), *pairs(0.1, 0.1) * 20]
    other = pairs(0.15, 0.1) * 21
    shift = largest_shift({"spam": early, "other": other}, alpha=0.001, least_difference=0.1)
    assert (shift.label, shift.seen.worse) == ("spam", True)


QUERY = {"name": "own", "query": "vector(1)", "maximum": 2, "failureLimit": 3}


def of_query(*values: float, since: datetime = BEGAN, **settings: Any) -> Judgement:
    """Of a query with these values at the ends of the first intervals."""
    samples = tuple((GRID.start + 15.0 * (at + 1), value) for at, value in enumerate(values))
    evidence = replace(GOOD, queries={"own": (Series({}, samples),) if values else ()})
    return judged(evidence, since=since, queries=[{**QUERY, **settings}])["own"]


def test_a_query_fails_after_values_in_a_row_out_of_bounds() -> None:
    assert of_query(1, 2, 1).result == Result.PASS
    assert of_query(3, 3, 1, 3, 3, 1).result == Result.PASS
    assert of_query(3, 3, 3, 1).result == Result.FAIL
    assert of_query(3, math.nan, 3, math.nan, 3).result == Result.FAIL
    assert of_query(3, math.nan, 3, 1).result == Result.PASS
    assert of_query(-1, minimum=0, failureLimit=1).result == Result.FAIL


def test_a_query_that_is_out_of_bounds_lets_nobody_pass_meanwhile() -> None:
    found = of_query(1, 3, 3)
    assert found.result == Result.WAITING
    assert found.message == "3 (at most 2 is asked for): out of bounds, 2 of 3 times"


@pytest.mark.parametrize("values", [(), (math.nan, math.nan)])
def test_a_query_without_a_value_waits(values: tuple[float, ...]) -> None:
    assert of_query(*values).result == Result.WAITING


def test_values_of_former_steps_are_not_this_steps() -> None:
    since = BEGAN + timedelta(seconds=45)
    assert of_query(3, 3, 3, 1, since=since, failureLimit=1).result == Result.PASS
    assert of_query(3, 3, 3, since=since).result == Result.WAITING


def test_a_query_waits_for_requests_too() -> None:
    assert of_query(1, minimumRequests=1001).result == Result.WAITING


def test_a_query_of_several_series_is_unknown() -> None:
    evidence = replace(GOOD, queries={"own": (Series({}, ()), Series({"a": "b"}, ()))})
    found = judged(evidence, queries=[QUERY])["own"]
    assert found.result == Result.UNKNOWN
    assert "2 series" in found.message


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ({"maximum": 2}, "at most 2"),
        ({"minimum": 0.5}, "at least 0.5"),
        ({"minimum": 0.5, "maximum": 2}, "0.5 to 2"),
    ],
)
def test_bounds_are_said_in_words(bounds: dict[str, float], text: str) -> None:
    evidence = replace(GOOD, queries={"own": (Series({}, ((GRID.end, 1.0),)),)})
    assert text in judged(evidence, queries=[{"name": "own", "query": "x", **bounds}])["own"].message


def test_infinity_is_a_value() -> None:
    query = Query.model_validate(QUERY)
    seen = course(query, [math.inf, 1.0])
    assert seen is not None
    assert (seen.longest, seen.row, seen.last) == (1, 0, 1.0)


def test_queries_follow_the_built_in_checks_by_name() -> None:
    own = [{**QUERY, "name": name} for name in ("zebra", "ant")] + [{**QUERY, "name": "bee", "enabled": False}]
    assert list(judged(GOOD, queries=own)) == ["errors", "latency", "unknown-tokens", "predictions", "ant", "zebra"]
