"""The dashboards' JSON: what Grafana needs, what people need, and only metrics that somebody exports."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "hack")]

from monitoring import answers, files  # noqa: E402 - tests and hack/ are no packages
from programs import program  # noqa: E402

from cloze_api import metrics  # noqa: E402

FILES = sorted((ROOT / "charts" / "cloze" / "files" / "dashboards").glob("*.json"))
DASHBOARDS: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES}
RULES = [rule for groups in files.rules().values() for group in groups for rule in group["rules"]]

#: Of the client library in each process, of Traefik, of Prometheus itself, and of NVIDIA's exporter.
FOREIGN = {
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "traefik_router_requests_total",
    "ALERTS",
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_FB_USED",
}
#: Panels that no machine without accelerators has data for.
ACCELERATORS = {"Accelerator use", "Accelerator memory"}
# Of what servers do only where they are told to.
OPTIONAL = ("cloze_segment_", "cloze_fallback_", "cloze_train_flops_")


def samples(metric: metrics.Metric) -> set[str]:
    match metric.kind:
        case "counter":
            return {f"{metric.name}_total"}
        case "histogram":
            return {f"{metric.name}_{part}" for part in ("bucket", "count", "sum")}
        case "info":
            return {f"{metric.name}_info"}
    return {metric.name}


def names(query: str) -> set[str]:
    """Metrics and records that a query reads."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]|\{[^}]*\}', " ", query)
    bare = re.sub(r"\b(by|on|without|ignoring|group_left|group_right) \([^)]*\)", " ", bare)
    return set(re.findall(r"\b(?:cloze_|deployment:|pod:|process_|traefik_|DCGM_|ALERTS\b)[\w:]*", bare))


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


ASKED = answers.questions(DASHBOARDS)


def test_committed_files_are_current() -> None:
    """Whoever changes the code and forgets `make generate` is told."""
    assert files.stale() == []


@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboard_works_in_any_grafana(name: str) -> None:
    """No data source of ours, no number twice, no panel over another, nothing that can be saved over."""
    dashboard = DASHBOARDS[name]
    assert dashboard["uid"] == f"cloze-{name}"
    assert dashboard["schemaVersion"] >= 39
    assert "id" not in dashboard
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert {"namespace"} <= variables.keys()
    assert max(Counter(panel["id"] for panel in dashboard["panels"]).values()) == 1
    assert set(re.findall(r'"uid": "([^"]+)"', json.dumps(dashboard))) == {
        dashboard["uid"],
        "${datasource}",
    }
    used = set(re.findall(r"\$(\w+)", json.dumps([panel.get("targets") for panel in dashboard["panels"]])))
    assert used - {"__rate_interval", "__range"} <= variables.keys()
    taken: Counter[tuple[int, int]] = Counter()
    for place in (panel["gridPos"] for panel in dashboard["panels"]):
        assert place["x"] + place["w"] <= 24
        taken.update(
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        )
    assert max(taken.values()) == 1


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panel_explains_itself(name: str) -> None:
    """A title, a sentence, a unit, and a legend where there may be more than one line."""
    found = panels(DASHBOARDS[name])
    assert max(Counter(panel["title"] for panel in found).values()) == 1
    for panel in found:
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["type"] == "table" or target["legendFormat"] != "__auto", panel["title"]


def test_rates_fit_any_scrape_interval() -> None:
    """A fixed range is empty where Prometheus scrapes less often."""
    for question in ASKED:
        assert set(re.findall(r"\[([^\]]+)\]", question.query)) <= {"$__rate_interval", "$__range"}, question


def test_only_what_is_exported_is_asked_for() -> None:
    """Each name is declared by Cloze, recorded by the rules, or a known stranger's."""
    known = {name for metric in metrics.ALL for name in samples(metric)} | FOREIGN
    known |= {rule["record"] for rule in RULES if "record" in rule}
    for query in [*(question.query for question in ASKED), *(rule["expr"] for rule in RULES)]:
        assert names(query), query
        assert names(query) <= known, query


def test_each_metric_is_looked_at() -> None:
    """One that no panel and no alert reads costs and helps nobody."""
    read = set().union(*(names(question.query) for question in ASKED), *(names(rule["expr"]) for rule in RULES))
    unread = {metric.name for metric in metrics.ALL if not samples(metric) & read}
    assert unread == set()


def test_only_what_not_everybody_has_is_exempt_from_having_data() -> None:
    """Accelerators, and what servers do on demand; each panel says so itself."""
    accelerators = {question for question in ASKED if "DCGM_" in question.query}
    assert {question.where.split(", ", 1)[1] for question in accelerators} == ACCELERATORS
    optional = {question for question in ASKED if any(prefix in question.query for prefix in OPTIONAL)}
    assert {question for question in ASKED if question.exempt} == accelerators | optional


@pytest.mark.cluster
def test_every_query_is_understood(tmp_path: Path) -> None:
    """By Prometheus' own parser."""
    queries = [answers.filled(question.query, 60, "1m") for question in ASKED]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
