"""What the documents list is what the server does."""

import re
from pathlib import Path

import pytest

from cloze_api import metrics, serving
from cloze_server import bounds, main, paths
from cloze_server.exits import ExitCode
from cloze_server.flags import FLAGS
from cloze_server.lifecycle import Stage
from cloze_server.problems import TABLE, ProblemType
from cloze_server.settings import read

ROOT = Path(__file__).resolve().parents[2]
HTTP = (ROOT / "docs" / "http.md").read_text()
EXITS = (ROOT / "docs" / "exit-codes.md").read_text().partition("## Serving")[2]
NOT_READY = (ROOT / "docs" / "runbooks" / "deployment-not-ready.md").read_text()
SOURCES = [*(ROOT / "server" / "cloze_server").rglob("*.py"), ROOT / "crds" / "cloze_api" / "manifest.py"]


def test_every_problem_is_documented_with_its_status() -> None:
    """In the row of its status."""
    rows = re.findall(r"^\| ([0-9, ]+) \| (.*) \|$", HTTP, re.MULTILINE)
    documented = {kind: codes for codes, text in rows for kind in re.findall(r"`([a-z-]+)`", text)}
    for kind in ProblemType:
        assert str(TABLE[kind].status) in documented[kind], kind


def test_every_route_and_limit_is_documented() -> None:
    """With its number."""
    for path in (*paths.INFERENCE, paths.MODELS, paths.HEALTH, paths.READY, paths.METRICS, paths.SCHEMA):
        assert f"{path}`" in HTTP
    settings = read(["--model", "x"], {})
    for number in (
        *(serving.INPUTS_MAX, bounds.WORDS_MAX, bounds.PREDICTIONS_MAX),
        *(settings.max_inputs, settings.max_characters, settings.max_queue_tokens),
    ):
        assert f"{number:,}" in HTTP
    assert f"kept for {main.KEEP_ALIVE_SECONDS} s" in HTTP
    assert main.KEEP_ALIVE_SECONDS > 600, "the longest that a common load balancer keeps an idle connection"
    for option in re.findall(r"`(--[a-z-]+)", HTTP):
        assert option in {flag.option for flag in FLAGS} | {"--model", "--no-playground"}


def test_every_metric_is_documented_with_its_labels() -> None:
    """In a row of its own; those that all have are in the text."""
    rows = dict(re.findall(r"^\| `(cloze_[a-z_]+)` \|([^|]*)\|", HTTP, re.MULTILINE))
    declared = {
        metric.name + {"counter": "_total", "info": "_info"}.get(metric.kind, ""): set(metric.labels)
        for metric in metrics.ALL
        if {"model", "version"} <= set(metric.labels)
    }
    assert rows.keys() == declared.keys()
    for name, labels in declared.items():
        assert {"model", "version", *re.findall(r"`([a-z_]+)`", rows[name])} == labels, name
    below, above = ([each for each in metrics.OBJECTIVE_SECONDS if (each < 1) is short] for short in (True, False))
    milliseconds = ", ".join(f"{1000 * seconds:g}" for seconds in below)
    seconds = ", ".join(f"{seconds:g}" for seconds in above[:-1])
    assert f"{milliseconds} ms, {seconds} and {above[-1]:g} s" in " ".join(HTTP.split())


def test_every_reason_to_end_is_documented() -> None:
    """Reasons are found in the sources, where they are literals."""
    found = set()
    for source in SOURCES:
        text = source.read_text()
        found |= set(re.findall(r'(?:FatalError\(\s*ExitCode\.\w+|ArtifactError\(|_invalid\()[,\s]*"([A-Z]\w+)"', text))
    assert {"DigestMismatch", "GraphInvalid", "CacheUnusable", "RequestsAbandoned"} <= found
    assert {reason for reason in found if f"`{reason}`" not in EXITS} == set()


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_is_documented(code: ExitCode) -> None:
    """In a row of its own."""
    assert re.search(rf"^\| {code.value} \|", EXITS, re.MULTILINE)


def test_every_stage_is_in_the_runbook() -> None:
    """For who asks a server that isn't ready."""
    for stage in Stage:
        assert f"| `{stage}` |" in NOT_READY
