"""What Prometheus has counted about a canary."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeVar

from cloze_api.rollout import Analysis
from cloze_operator.analysis import queries, readings
from cloze_operator.analysis.burn import LONG_SECONDS
from cloze_operator.analysis.checks import Evidence, LatencyEvidence
from cloze_operator.analysis.counters import Grid, Series
from cloze_operator.analysis.counts import Pair
from cloze_operator.analysis.queries import GatewayCounters, Servers
from cloze_operator.analysis.readings import Arms
from cloze_operator.decide.answers import Unavailable
from cloze_operator.desired.serving import SERVICE_PORT
from cloze_operator.prometheus import Prometheus

#: Intervals of a long rollout at most. What comes in many series gets fewer: a proof takes three.
_MOST_INTERVALS: Final = 240
_MOST_OF_MANY_SERIES: Final = 60
#: After so long a question that wasn't answered in full is asked again, however long the interval is.
_RETRY_SECONDS: Final = 15.0
#: What nobody has asked for so long is forgotten.
_FORGET_SECONDS: Final = 7200.0

_NOT_CONFIGURED: Final = (
    "no Prometheus is configured: set prometheus.url in the chart's values (CLOZE_PROMETHEUS_URL), or switch the "
    "checks in spec.rollout.analysis off"
)

_Value = TypeVar("_Value")
_Answer = tuple[Series, ...] | Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked about a rollout.

    canary_pods, stable_pods: anchored regular expressions of pod names. canary_model, stable_model: name and version of
    what they serve, beside which there may be a fallback. canary_service, stable_service: names of the
    Services behind `route`, for the gateway's counters, which are asked when `gateway` is set. began: when the canary
    may have got its first request.
    """

    namespace: str
    canary_pods: str
    stable_pods: str
    canary_service: str
    stable_service: str
    route: str = ""
    gateway: bool
    began: datetime
    analysis: Analysis
    canary_model: tuple[str, str] = ("", "")
    stable_model: tuple[str, str] = ("", "")


@dataclass(slots=True)
class _Kept:
    question: Question
    evidence: Evidence
    asked: float
    used: float


class EvidenceObserver:
    """Asks at most once for each completed interval of a question, and never raises."""

    def __init__(
        self, prometheus: Prometheus | None, gateway: GatewayCounters | None, clock: Callable[[], datetime]
    ) -> None:
        self._prometheus = prometheus
        self._gateway = gateway
        self._clock = clock
        self._kept: dict[tuple[str, str, str], _Kept] = {}

    async def observe(self, question: Question) -> Evidence:
        """What was counted so far, up to the last completed interval."""
        if self._prometheus is None:
            return Evidence(unavailable=_NOT_CONFIGURED)
        now = self._clock().timestamp()
        self._kept = {key: kept for key, kept in self._kept.items() if now - kept.used < _FORGET_SECONDS}
        key = (question.namespace, question.canary_pods, question.stable_pods)
        kept = self._kept.get(key)
        known = kept.evidence if kept and kept.question == question else None
        if kept and known and not _is_due(known, question, now, kept.asked):
            kept.used = now
            return known
        try:
            evidence = await _Inquiry(self._prometheus, self._gateway, question, now).evidence(known)
        except ValueError as error:
            evidence = Evidence(unavailable=f"what Prometheus says of the canary isn't understood: {error}")
        self._kept[key] = _Kept(question, evidence, now, now)
        return evidence


