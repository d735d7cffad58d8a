"""Judgement on a canary, check by check, from what was counted about it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Final

from cloze_api.rollout import (
    Analysis,
    Check,
    ErrorCheck,
    LatencyCheck,
    OnNoData,
    PredictionCheck,
    Query,
    UnknownTokenCheck,
)
from cloze_operator.analysis.bounds import course, described
from cloze_operator.analysis.counters import NO_INTERVALS, Grid, Series
from cloze_operator.analysis.counts import Counts, Pair, joined
from cloze_operator.analysis.evidence import Comparison, compare
from cloze_operator.analysis.latency import Classes, excesses
from cloze_operator.analysis.shifts import largest_shift
from cloze_operator.decide.answers import Unavailable


class Result(StrEnum):
    """What a check says."""

    PASS = "Pass"  # noqa: S105 - no password
    """No worse so far, on enough requests."""
    FAIL = "Fail"
    """Proven worse."""
    WAITING = "Waiting"
    """Too few requests, or no data, to say anything."""
    UNKNOWN = "Unknown"
    """Prometheus didn't answer, or refused the question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one check says, in a sentence and in figures.

    requests: the canary's since the rollout began; step_requests: since the step began. detectable: the canary's ratio
    that as many requests would prove worse; None when none would, or when the check knows no such thing.
    patience_seconds: beyond the step's `holdSeconds`, after which `on_no_data` follows.
    """

    name: str
    result: Result
    message: str
    requests: int
    step_requests: int
    detectable: float | None
    on_no_data: OnNoData
    patience_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyEvidence:
    """Both arms' histograms by interval, and the stable arm's from before the rollout."""

    canary: tuple[Classes, ...] = ()
    stable: tuple[Classes, ...] = ()
    before: Classes = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was counted about both arms since a rollout began; a part that Prometheus refused is `Unavailable`.

    unavailable: a sentence when nothing could be asked at all.
    grid: the intervals of `errors` and `answered`; other parts may have fewer, longer ones.
    errors: server errors among requests. by_gateway: as the gateway counted them, instead of the servers.
    answered: the canary's successful requests, by interval.
    unknown_tokens: unknown ones among tokens. predictions: by label, its predictions among all.
    queries: what each query of the user's gave, by name.
    recent, recent_grid: server errors of the last minutes, in the analysis' own intervals.
    """

    unavailable: str = ""
    grid: Grid = NO_INTERVALS
    errors: tuple[Pair, ...] | Unavailable = ()
    by_gateway: bool = False
    answered: tuple[float, ...] | Unavailable = ()
    latency: LatencyEvidence | Unavailable = LatencyEvidence()
    unknown_tokens: tuple[Pair, ...] | Unavailable = ()
    predictions: Mapping[str, tuple[Pair, ...]] | Unavailable = field(default_factory=dict)
    queries: Mapping[str, tuple[Series, ...] | Unavailable] = field(default_factory=dict)
    recent: tuple[Pair, ...] | Unavailable = ()
    recent_grid: Grid = NO_INTERVALS


#: How the false-alarm ratio is divided among the built-in checks that are enabled, in their order. Errors are the
#: rarest events, so that they need the most of it; each of the others has thousands of events to go by.
_PARTS: Final = {"errors": 0.8, "latency": 0.1, "unknown-tokens": 0.05, "predictions": 0.05}


@dataclass(frozen=True, slots=True)
class _Finding:
    """What a check found. requests: the canary's by interval. lacking: nothing to go by, so that it can't pass."""

    message: str
    requests: Sequence[float]
    worse: bool = False
    lacking: bool = False
    detectable: float | None = None


