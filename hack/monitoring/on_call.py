"""For whoever is woken up: what burns, for whom, since when, and whether a rollout explains it."""

from cloze_api import metrics
from monitoring import panels
from monitoring.panels import Json, Panel, Query, Row
from monitoring.promql import KEY, objective, sample
from monitoring.scope import (
    DEPLOYMENT,
    DEPLOYMENTS,
    HERE,
    NAMESPACE,
    SUCCESSFUL,
    VERSION,
    quantile,
    requests,
    served,
)

_NAME = "{{namespace}}/{{name}}"
_WHO = ("namespace", "name")


def _alerts() -> Row:
    return Row(
        "Now",
        [
            Panel(
                "Alerts that fire",
                "Each has a runbook: the link is the alert's annotation runbook_url.",
                "short",
                [Query('ALERTS{alertname=~"Cloze.+",alertstate="firing",severity!="none"}')],
                kind="table",
                width=12,
                hidden_columns=("Time", "Value", "__name__", "alertstate"),
            ),
            Panel(
                "ModelDeployments by state",
                "Failing needs a person. Canary, Probing and Paused are rollouts; Blocked and RolledBack tell of a "
                "version that isn't served.",
                "short",
                [Query(f'{sample(metrics.RESOURCE_STATE)}{{kind="ModelDeployment",{DEPLOYMENTS}}} == 1')],
                kind="table",
                width=12,
                hidden_columns=("Time", "Value", "__name__", "instance", "job", "pod", "kind", "container", "endpoint"),
            ),
        ],
    )


def _burn() -> Row:
    def burning(ratio: str, whole: str, window: str) -> str:
        return f"deployment:{ratio}:ratio_rate{window}{{{DEPLOYMENTS}}} / on ({KEY}) group_left () (1 - {whole})"

    def panel(title: str, ratio: str, metric: metrics.Metric, what: str, legend: str) -> Panel:
        queries = [Query(burning(ratio, objective(metric), each), f"{legend}, {each}") for each in ("5m", "1h", "6h")]
        description = (
            f"How many times faster than allowed {what} use the month's budget up: 1 uses it up in 30 days. Over 1 h "
            "it pages from 14.4 on, over 6 h from 6 on."
        )
        return Panel(title, description, "suffix:×", queries, width=12, limits=(6, 14.4))

    return Row(
        "Objectives",
        [
            panel(
                "Burn rate of errors",
                "cloze_request_errors",
                metrics.OBJECTIVE_AVAILABILITY,
                "errors",
                f"{_NAME} ({{{{source}}}})",
            ),
            panel(
                "Burn rate of latency",
                "cloze_answers_late",
                metrics.OBJECTIVE_LATENCY_RATIO,
                "late answers",
                _NAME,
            ),
        ],
    )


def _requests() -> Row:
    return Row(
        "Requests",
        [
            Panel(
                "Requests by status",
                "As the servers answered them. 429: too much to do; 503: loading or ending; 499: the client left.",
                "reqps",
                [Query(served(requests(), within="status"), "{{status}}")],
                stacked=True,
            ),
            Panel(
                "Requests by status, at the gateway",
                "As Traefik answered them for all routes: 502, 503 and 504 are its own words for a server that isn't "
                "there. No data without Traefik.",
                "reqps",
                [Query("sum by (code) (rate(traefik_router_requests_total[$__rate_interval]))", "{{code}}")],
                stacked=True,
            ),
            Panel(
                "Server errors",
                "Share of the requests that ended with 5xx, over 5 minutes.",
                "percentunit",
                [Query(f"deployment:cloze_request_errors:ratio_rate5m{{{DEPLOYMENTS}}}", f"{_NAME} ({{{{source}}}})")],
            ),
            Panel(
                "Latency",
                "Of successful requests, from arrival to reply.",
                "s",
                [
                    Query(
                        quantile(share, metrics.REQUEST_DURATION, *_WHO, further=SUCCESSFUL),
                        f"{_NAME} p{share * 100:g}",
                    )
                    for share in (0.5, 0.95, 0.99)
                ],
            ),
            Panel(
                "Tokens that wait",
                "Queued tokens of all replicas. A replica answers 429 at spec.runtime.maxQueueTokens, and where "
                "they would take longer than maxWaitSeconds.",
                "short",
                [Query(served(f"{sample(metrics.QUEUE_TOKENS)}{{{HERE}}}", *_WHO), _NAME)],
            ),
            Panel(
                "Requests in flight",
                "Accepted and not yet answered.",
                "short",
                [Query(served(f"{sample(metrics.IN_FLIGHT)}{{{HERE}}}", *_WHO), _NAME)],
            ),
        ],
    )


