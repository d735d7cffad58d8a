"""Judgement on a canary, check by check, from what was counted about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from cloze_api.rollout import Analysis, OnNoData
from cloze_operator.analysis.counters import NO_INTERVALS, Grid, Series
from cloze_operator.analysis.evidence import Pair
from cloze_operator.analysis.latency import Classes
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


def judge(analysis: Analysis, evidence: Evidence, *, since: datetime) -> tuple[Judgement, ...]:
    """One judgement for each enabled check: errors, latency, unknown-tokens, predictions, then queries by name.

    since: when the present step began.
    """
    raise NotImplementedError
