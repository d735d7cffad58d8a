"""For those who answer for it: what is promised and kept, how much it is used, what it costs, what changes."""

from cloze_api import metrics
from monitoring import panels
from monitoring.panels import Json, Panel, Query, Row, entry
from monitoring.promql import PODS, sample
from monitoring.scope import (
    DEPLOYMENT,
    DEPLOYMENTS,
    HERE,
    NAMESPACE,
    SUCCESSFUL,
    VERSION,
    quantile,
    rate,
    requests,
    served,
)

_NAME = "{{namespace}}/{{name}}"
_WHO = ("namespace", "name")


def _kept() -> Row:
    def stat(title: str, record: str, description: str, limits: tuple[float, float], legend: str = _NAME) -> Panel:
        query = Query(f"{record}{{{DEPLOYMENTS}}}", legend)
        return Panel(title, description, "percentunit", [query], kind="stat", width=6, limits=limits, decimals=3)

    source = f"{_NAME} ({{{{source}}}})"
    return Row(
        "Promised and kept, over 30 days",
        [
            stat(
                "Availability",
                "deployment:cloze_availability:ratio30d",
                "Share of the requests that ended without a server error, as the servers count them, and the gateway.",
                (0.999, 0.99),
                source,
            ),
            stat(
                "Error budget left",
                "deployment:cloze_error_budget_left:ratio30d",
                "What is left of the errors that the objective allows in 30 days. Below 0 it is broken.",
                (0.25, 0),
                source,
            ),
            stat(
                "Answered in time",
                "deployment:cloze_answers_in_time:ratio30d",
                "Share of the successful requests that took no longer than the objective.",
                (0.95, 0.9),
            ),
            stat(
                "Latency budget left",
                "deployment:cloze_latency_budget_left:ratio30d",
                "What is left of the late answers that the objective allows in 30 days. Below 0 it is broken.",
                (0.25, 0),
            ),
        ],
    )


def _use() -> Row:
    cpu = served(f"rate(process_cpu_seconds_total{{{HERE}}}[$__rate_interval])", *_WHO)
    tokens = served(rate(metrics.TOKENS, 'kind="real"'), *_WHO)
    # Below a request a minute what a request costs says nothing.
    cost = f"$cpu_price / 3600 * {cpu} / ({served(requests(), *_WHO)} > 0.0167) * 1000"
    return Row(
        "Use and cost",
        [
            Panel(
                "Requests",
                "Requests to models, by ModelDeployment.",
                "reqps",
                [Query(served(requests(), *_WHO), _NAME)],
                stacked=True,
            ),
            Panel(
                "Tokens",
                "Tokens that models ran on, without padding.",
                "suffix:tokens/s",
                [Query(tokens, _NAME)],
                stacked=True,
            ),
            Panel(
                "Cost of a thousand requests",
                "CPU time of the servers at the price of a core-hour that stands above. Idle replicas cost what they "
                "use, not what they reserve; accelerators are not counted.",
                "currencyUSD",
                [Query(cost, _NAME)],
                decimals=4,
            ),
            *(
                Panel(
                    f"Latency, {percent}th percentile",
                    f"{percent} % of the successful requests take no longer, from arrival to reply.",
                    "s",
                    [Query(quantile(percent / 100, metrics.REQUEST_DURATION, *_WHO, further=SUCCESSFUL), _NAME)],
                    width=12,
                )
                for percent in (95, 99)
            ),
        ],
    )


def _changes() -> Row:
    state = sample(metrics.RESOURCE_STATE)
    return Row(
        "What runs and what changes",
        [
            Panel(
                "Versions in production",
                "Pods by the model version that they have loaded.",
                "short",
                [Query(f"count by (namespace, name, model, version) ({PODS}{{{DEPLOYMENTS}}})")],
                kind="table",
                width=12,
            ),
            Panel(
                "Resources by state",
                "How many resources of each kind are in which state.",
                "short",
                [Query(f"count by (kind, state) ({state}{{{HERE}}})")],
                kind="table",
                width=12,
            ),
            Panel(
                "Rollouts ended",
                "Rollouts that ended in the chosen time, by result. A new version that was taken back is the platform "
                "at work; many of them are a question to those who train.",
                "short",
                [
                    Query(
                        f"sum by (result) (increase({sample(metrics.ROLLOUTS)}{{{DEPLOYMENTS}}}[$__range]))",
                        "{{result}}",
                    )
                ],
                kind="stat",
                width=12,
                decimals=0,
            ),
            Panel(
                "Pages",
                "Alerts that wake somebody up, at each moment; 0 is how it should be.",
                "short",
                [
                    Query(
                        'count(ALERTS{alertname=~"Cloze.+",alertstate="firing",severity="page"}) or vector(0)', "pages"
                    )
                ],
                width=12,
            ),
        ],
    )


def dashboard() -> Json:
    """The dashboard, from the promise to its causes."""
    price = entry("cpu_price", "Price of a core-hour", "0.04", "In the currency of your bill.")
    return panels.dashboard(
        "cloze-executive",
        "Cloze / Executive",
        "What is promised and kept, how much it is used, what it costs, what changes.",
        [NAMESPACE, DEPLOYMENT, VERSION, price],
        [_kept(), _use(), _changes()],
        since="7d",
    )
