"""Prometheus' own test program on the rules of the chart: each alert fires when it must, and stays silent otherwise."""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

import burn_cases
import rule_cases
from programs import program
from rule_series import ME, Case, durations, growing, objectives, pod, requests, series

# Prometheus comes with the local cluster's packages.
pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "charts" / "cloze" / "files" / "rules"
CASES = (*burn_cases.CASES, *rule_cases.CASES)

# In the order in which one is made of the other.
NAMES = ("gateway-traefik", "recording", "alerts")
RULES = [
    rule
    for name in NAMES
    for group in yaml.safe_load((FILES / f"{name}.yaml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]


def promtool(*arguments: str) -> None:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def needed(names: Sequence[str], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rules of these names and labels, and the records that they are made of: all others would only take time."""
    wanted: set[str] = set()
    found: list[dict[str, Any]] = []
    # Backwards, since what a rule is made of stands before it.
    for rule in reversed(RULES):
        name = rule.get("record", rule.get("alert"))
        if name in wanted or (name in names and labels.items() <= rule.get("labels", {}).items()):
            wanted |= set(re.findall(r"(?:pod|deployment):\w+:\w+", rule["expr"]))
            found.insert(0, rule)
    return found


def examine(
    folder: Path,
    names: Sequence[str],
    given: Sequence[tuple[str, str]],
    interval: int,
    labels: Mapping[str, str] | None = None,
    **tests: list[dict[str, Any]],
) -> None:
    """promtool's verdict on the rules of these names. interval: minutes between two samples."""
    rules = folder / "rules.yaml"
    rules.write_text(
        yaml.safe_dump({"groups": [{"name": "chosen", "rules": needed(names, labels or {})}]}, sort_keys=False)
    )
    every = f"{interval}m"
    inputs = [{"series": name, "values": values} for name, values in given]
    document = {
        "rule_files": [str(rules)],
        "evaluation_interval": every,
        "tests": [{"interval": every, "input_series": inputs, **tests}],
    }
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    promtool("test", "rules", str(path))


def expectation(query: str, minutes: int, *samples: tuple[str, float]) -> dict[str, Any]:
    return {
        "expr": query,
        "eval_time": f"{minutes}m",
        "exp_samples": [{"labels": labels, "value": value} for labels, value in samples],
    }


def test_promtool_finds_nothing_wrong() -> None:
    """Syntax, templates, and no rule twice."""
    promtool("check", "rules", "--lint-fatal", *map(str, sorted(FILES.glob("*.yaml"))))
    assert {path.stem for path in FILES.glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.alert}-{dict(case.labels).get('long', '')}-{case.story}"
)
def test_alert(case: Case, tmp_path: Path) -> None:
    """It fires with these labels, and for nothing else."""
    chosen = "".join(f',{key}="{value}"' for key, value in case.labels)
    query = f'ALERTS{{alertname="{case.alert}",alertstate="firing"{chosen}}}'
    fixed = {"alertname": case.alert, "alertstate": "firing", "team": "cloze"}
    expected = [(series("ALERTS", **fixed, **labels), 1) for labels in case.expected]
    told = [expectation(query, case.minutes, *expected)]
    examine(tmp_path, [case.alert], case.series, case.interval, dict(case.labels), promql_expr_test=told)


def test_each_alert_has_been_seen_to_fire_and_to_stay_silent() -> None:
    """No rule is without both kinds of cases, and no case without its rule."""
    rules = {(rule["alert"], rule["labels"].get("long", ""), rule["labels"]["severity"]) for rule in ALERTS}
    for fires in (True, False):
        seen = set()
        for case in CASES:
            if bool(case.expected) is fires:
                named = dict(case.labels)
                severities = {rule["labels"]["severity"] for rule in ALERTS if rule["alert"] == case.alert}
                seen.add((case.alert, named.get("long", ""), named.get("severity") or severities.pop()))
        assert seen == rules


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels'].get('long', '')}")
def test_alert_says_who_is_to_do_what(rule: dict[str, Any]) -> None:
    """Severity, team, a page that says what to do, and what happens in words with figures."""
    assert rule["labels"]["severity"] in {"page", "ticket", "none"}
    assert rule["labels"]["team"] == "cloze"
    annotations = rule["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert (ROOT / annotations["runbook_url"]).is_file()
    assert re.search(r"\d|\$value", annotations["description"] + annotations["summary"])


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "runbooks").glob("*.md")), ids=lambda path: path.stem)
def test_runbook_is_complete(page: Path) -> None:
    """Who is woken up finds the same five parts on every page."""
    text = page.read_text()
    places = [text.find(f"\n**{part}.**") for part in ("Symptom", "Confirm", "Fix", "Verify", "Escalate")]
    assert -1 not in places
    assert places == sorted(places)


def test_texts_have_figures(tmp_path: Path) -> None:
    """Templates are filled in: who, how much, over which time."""
    bad = [*objectives(60), pod(60), requests("200", growing((980, 60))), requests("500", growing((20, 60)))]
    expected = {
        "eval_time": "60m",
        "alertname": "ClozeErrorBudgetBurn",
        "exp_alerts": [
            {
                "exp_labels": {**ME, "team": "cloze", "severity": severity, "long": long, "short": short, **quiet},
                "exp_annotations": {
                    "summary": f"shop/spam fails requests {factor} times as fast as its objective allows",
                    "description": f"2% of the requests of the last {long} ended with a server error, and it goes on. "
                    f"At {factor} times the allowed rate the budget of 30 days is gone in {gone}.",
                    "runbook_url": "docs/runbooks/error-budget-burn.md",
                },
            }
            for severity, long, short, factor, gone, quiet in (
                ("page", "1h", "5m", "14.4", "50 hours", {}),
                ("page", "6h", "30m", "6", "5 days", {"quiet_during_rollout": "true"}),
                ("ticket", "1d", "2h", "3", "10 days", {"quiet_during_rollout": "true"}),
                ("ticket", "3d", "6h", "1", "30 days", {"quiet_during_rollout": "true"}),
            )
        ],
    }
    examine(tmp_path, ["ClozeErrorBudgetBurn"], bad, 1, alert_rule_test=[expected])


def test_errors_of_a_pod_that_is_gone_still_count(tmp_path: Path) -> None:
    """A pod that fails requests and crashes takes its series along, and not the errors."""
    crashed, other = "spam-0123abcd-x", "spam-0123abcd-y"
    given = [
        *objectives(40),
        (pod(0, crashed)[0], "1x20 stale"),
        requests("500", "0+60x20 stale", name=crashed),
        pod(40, other),
        requests("200", growing((60, 40)), name=other),
    ]
    record = "deployment:cloze_request_errors:ratio_rate1h"
    told = (series("", **ME, source="server"), 1)
    examine(tmp_path, [record], given, 1, promql_expr_test=[expectation(f"{record} > bool 0.3", 40, told)])


def test_routes_without_a_model_are_no_part_of_an_objective(tmp_path: Path) -> None:
    """Somebody who asks for what isn't there, or for the list of models, changes no ratio."""
    given = [
        *objectives(10),
        pod(10),
        requests("200", growing((60, 10))),
        requests("500", growing((0, 10))),
        requests("500", growing((60, 10)), route="/v1/models"),
        requests("500", growing((60, 10)), route="unmatched"),
    ]
    record = "deployment:cloze_request_errors:ratio_rate5m"
    told = (series(record, **ME, source="server"), 0)
    examine(tmp_path, [record], given, 1, promql_expr_test=[expectation(record, 10, told)])


def test_latency_is_read_at_the_objectives_boundary(tmp_path: Path) -> None:
    """The bucket whose `le` is the objective's; another ModelDeployment's objective is another bucket."""
    given = [*objectives(10), pod(10), *durations(growing((100, 10)), growing((75, 10)))]
    record = "deployment:cloze_answers_late:ratio_rate5m"
    told = (series(record, **ME), 0.25)
    examine(tmp_path, [record], given, 1, promql_expr_test=[expectation(record, 10, told)])


def traefik(code: str, values: str, route: str = "httproute-shop-spam") -> tuple[str, str]:
    router = f"{route}-gw-gateway-cloze-ep-http-0-2900b96f073f8a9bb86c@kubernetesgateway"
    return series("traefik_router_requests_total", code=code, router=router, namespace="gateway", pod="t"), values


def test_an_outage_without_any_server_pages_by_the_gateways_counters(tmp_path: Path) -> None:
    """No pod is there to count the 503s that users get."""
    given = [
        *objectives(70),
        traefik("200", growing((100, 60))),
        traefik("503", growing((0, 60), (100, 10))),
        # Another ModelDeployment's, and what is none of ours.
        traefik("200", growing((100, 70)), "httproute-shop-ham"),
        traefik("503", growing((100, 70)), "httproute-shop-whoami"),
    ]
    query = 'ALERTS{alertname="ClozeErrorBudgetBurn",alertstate="firing",severity="page",long="1h"}'
    labels = {"alertname": "ClozeErrorBudgetBurn", "alertstate": "firing", "team": "cloze", "severity": "page"}
    told = (series("ALERTS", **labels, **ME, long="1h", short="5m"), 1)
    examine(tmp_path, ["ClozeErrorBudgetBurn"], given, 1, promql_expr_test=[expectation(query, 70, told)])


def test_gateway_without_errors_has_a_ratio_of_zero(tmp_path: Path) -> None:
    """Traefik has no series of a code before its first reply with it."""
    given = [*objectives(10), traefik("200", growing((100, 10)))]
    record = "deployment:cloze_request_errors:ratio_rate5m"
    told = (series(record, **ME, source="gateway"), 0)
    examine(tmp_path, [record], given, 1, promql_expr_test=[expectation(record, 10, told)])


def test_a_month_is_counted_from_raw_counters(tmp_path: Path) -> None:
    """Two days of a tenth of a per cent in thirty days leave a good part of the budget."""
    day, step = 1440, 360
    given = [
        *objectives(30 * day, step),
        pod(30 * day, interval=step),
        requests("200", growing((1000, 20 * day), (985, 2 * day), (1000, 8 * day), interval=step)),
        requests("500", growing((0, 20 * day), (15, 2 * day), (0, 8 * day), interval=step)),
    ]
    available, left = "deployment:cloze_availability:ratio30d", "deployment:cloze_error_budget_left:ratio30d"
    told = series("", **ME, source="server")
    examine(
        tmp_path,
        [available, left],
        given,
        step,
        promql_expr_test=[
            expectation(f"round({available}, 0.0001)", 30 * day, (told, 0.999)),
            expectation(f"round({left}, 0.01)", 30 * day, (told, 0.0)),
        ],
    )


def test_a_deployment_that_is_gone_has_no_alert(tmp_path: Path) -> None:
    """Its objectives went with it, whatever its counters say of the last hours."""
    minutes = 60
    bad = [pod(minutes), requests("500", growing((100, minutes))), requests("200", growing((100, minutes)))]
    gone = [(name, f"{values.split('x')[0]}x30 stale") for name, values in objectives(minutes)]
    query = 'ALERTS{alertname=~"Cloze.*Burn"}'
    names = ["ClozeErrorBudgetBurn", "ClozeLatencyBudgetBurn"]
    examine(tmp_path, names, [*gone, *bad], 1, promql_expr_test=[expectation(query, minutes)])