def judge(analysis: Analysis, evidence: Evidence, *, since: datetime) -> tuple[Judgement, ...]:
    """One judgement for each enabled check: errors, latency, unknown-tokens, predictions, then queries by name.

    since: when the present step began. The false-alarm ratio holds for all built-in checks together: each may call an
    equal canary worse with its part of the probability.
    """
    built_in: dict[str, tuple[Check, Callable[[Evidence, float], _Finding | Unavailable]]] = {
        "errors": (analysis.errors, partial(_errors, analysis.errors)),
        "latency": (analysis.latency, partial(_latency, analysis.latency)),
        "unknown-tokens": (analysis.unknown_tokens, partial(_unknown_tokens, analysis.unknown_tokens)),
        "predictions": (analysis.predictions, partial(_predictions, analysis.predictions)),
    }
    enabled = {name: entry for name, entry in built_in.items() if entry[0].enabled}
    whole = sum(_PARTS[name] for name in enabled)
    findings: list[tuple[str, Check, _Finding | Unavailable]] = [
        (name, check, weigh(evidence, analysis.false_alarm_ratio * _PARTS[name] / whole))
        for name, (check, weigh) in enabled.items()
    ]
    own = sorted((query for query in analysis.queries if query.enabled), key=lambda query: query.name)
    findings += [(query.name, query, _query(query, evidence, since.timestamp())) for query in own]
    grid = evidence.grid
    # An interval in which the step began is the former step's: requests count too late rather than too early.
    first = max(0, math.ceil((since.timestamp() - grid.start) / grid.step - 1e-6))
    return tuple(
        _judgement(
            name,
            Unavailable(evidence.unavailable) if evidence.unavailable else finding,
            first=first,
            minimum=check.minimum_requests or analysis.minimum_requests,
            on_no_data=check.on_no_data or analysis.on_no_data,
            patience_seconds=float(
                (check.inconclusive_limit or analysis.inconclusive_limit) * analysis.interval_seconds
            ),
        )
        for name, check, finding in findings
    )


def _judgement(
    name: str,
    finding: _Finding | Unavailable,
    *,
    first: int,
    minimum: int,
    on_no_data: OnNoData,
    patience_seconds: float,
) -> Judgement:
    """first: the step's first interval. minimum: requests that the step asks for."""
    requests = step_requests = 0.0
    detectable, message = None, finding.message
    if isinstance(finding, Unavailable):
        result = Result.UNKNOWN
    else:
        requests, step_requests = sum(finding.requests), sum(finding.requests[first:])
        detectable = finding.detectable
        if finding.worse:
            result = Result.FAIL
        elif finding.lacking:
            result = Result.WAITING
        elif step_requests < minimum:
            result, message = Result.WAITING, f"{step_requests:,.0f} of {minimum:,} requests in this step; {message}"
        else:
            result = Result.PASS
    return Judgement(
        name=name,
        result=result,
        message=message,
        requests=round(requests),
        step_requests=round(step_requests),
        detectable=detectable,
        on_no_data=on_no_data,
        patience_seconds=patience_seconds,
    )


def _errors(check: ErrorCheck, evidence: Evidence, alpha: float) -> _Finding | Unavailable:
    if isinstance(evidence.errors, Unavailable):
        return evidence.errors
    requests = [pair.canary.trials for pair in evidence.errors]
    seen = compare(joined(evidence.errors), alpha=alpha, least_difference=check.least_difference)
    if lacking := _lacking(seen.canary, seen.stable, "requests"):
        return _Finding(lacking, requests, lacking=True)
    where = ", by the gateway's count" if evidence.by_gateway else ""
    figures = f"{_share(seen.canary)} requests of the canary fail, {_share(seen.stable)} of the stable revision{where}"
    return _Finding(f"{figures}: {_verdict(seen)}", requests, worse=seen.worse, detectable=seen.detectable)


def _latency(check: LatencyCheck, evidence: Evidence, alpha: float) -> _Finding | Unavailable:
    found = evidence.latency
    if isinstance(found, Unavailable):
        return found
    if isinstance(evidence.answered, Unavailable):
        return evidence.answered
    quantile, tolerance = check.quantile, check.tolerance
    beyond = excesses(found.canary, found.stable, quantile=quantile, tolerance=tolerance, before=found.before)
    seen = compare(beyond, alpha=alpha, least_difference=check.least_difference)
    if lacking := _lacking(seen.canary, seen.stable, "successful requests of the same length"):
        return _Finding(lacking, evidence.answered, lacking=True)
    slower = f", were they {tolerance:g} times as slow" if tolerance > 1 else ""
    figures = (
        f"{_share(seen.canary)} requests of the canary are slower than the stable revision's p{100 * quantile:g} for "
        f"their length, {_share(seen.stable)} of its own{slower}"
    )
    return _Finding(f"{figures}: {_verdict(seen)}", evidence.answered, worse=seen.worse, detectable=seen.detectable)


