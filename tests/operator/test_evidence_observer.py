"""What is asked, how often, and what becomes of the answers."""

import asyncio
import math
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloze_api.rollout import Analysis
from cloze_operator.analysis.checks import Evidence, Result, judge
from cloze_operator.analysis.counters import Grid, Series
from cloze_operator.analysis.counts import Counts, Pair
from cloze_operator.analysis.latency import Histogram
from cloze_operator.analysis.queries import GATEWAYS, GatewayCounters
from cloze_operator.decide.answers import Unavailable
from cloze_operator.observe.evidence import EvidenceObserver, Question, grid, recent_grid
from cloze_operator.prometheus import Prometheus

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
QUESTION = Question(
    namespace="mail",
    canary_pods="spam-new-[a-z0-9]+",
    stable_pods="spam-old-[a-z0-9]+",
    canary_service="spam-new",
    stable_service="spam-old",
    route="spam",
    gateway=False,
    began=BEGAN,
    analysis=Analysis(),
)

Answer = tuple[Series, ...] | Unavailable
Counter = tuple[dict[str, str], Callable[[int], float]]
"""Labels, and the value at a boundary of the grid."""


class Stub(Prometheus):
    """Answers by the metric and the arm that a query names."""

    def __init__(self) -> None:
        self.counters: dict[tuple[str, str], list[Counter]] = {}
        self.down = ""
        self.refused: tuple[str, ...] = ()
        self.asked: list[tuple[str, Grid]] = []

    async def range(self, query: str, start: float, end: float, step_seconds: float) -> Answer:
        over = Grid(start, step_seconds, round((end - start) / step_seconds))
        self.asked.append((query, over))
        if self.down or any(part in query for part in self.refused):
            return Unavailable(self.down or "refused")
        arm = "new" if "spam-new" in query else "old"
        found = [own for (metric, of), own in self.counters.items() if metric in query and of == arm]
        return tuple(
            Series(labels, tuple((start + at * step_seconds, value(at)) for at in range(over.count + 1)))
            for own in found
            for labels, value in own
        )


class Case:
    """An observer with its Prometheus and its clock."""

    def __init__(self, gateway: GatewayCounters | None = None) -> None:
        self.prometheus = Stub()
        self.now = BEGAN
        self.observer = EvidenceObserver(self.prometheus, gateway, lambda: self.now)

    def after(self, seconds: float, question: Question = QUESTION) -> Evidence:
        self.now = BEGAN + timedelta(seconds=seconds)
        return asyncio.run(self.observer.observe(question))

    def asked(self) -> int:
        """Queries since the last call."""
        count = len(self.prometheus.asked)
        self.prometheus.asked.clear()
        return count


def counter(slope: float, **labels: str) -> Counter:
    return labels, lambda at: 100 + slope * at


def serving() -> Case:
    case = Case()
    for arm, requests in (("new", 10), ("old", 90)):
        case.prometheus.counters["cloze_requests_total", arm] = [
            counter(requests, pod=arm, status="200"),
            counter(2, pod=arm, status="503"),
            counter(3, pod=arm, status="429"),
        ]
    return case


def test_nothing_is_known_without_prometheus() -> None:
    observer = EvidenceObserver(None, None, lambda: BEGAN)
    evidence = asyncio.run(observer.observe(QUESTION))
    assert evidence.unavailable.startswith("no Prometheus is configured: set prometheus.url")


def test_server_errors_are_counted_among_all_requests() -> None:
    """A 429 is no server's error, a 503 is."""
    evidence = serving().after(30)
    assert evidence.errors == (Pair(Counts(2, 15), Counts(2, 95)),) * 2
    assert evidence.answered == (10, 10)
    assert (evidence.grid, evidence.by_gateway) == (Grid(BEGAN.timestamp(), 15, 2), False)


def test_before_the_first_interval_is_over_nothing_is_asked() -> None:
    case = serving()
    evidence = case.after(14.9)
    assert not evidence.unavailable
    assert case.asked() == 0
    assert {one.result for one in judge(Analysis(), evidence, since=BEGAN)} == {Result.WAITING}


def test_each_interval_is_asked_about_once() -> None:
    case = serving()
    first = case.after(31)
    assert case.asked() > 0
    assert case.after(44) is first
    assert case.asked() == 0
    later = case.after(46)
    assert case.asked() > 0
    assert not isinstance(later.errors, Unavailable)
    assert len(later.errors) == 3


@pytest.mark.parametrize(
    "change", [{"began": BEGAN - timedelta(seconds=1)}, {"analysis": Analysis(interval_seconds=10)}]
)
def test_another_question_has_another_answer(change: dict[str, Any]) -> None:
    case = serving()
    case.after(31)
    case.asked()
    case.after(31, replace(QUESTION, **change))
    assert case.asked() > 0


