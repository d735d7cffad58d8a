"""Recording rules: rates and ratios of each ModelDeployment over the windows of its alerts, from raw counters."""

from collections.abc import Iterable
from typing import Any

from cloze_api import metrics
from monitoring.promql import (
    ERRORS,
    KEY,
    MONTH,
    OBJECTIVE_BOUNDS,
    PODS,
    WINDOWS,
    WITH_MODEL,
    objective,
    of_deployments,
    sample,
)

Rule = dict[str, Any]
Group = dict[str, Any]

#: How often a month is looked at.
_MONTHLY = "3m"

#: Where requests were counted: by the servers, or by the gateway before them.
_SERVER = {"source": "server"}
_GATEWAY = {"source": "gateway"}

#: Traefik's name of a rule of an HTTPRoute at an entry point of a Gateway.
_ROUTER = "httproute-{}-gw-.+-ep-.+@kubernetesgateway"


def _record(name: str, expression: str, labels: dict[str, str] | None = None) -> Rule:
    return {"record": name, "expr": expression, **({"labels": dict(labels)} if labels else {})}


def _ratio(kind: str, whole: str, window: str, *, what: str = "rate") -> str:
    # No requests are no answer, rather than 0/0.
    return f"deployment:{kind}:{what}{window} / (deployment:{whole}:{what}{window} > 0)"


def _requests(window: str) -> list[Rule]:
    counter = sample(metrics.REQUESTS)
    total = of_deployments(f"rate({counter}{{{WITH_MODEL}}}[{window}])", window)
    errors = of_deployments(f"rate({counter}{{{WITH_MODEL},{ERRORS}}}[{window}])", window)
    return [
        _record(f"deployment:cloze_requests:rate{window}", total, _SERVER),
        _record(f"deployment:cloze_request_errors:rate{window}", errors, _SERVER),
    ]


def _answers(window: str) -> list[Rule]:
    """Successful requests, and those within the objective: the bucket whose boundary is the objective's."""
    answered = f'status_class="2xx",{WITH_MODEL}'
    count = f"rate({sample(metrics.REQUEST_DURATION, 'count')}{{{answered}}}[{window}])"
    buckets = f'rate({sample(metrics.REQUEST_DURATION, "bucket")}{{{answered},le=~"{OBJECTIVE_BOUNDS}"}}[{window}])'
    chosen = (
        f"sum by ({KEY}) (\n"
        f"{_indented(of_deployments(buckets, window, by='le'))}\n"
        f"  and on ({KEY}, le) {sample(metrics.OBJECTIVE_LATENCY)}\n"
        ")"
    )
    return [
        _record(f"deployment:cloze_answers:rate{window}", of_deployments(count, window)),
        _record(f"deployment:cloze_answers_in_time:rate{window}", chosen),
    ]


def _ratios(window: str) -> list[Rule]:
    late = _ratio("cloze_answers_in_time", "cloze_answers", window)
    return [
        _record(
            f"deployment:cloze_request_errors:ratio_rate{window}",
            _ratio("cloze_request_errors", "cloze_requests", window),
        ),
        # Two rates of one scrape may differ by a rounding.
        _record(f"deployment:cloze_answers_late:ratio_rate{window}", f"clamp_min(1 - {late}, 0)"),
    ]


def _windows(windows: Iterable[str]) -> list[Rule]:
    return [rule for window in windows for rule in (*_requests(window), *_answers(window), *_ratios(window))]


def _month() -> list[Rule]:
    """What the objectives promise over a month, and what is left of it: 1 all, 0 nothing, below 0 broken."""
    errors = _ratio("cloze_request_errors", "cloze_requests", MONTH)
    available = f"deployment:cloze_availability:ratio{MONTH}"
    in_time = f"deployment:cloze_answers_in_time:ratio{MONTH}"
    return [
        *_requests(MONTH),
        *_answers(MONTH),
        _record(available, f"1 - {errors}"),
        _record(in_time, _ratio("cloze_answers_in_time", "cloze_answers", MONTH)),
        _record(
            f"deployment:cloze_error_budget_left:ratio{MONTH}",
            f"1 - (1 - {available}) / on ({KEY}) group_left () (1 - {objective(metrics.OBJECTIVE_AVAILABILITY)})",
        ),
        _record(
            f"deployment:cloze_latency_budget_left:ratio{MONTH}",
            f"1 - (1 - {in_time}) / on ({KEY}) (1 - {objective(metrics.OBJECTIVE_LATENCY_RATIO)})",
        ),
    ]


def groups() -> list[Group]:
    """The groups that need the servers and the operator only."""
    pods = f'label_replace({sample(metrics.MODEL_INFO)}{{deployment!=""}}, "name", "$1", "deployment", "(.+)")'
    return [
        {
            "name": "cloze-pods",
            "rules": [_record(PODS, f"max by (namespace, pod, name, revision, model, version) ({pods})")],
        },
        *(
            {"name": f"cloze-deployments-{name}", "interval": interval, "rules": _windows(windows)}
            for name, (interval, windows) in WINDOWS.items()
        ),
        {"name": "cloze-deployments-month", "interval": _MONTHLY, "rules": _month()},
    ]


def _passed(window: str) -> list[Rule]:
    """What Traefik counted of the HTTPRoute of each ModelDeployment: by router, since what no server was there for
    (503), or no Service (500), it counts for no service.

    Its label joins namespace and name by a dash, and so is this: there is no telling where the one ends.
    """

    def count(*further: str) -> str:
        selector = ",".join([f'router=~"{_ROUTER.format(".+")}"', *further])
        rate = f"rate(traefik_router_requests_total{{{selector}}}[{window}])"
        by_route = f'sum by (route) (label_replace({rate}, "route", "$1", "router", "{_ROUTER.format("(.+?)")}"))'
        owners = f"group by ({KEY}) ({sample(metrics.OBJECTIVE_AVAILABILITY)})"
        routes = f'label_join({owners}, "route", "-", "namespace", "name")'
        return f"sum by ({KEY}) (\n  {by_route}\n  * on (route) group_right () {routes}\n)"

    failed = count('code=~"5.."')

    return [
        _record(f"deployment:cloze_requests:rate{window}", count(), _GATEWAY),
        # A code has no series before its first reply: without the requests there would be no ratio of 0.
        _record(
            f"deployment:cloze_request_errors:rate{window}",
            f"{failed}\nor\n0 * {count()}",
            _GATEWAY,
        ),
    ]


def gateway_groups() -> list[Group]:
    """The same requests as Traefik counts them, which it does without any server too. Ratios are in `groups`."""
    return [
        *(
            {
                "name": f"cloze-gateway-{name}",
                "interval": interval,
                "rules": [rule for window in windows for rule in _passed(window)],
            }
            for name, (interval, windows) in WINDOWS.items()
        ),
        {"name": "cloze-gateway-month", "interval": _MONTHLY, "rules": _passed(MONTH)},
    ]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