def _unknown_tokens(check: UnknownTokenCheck, evidence: Evidence, alpha: float) -> _Finding | Unavailable:
    found = evidence.unknown_tokens
    if isinstance(found, Unavailable):
        return found
    if isinstance(evidence.answered, Unavailable):
        return evidence.answered
    if found and not any(pair.canary.trials or pair.stable.trials for pair in found):
        return _Finding("neither revision reads tokens: nothing to compare", evidence.answered)
    seen = compare(joined(found), alpha=alpha, least_difference=check.least_difference)
    if lacking := _lacking(seen.canary, seen.stable, "tokens"):
        return _Finding(lacking, evidence.answered, lacking=True)
    figures = f"{_share(seen.canary)} tokens of the canary are unknown, {_share(seen.stable)} of the stable revision"
    return _Finding(f"{figures}: {_verdict(seen)}", evidence.answered, worse=seen.worse, detectable=seen.detectable)


def _predictions(check: PredictionCheck, evidence: Evidence, alpha: float) -> _Finding | Unavailable:
    found = evidence.predictions
    if isinstance(found, Unavailable):
        return found
    if isinstance(evidence.answered, Unavailable):
        return evidence.answered
    if not any(pair.canary.trials or pair.stable.trials for pairs in found.values() for pair in pairs):
        return _Finding("neither revision answers labels: nothing to compare", evidence.answered)
    shift = largest_shift(found, alpha=alpha, least_difference=check.least_difference)
    if lacking := _lacking(shift.canary, shift.stable, "predictions"):
        return _Finding(lacking, evidence.answered, lacking=True)
    figures = (
        f"label {shift.label} is {_share(shift.canary)} predictions of the canary, {_share(shift.stable)} of the "
        f"stable revision, the largest shift of {len(found)} labels"
    )
    verdict = _verdict(shift.seen, worse="proven to differ", otherwise="no shift so far", ratio=False)
    return _Finding(f"{figures}: {verdict}", evidence.answered, worse=shift.seen.worse)


def _query(query: Query, evidence: Evidence, since: float) -> _Finding | Unavailable:
    found = evidence.queries.get(query.name, ())
    if isinstance(found, Unavailable):
        return found
    if isinstance(evidence.errors, Unavailable):
        return evidence.errors
    requests = [pair.canary.trials for pair in evidence.errors]
    if len(found) > 1:
        return Unavailable(f"the query gives {len(found)} series: let it give one, by sum() or the like")
    seen = course(query, [value for one in found for at, value in one.samples if at > since])
    if seen is None:
        return _Finding("the query gave no value in this step", requests, lacking=True)
    text = f"{seen.last:.4g} ({described(query)} is asked for)"
    if seen.longest >= query.failure_limit:
        return _Finding(f"{text}: out of bounds {seen.longest} times in a row", requests, worse=True)
    if seen.row:
        text = f"{text}: out of bounds, {seen.row} of {query.failure_limit} times"
    return _Finding(text, requests, lacking=bool(seen.row))


def _lacking(canary: Counts, stable: Counts, what: str) -> str:
    """Why nothing can be compared; empty when something can."""
    arms = (("canary", canary), ("stable revision", stable))
    missing = [name for name, counts in arms if not counts.trials]
    return f"Prometheus has counted no {what} of the {' and of the '.join(missing)}" if missing else ""


def _share(counts: Counts) -> str:
    return f"{100 * counts.ratio:.2f} % of {counts.trials:,.0f}"


def _verdict(
    seen: Comparison, *, worse: str = "proven worse", otherwise: str = "no worse so far", ratio: bool = True
) -> str:
    figures = f"(evidence {seen.evidence:.1f} of {seen.needed:.1f} needed)"
    if seen.worse:
        return f"{worse} {figures}"
    if seen.evidence >= seen.needed:
        return f"a difference too small to matter {figures}"
    if not (ratio and seen.detectable):
        return f"{otherwise} {figures}"
    return f"{otherwise} {figures}; a ratio of {100 * seen.detectable:.2g} % or more would show by now"