def test_a_model_is_judged_by_its_own_series() -> None:
    """A fallback beside it has predictions and tokens of its own; requests and durations are the whole pod's."""
    case = serving()
    case.after(31, replace(QUESTION, canary_model=("spam", "4"), stable_model=("spam", "3")))
    for query, _ in case.prometheus.asked:
        version = "4" if "spam-new" in query else "3"
        of_model = any(part in query for part in ("cloze_tokens", "cloze_unknown_tokens", "cloze_predictions"))
        assert (f'model="spam",version="{version}"' in query) == of_model, query
    assert sum('model="spam"' in query for query, _ in case.prometheus.asked) == 6


def test_rollouts_that_nobody_asks_about_are_forgotten() -> None:
    case = serving()
    case.after(31)
    case.after(8000, replace(QUESTION, namespace="other"))
    assert len(case.observer._kept) == 1


def test_a_failure_is_asked_about_again_within_a_long_interval() -> None:
    """An hour's interval isn't an hour's outage."""
    case = serving()
    question = replace(QUESTION, analysis=Analysis(interval_seconds=3600))
    case.prometheus.down = "Prometheus doesn't answer"
    assert case.after(3600, question).unavailable == "Prometheus doesn't answer"
    case.asked()
    assert case.after(3610, question).unavailable
    assert case.asked() == 0
    case.prometheus.down = ""
    assert not case.after(3616, question).unavailable


def test_a_part_that_is_refused_leaves_the_others() -> None:
    case = serving()
    case.prometheus.refused = ("cloze_predictions",)
    evidence = case.after(30)
    assert evidence.predictions == Unavailable("refused")
    assert not evidence.unavailable
    assert not isinstance(evidence.latency, Unavailable)
    assert not isinstance(evidence.errors, Unavailable)


def test_an_answer_that_makes_no_sense_is_none() -> None:
    case = serving()
    case.prometheus.counters["duration_seconds_bucket", "new"] = [counter(1, pod="new", length="32", le="fast")]
    assert "isn't understood" in case.after(30).unavailable


def test_a_check_that_is_switched_off_is_not_asked_about() -> None:
    off = {name: {"enabled": False} for name in ("latency", "unknownTokens", "predictions")}
    own = [{"name": "own", "query": "up", "minimum": 0, "enabled": False}]
    case = serving()
    case.after(30, replace(QUESTION, analysis=Analysis.model_validate({**off, "queries": own})))
    assert [re.search(r"cloze_\w+", query)[0] for query, _ in case.prometheus.asked] == ["cloze_requests_total"] * 2  # type: ignore[index]


def test_histograms_are_cut_to_the_boundaries_of_both() -> None:
    """Servers of different releases may have different ones."""
    case = serving()
    for arm, bounds in (("new", {"0.1": 1, "0.15": 2, "0.2": 4, "+Inf": 10}), ("old", {"0.1": 3, "0.2": 5, "+Inf": 6})):
        case.prometheus.counters["duration_seconds_bucket", arm] = [
            ({"pod": arm, "length": "32", "le": le}, lambda at, slope=slope: slope * (at + 1))
            for le, slope in bounds.items()
        ]
    found = case.after(30).latency
    assert not isinstance(found, Unavailable)
    bounds = (0.1, 0.2, math.inf)
    assert found.canary == ({"32": Histogram(bounds, (1, 3, 6))},) * 2
    assert found.stable == ({"32": Histogram(bounds, (3, 2, 1))},) * 2
    assert found.before == {"32": Histogram(bounds, (3, 2, 1))}


def test_unknown_tokens_are_never_more_than_tokens() -> None:
    """A scrape between the model's run and its reply sees one and not yet the other."""
    case = serving()
    case.prometheus.counters["cloze_unknown_tokens_total", "new"] = [counter(5, pod="new")]
    case.prometheus.counters["cloze_tokens_total", "new"] = [counter(4, pod="new")]
    assert case.after(15).unknown_tokens == (Pair(Counts(5, 5), Counts(0, 0)),)


def test_predictions_are_shares_of_an_arms_own() -> None:
    case = serving()
    case.prometheus.counters["cloze_predictions_total", "new"] = [
        counter(4, pod="new", label="spam"),
        counter(6, pod="new", label="ham"),
    ]
    case.prometheus.counters["cloze_predictions_total", "old"] = [
        counter(8, pod="a", label="ham"),
        counter(1, pod="b", label="ham"),
    ]
    assert case.after(15).predictions == {
        "ham": (Pair(Counts(6, 10), Counts(9, 9)),),
        "spam": (Pair(Counts(4, 10), Counts(0, 9)),),
    }


def at_gateway(arms: dict[str, int]) -> Case:
    case = Case(GATEWAYS["traefik"])
    case.prometheus.counters |= serving().prometheus.counters
    for arm, failing in arms.items():
        case.prometheus.counters["traefik_service_requests_total", arm] = [
            counter(20, pod="gateway", instance="a:1", code="200"),
            counter(failing, pod="gateway", instance="a:1", code="502"),
        ]
    return case


BEHIND = replace(QUESTION, gateway=True)


