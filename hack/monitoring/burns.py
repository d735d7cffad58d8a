"""Alerts on objectives: an error budget that burns too fast over a long and a short window."""

from dataclasses import dataclass
from typing import Final

from cloze_api import metrics
from monitoring.alert import PAGE, TICKET, WHO, Rule, alert
from monitoring.promql import KEY, SECONDS, objective

#: Fewer bad requests than this in the long window are no trend: one error among ten requests wakes nobody up.
LEAST: Final = 10


@dataclass(frozen=True, slots=True)
class Burn:
    """Two windows over which the month's error budget burns `factor` times too fast.

    From "Alerting on SLOs", The Site Reliability Workbook, chapter 5: the long window says that it matters, the short
    one that it goes on.
    """

    severity: str
    long: str
    short: str
    factor: float
    gone: str
    """How long a month's budget lasts at this rate."""
    quiet: bool


#: The fastest one alone is let through during a rollout: it takes an outage to get there, which a canary isn't.
BURNS: Final = (
    Burn(PAGE, "1h", "5m", 14.4, "50 hours", quiet=False),
    Burn(PAGE, "6h", "30m", 6, "5 days", quiet=True),
    Burn(TICKET, "1d", "2h", 3, "10 days", quiet=True),
    Burn(TICKET, "3d", "6h", 1, "30 days", quiet=True),
)


def _burning(bad: str, counted: str, whole: str, burn: Burn) -> str:
    # With a low objective the product is beyond any ratio, and an outage would tell nobody.
    threshold = f"clamp_max({burn.factor:g} * (1 - {whole}), 0.8)"
    over = [
        f"deployment:{bad}:ratio_rate{window} > on ({KEY}) group_left () {threshold}"
        for window in (burn.long, burn.short)
    ]
    enough = f"{counted} * {SECONDS[burn.long]} >= {LEAST}"
    # One alert, whether servers or gateway or both have counted it.
    return f"max by ({KEY}) (\n  {over[0]}\n  and {over[1]}\n  and {enough}\n)"


def rules() -> list[Rule]:
    """Of availability and of latency."""
    found = []
    for burn in BURNS:
        windows = {"long": burn.long, "short": burn.short}
        speed = f"{burn.factor:g} times as fast as its objective allows"
        found += [
            alert(
                "ClozeErrorBudgetBurn",
                _burning(
                    "cloze_request_errors",
                    f"deployment:cloze_request_errors:rate{burn.long}",
                    objective(metrics.OBJECTIVE_AVAILABILITY),
                    burn,
                ),
                severity=burn.severity,
                runbook="error-budget-burn",
                quiet=burn.quiet,
                labels=windows,
                summary=f"{WHO} fails requests {speed}",
                description=f"{{{{ $value | humanizePercentage }}}} of the requests of the last {burn.long} ended "
                f"with a server error, and it goes on. At {burn.factor:g} times the allowed rate the budget of 30 "
                f"days is gone in {burn.gone}.",
            ),
            alert(
                "ClozeLatencyBudgetBurn",
                _burning(
                    "cloze_answers_late",
                    f"(deployment:cloze_answers:rate{burn.long} - deployment:cloze_answers_in_time:rate{burn.long})",
                    objective(metrics.OBJECTIVE_LATENCY_RATIO),
                    burn,
                ),
                severity=burn.severity,
                runbook="latency-budget-burn",
                quiet=burn.quiet,
                labels=windows,
                summary=f"{WHO} answers late {speed}",
                description=f"{{{{ $value | humanizePercentage }}}} of the successful requests of the last "
                f"{burn.long} took longer than the objective, and it goes on. At {burn.factor:g} times the allowed "
                f"rate the budget of 30 days is gone in {burn.gone}.",
            ),
        ]
    return found