def grid(question: Question, now: float, most: int) -> Grid:
    """The completed intervals since the rollout began: longer ones, by powers of two, when there would be too many."""
    began, step = question.began.timestamp(), float(question.analysis.interval_seconds)
    elapsed = max(0.0, now - began)
    while elapsed // step > most:
        step *= 2
    return Grid(began, step, int(elapsed // step))


def recent_grid(question: Question, now: float) -> Grid:
    """The last minutes in the analysis' own intervals, at least one where one is completed."""
    whole = grid(question, now, most=10**9)
    count = min(whole.count, math.ceil(LONG_SECONDS / whole.step))
    return Grid(whole.end - count * whole.step, whole.step, count)


def _is_due(known: Evidence, question: Question, now: float, asked: float) -> bool:
    if _is_partial(known) and now - asked >= _RETRY_SECONDS:
        return True
    return recent_grid(question, now) != known.recent_grid


def _is_partial(evidence: Evidence) -> bool:
    parts = (evidence.errors, evidence.answered, evidence.latency, evidence.unknown_tokens, evidence.predictions)
    answers = (*parts, evidence.recent, *evidence.queries.values())
    return bool(evidence.unavailable) or any(isinstance(answer, Unavailable) for answer in answers)


class _Inquiry:
    """One round of queries about one rollout."""

    def __init__(self, prometheus: Prometheus, gateway: GatewayCounters | None, question: Question, now: float) -> None:
        self._prometheus = prometheus
        self._gateway = gateway if question.gateway else None
        self._question = question
        self._fine = grid(question, now, _MOST_INTERVALS)
        self._coarse = grid(question, now, _MOST_OF_MANY_SERIES)
        self._recent = recent_grid(question, now)

    async def evidence(self, known: Evidence | None) -> Evidence:
        """known: what was found out before, of which the parts with long intervals may still be all there is."""
        if not self._recent.count:
            return Evidence(grid=self._fine, recent_grid=self._recent)
        if known and known.grid == self._fine and not _is_partial(known):
            found = known
        else:
            found = await self._all()
        if found.unavailable:
            return replace(found, recent_grid=self._recent)
        if self._fine.step == self._recent.step and not isinstance(found.errors, Unavailable):
            recent: tuple[Pair, ...] | Unavailable = found.errors[-self._recent.count :]
        else:
            recent, _, _ = await self._errors(self._recent)
        return replace(found, recent=recent, recent_grid=self._recent)

    async def _all(self) -> Evidence:
        analysis = self._question.analysis
        (errors, by_gateway, answered), latency, unknown, predictions, own = await asyncio.gather(
            self._errors(self._fine),
            self._latency() if analysis.latency.enabled else _given(LatencyEvidence()),
            self._unknown_tokens() if analysis.unknown_tokens.enabled else _given(()),
            self._predictions() if analysis.predictions.enabled else _given({}),
            self._queries(),
        )
        found = Evidence(
            grid=self._fine,
            errors=errors,
            by_gateway=by_gateway,
            answered=answered,
            latency=latency,
            unknown_tokens=unknown,
            predictions=predictions,
            queries=own,
        )
        if isinstance(errors, Unavailable) and isinstance(answered, Unavailable):
            return Evidence(unavailable=answered.message, grid=self._fine)
        return found

    async def _errors(self, over: Grid) -> tuple[tuple[Pair, ...] | Unavailable, bool, tuple[float, ...] | Unavailable]:
        """The errors, whether the gateway counted them, and what the canary's servers answered."""
        served, passed = await asyncio.gather(
            self._arms(queries.requests, over), self._passed(over) if self._gateway else _given(Arms((), ()))
        )
        answered: tuple[float, ...] | Unavailable = (
            served if isinstance(served, Unavailable) else readings.answered(served.canary, over)
        )
        if isinstance(passed, Unavailable):
            return passed, True, answered
        if self._gateway and passed:
            counted = readings.errors(passed, over, status=self._gateway.code, target=queries.GATEWAY_POD)
            return counted, True, answered
        if isinstance(served, Unavailable):
            return served, False, answered
        return readings.errors(served, over, status="status"), False, answered

    async def _latency(self) -> LatencyEvidence | Unavailable:
        arms = await self._arms(queries.durations, self._coarse)
        if isinstance(arms, Unavailable):
            return arms
        # Seconds, where there are many pods.
        canary, stable, before = await asyncio.to_thread(readings.histograms, arms, self._coarse)
        return LatencyEvidence(canary=canary, stable=stable, before=before)

    async def _unknown_tokens(self) -> tuple[Pair, ...] | Unavailable:
        unknown, tokens = await asyncio.gather(
            self._arms(queries.unknown_tokens, self._coarse), self._arms(queries.tokens, self._coarse)
        )
        if isinstance(unknown, Unavailable):
            return unknown
        return tokens if isinstance(tokens, Unavailable) else readings.token_pairs(unknown, tokens, self._coarse)

    async def _predictions(self) -> dict[str, tuple[Pair, ...]] | Unavailable:
        arms = await self._arms(queries.predictions, self._coarse)
        return arms if isinstance(arms, Unavailable) else readings.prediction_pairs(arms, self._coarse)

    async def _queries(self) -> Mapping[str, _Answer]:
        question = self._question
        values = {
            "namespace": question.namespace,
            "canaryPods": question.canary_pods,
            "stablePods": question.stable_pods,
            "interval": f"{question.analysis.interval_seconds}s",
        }
        own = [query for query in question.analysis.queries if query.enabled]
        answers = await asyncio.gather(*(self._ask(queries.filled(query.query, values), self._fine) for query in own))
        return {query.name: answer for query, answer in zip(own, answers, strict=True)}

    async def _passed(self, over: Grid) -> Arms | Unavailable:
        """What the gateway counted of either Service."""
        question, gateway = self._question, self._gateway
        assert gateway is not None, "asked only where there is a gateway"
        return await self._both(
            over,
            *(
                gateway.of(namespace=question.namespace, route=question.route, service=service, port=SERVICE_PORT)
                for service in (question.canary_service, question.stable_service)
            ),
        )

    async def _arms(self, query: Callable[[Servers], str], over: Grid) -> Arms | Unavailable:
        question = self._question
        canary = Servers(question.namespace, question.canary_pods, *question.canary_model)
        stable = Servers(question.namespace, question.stable_pods, *question.stable_model)
        return await self._both(over, query(canary), query(stable))

    async def _both(self, over: Grid, canary: str, stable: str) -> Arms | Unavailable:
        ours, theirs = await asyncio.gather(self._ask(canary, over), self._ask(stable, over))
        if isinstance(ours, Unavailable):
            return ours
        return theirs if isinstance(theirs, Unavailable) else Arms(ours, theirs)

    async def _ask(self, query: str, over: Grid) -> _Answer:
        return await self._prometheus.range(query, over.start, over.end, over.step)


async def _given(value: _Value) -> _Value:
    return value