def test_the_gateways_errors_are_the_ones_that_count() -> None:
    """It has those that no server saw, of a pod that is gone."""
    evidence = at_gateway({"new": 7, "old": 0}).after(15, BEHIND)
    assert evidence.errors == (Pair(Counts(7, 27), Counts(0, 20)),)
    assert evidence.by_gateway
    assert evidence.answered == (10,)


def test_a_canary_that_the_gateway_has_not_served_is_not_judged_by_its_servers() -> None:
    evidence = at_gateway({"old": 0}).after(15, BEHIND)
    assert evidence.errors == (Pair(Counts(0, 0), Counts(0, 20)),)


def test_a_gateway_without_counters_leaves_them_to_the_servers() -> None:
    evidence = at_gateway({}).after(15, BEHIND)
    assert evidence.errors == (Pair(Counts(2, 15), Counts(2, 95)),)
    assert not evidence.by_gateway


def test_without_a_gateway_it_is_not_asked() -> None:
    case = at_gateway({"new": 7, "old": 0})
    assert not case.after(15).by_gateway
    assert not any("traefik" in query for query, _ in case.prometheus.asked)


def test_a_gateway_that_can_not_be_asked_is_not_passed_over() -> None:
    case = at_gateway({"new": 7, "old": 0})
    case.prometheus.refused = ("traefik",)
    evidence = case.after(15, BEHIND)
    assert evidence.errors == Unavailable("refused")
    assert not evidence.unavailable


def test_the_gateways_backend_is_named_exactly() -> None:
    case = at_gateway({})
    case.after(15, BEHIND)
    gateway = [query for query, _ in case.prometheus.asked if "traefik" in query]
    assert [re.search(r'service=~"([^"]*)"', query)[1] for query in gateway] == [  # type: ignore[index]
        "mail-spam-new-http-80@kubernetesgateway",
        "mail-spam-old-http-80@kubernetesgateway",
    ]
    own = GatewayCounters.read('requests{status,backend="{namespace}/{route}/{service}:{port}"}')
    query = own.of(namespace="mail", route="r.x", service="s", port=80)
    assert 'requests{backend=~"mail/r[.]x/s:80"}' in query
    assert query.startswith("sum by (pod, instance, status)")


def test_a_long_rollout_has_longer_intervals_and_not_more() -> None:
    """By powers of two, so that they change seldom."""
    for seconds, step, count in ((3600, 15, 240), (3615, 30, 120), (7200, 30, 240), (7 * 86400, 3840, 157)):
        now = BEGAN.timestamp() + seconds
        assert grid(QUESTION, now, 240) == Grid(BEGAN.timestamp(), step, count)


def test_the_last_minutes_keep_the_analysis_own_intervals() -> None:
    now = BEGAN.timestamp() + 86400 + 7
    assert recent_grid(QUESTION, now) == Grid(BEGAN.timestamp() + 86400 - 300, 15, 20)
    assert recent_grid(QUESTION, BEGAN.timestamp() + 40) == Grid(BEGAN.timestamp(), 15, 2)
    hourly = replace(QUESTION, analysis=Analysis(interval_seconds=3600))
    assert recent_grid(hourly, BEGAN.timestamp() + 7300) == Grid(BEGAN.timestamp() + 3600, 3600, 1)


def test_in_a_long_rollout_the_last_minutes_are_asked_about_by_themselves() -> None:
    """And nothing else, until the next of the longer intervals is over."""
    case = serving()
    first = case.after(86400)
    assert first.grid.step > 300
    assert first.recent == (Pair(Counts(2, 15), Counts(2, 95)),) * 20
    case.asked()
    second = case.after(86415)
    assert {over for _, over in case.prometheus.asked} == {second.recent_grid}
    assert case.asked() == 2
    assert second.grid == first.grid


def test_recent_errors_of_a_short_rollout_are_the_last_of_all() -> None:
    case = serving()
    evidence = case.after(450)
    assert not isinstance(evidence.errors, Unavailable)
    assert evidence.recent == evidence.errors[-20:]
    assert case.asked() == 12 - 2


def test_a_query_of_ones_own_is_filled_in() -> None:
    text = 'sum(rate(x{namespace="$namespace",pod=~"$canaryPods|$stablePods",y=~"z$"}[$interval]))'
    analysis = Analysis.model_validate({"queries": [{"name": "own", "query": text, "minimum": 0}]})
    case = serving()
    evidence = case.after(30, replace(QUESTION, analysis=analysis))
    assert set(evidence.queries) == {"own"}
    filled = 'sum(rate(x{namespace="mail",pod=~"spam-new-[a-z0-9]+|spam-old-[a-z0-9]+",y=~"z$"}[15s]))'
    assert filled in {query for query, _ in case.prometheus.asked}


def test_names_in_queries_are_quoted() -> None:
    case = Case()
    case.after(15, replace(QUESTION, canary_pods=r'spam-new\d+"'))
    assert any(r'pod=~"spam-new\\d+\""' in query for query, _ in case.prometheus.asked)
