"""Whether a revision burns its error budget so fast that nobody should wait.

As the SRE workbook's fast burn (chapter 5, "multiwindow, multi-burn-rate alerts"): 14.4 times too fast over a long and
a short window, the short one so that what is over isn't held against anybody. The windows are shorter than its alert's,
since a promoted revision is watched for minutes and the former one stands ready.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from cloze_operator.analysis.checks import Evidence
from cloze_operator.analysis.counters import Grid
from cloze_operator.analysis.counts import Counts, total
from cloze_operator.decide.answers import Unavailable

LONG_SECONDS: Final = 300.0
_SHORT_SECONDS: Final = 60.0
_FACTOR: Final = 14.4
#: Fewer errors are nobody's trend, whatever their ratio.
_LEAST_ERRORS: Final = 5
#: What is older than so many intervals says nothing about now.
_FRESH_INTERVALS: Final = 3


@dataclass(frozen=True, slots=True)
class Burn:
    """ratio: errors by request in the long window, of so many requests and events (errors)."""

    burning: bool
    ratio: float
    requests: float
    events: float
    message: str


def fast_burn(evidence: Evidence, arm: Literal["canary", "stable"], *, availability: float, now: datetime) -> Burn:
    """Whether an arm's errors use the budget 14.4 times too fast, over both windows and with at least five errors.

    The windows are the last five minutes and the last one of what the evidence covers, and never less than an interval.
    Old evidence, or none, is no burn.
    """
    recent, grid = evidence.recent, evidence.recent_grid
    if evidence.unavailable or isinstance(recent, Unavailable):
        return _nothing(evidence.unavailable or (recent.message if isinstance(recent, Unavailable) else ""))
    counts = [pair.canary if arm == "canary" else pair.stable for pair in recent]
    if not counts or now.timestamp() - grid.end > _FRESH_INTERVALS * grid.step + _SHORT_SECONDS:
        return _nothing("Prometheus has counted nothing lately")
    long, short = _last(counts, grid, LONG_SECONDS), _last(counts, grid, _SHORT_SECONDS)
    limit = _FACTOR * (1 - availability)
    burning = long.events >= _LEAST_ERRORS and long.ratio > limit and short.ratio > limit
    message = (
        f"{100 * long.ratio:.2f} % of {long.trials:,.0f} requests failed in the last {_span(grid, LONG_SECONDS):g} s, "
        f"{100 * short.ratio:.2f} % of {short.trials:,.0f} in the last {_span(grid, _SHORT_SECONDS):g} s; "
        f"{100 * limit:.2f} % is {_FACTOR:g} times the error budget"
    )
    return Burn(burning, long.ratio, long.trials, long.events, message)


def _last(counts: Sequence[Counts], grid: Grid, seconds: float) -> Counts:
    return total(counts[-_intervals(grid, seconds) :])


def _span(grid: Grid, seconds: float) -> float:
    return min(grid.count, _intervals(grid, seconds)) * grid.step


def _intervals(grid: Grid, seconds: float) -> int:
    return max(1, round(seconds / grid.step))


def _nothing(message: str) -> Burn:
    return Burn(burning=False, ratio=0.0, requests=0.0, events=0.0, message=message)