def _rollouts() -> Row:
    def each(metric: metrics.Metric) -> str:
        return f"max by ({KEY}) ({sample(metric)}{{{DEPLOYMENTS}}})"

    check = sample(metrics.ROLLOUT_CHECK)
    return Row(
        "Rollouts",
        [
            Panel(
                "Requests to the canary",
                "Share of the requests that a new revision is given. While it is above 0, and while a promoted one is "
                "watched, tickets are kept quiet.",
                "percentunit",
                [Query(each(metrics.ROLLOUT_WEIGHT), _NAME)],
            ),
            Panel(
                "Step and progress",
                "Step of the rollout, from 1, and 1 for as long as it is in progress.",
                "short",
                [
                    Query(each(metrics.ROLLOUT_STEP), f"{_NAME} step"),
                    Query(each(metrics.ROLLOUT_IN_PROGRESS), f"{_NAME} in progress"),
                ],
            ),
            Panel(
                "Checks of canaries",
                "The present result of each check. no_data and unknown are never a pass.",
                "short",
                [Query(f"max by ({KEY}, check, result) ({check}{{{DEPLOYMENTS}}}) == 1")],
                kind="table",
                hidden_columns=("Time", "Value"),
            ),
            Panel(
                "Pods by version",
                "Pods that have a model loaded.",
                "short",
                [
                    Query(
                        served(f"{sample(metrics.MODEL_INFO)}{{{HERE}}}", *_WHO, "version"),
                        f"{_NAME} version {{{{version}}}}",
                    )
                ],
                stacked=True,
            ),
            Panel(
                "Pods with another version",
                "Ready pods that report another version than they were made for. Anything but 0 holds rollouts back.",
                "short",
                [Query(each(metrics.VERSION_MISMATCH), _NAME)],
            ),
            Panel(
                "Rollouts ended",
                "In the chosen time, by result.",
                "short",
                [
                    Query(
                        f"sum by (result) (increase({sample(metrics.ROLLOUTS)}{{{DEPLOYMENTS}}}[$__range]))",
                        "{{result}}",
                    )
                ],
                kind="stat",
                decimals=0,
            ),
        ],
    )


def _platform() -> Row:
    def failing(metric: metrics.Metric, *by: str) -> str:
        return f"sum by ({', '.join(by)}) (rate({sample(metric)}[$__rate_interval]))"

    return Row(
        "Platform",
        [
            Panel(
                "Operators that act",
                "Exactly 1. The others wait for the lease.",
                "short",
                [Query(f"sum by (namespace) ({sample(metrics.LEADER)})", "{{namespace}}")],
            ),
            Panel(
                "Failing calls to MLflow",
                "By operation, of the operator. What is served goes on; new pods can't fetch their model.",
                "cps",
                [Query(failing(metrics.REGISTRY_ERRORS, "operation"), "{{operation}}")],
            ),
            Panel(
                "Failing queries to Prometheus",
                "Of canary analysis. Rollouts wait meanwhile.",
                "cps",
                [Query(failing(metrics.PROMETHEUS_ERRORS, "namespace"), "{{namespace}}")],
            ),
        ],
    )


def dashboard() -> Json:
    """The dashboard, from the symptom to what may explain it."""
    return panels.dashboard(
        "cloze-on-call",
        "Cloze / On call",
        "What burns, for whom, since when, and whether a rollout explains it.",
        [NAMESPACE, DEPLOYMENT, VERSION],
        [_alerts(), _burn(), _requests(), _rollouts(), _platform()],
        since="3h",
    )
