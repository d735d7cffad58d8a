"""The chart as Helm renders it."""

import functools
import subprocess
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "cloze"


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["helm", *arguments], capture_output=True, text=True, check=False)


@functools.cache
def rendered(*values: str) -> str:
    flags = [flag for value in values for flag in ("--set-json", value)]
    done = helm("template", "cloze", str(CHART), "--namespace", "cloze-system", "--kube-version", "1.31.0", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(*values: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(rendered(*values)) if document]


def render_monitoring(*values: str) -> list[dict[str, Any]]:
    """What the chart renders for a cluster that has the Prometheus Operator's definitions."""
    flags = [flag for value in values for flag in ("--set-json", value)]
    cluster = ("--kube-version", "1.31.0", "--api-versions", "monitoring.coreos.com/v1")
    done = helm("template", "cloze", str(CHART), "--namespace", "cloze-system", *cluster, *flags)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def pod_specs(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the Deployments, and of the pod of `helm test`."""
    deployments = [document["spec"]["template"]["spec"] for document in documents if document["kind"] == "Deployment"]
    return deployments + [document["spec"] for document in documents if document["kind"] == "Pod"]


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]
