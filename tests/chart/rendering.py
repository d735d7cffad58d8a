"""The chart as Helm renders it."""

import functools
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "cloze"


class Loader(yaml.SafeLoader):
    """Takes 1e-06 for a number, as YAML 1.2 and Kubernetes do."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^-?\d+(\.\d*)?e[-+]?\d+$"), list("-0123456789"))


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["helm", *arguments], capture_output=True, text=True, check=False)


@functools.cache
def rendered(*values: str) -> str:
    flags = [flag for value in values for flag in ("--set-json", value)]
    done = helm("template", "cloze", str(CHART), "--namespace", "cloze-system", "--kube-version", "1.31.0", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(*values: str) -> list[dict[str, Any]]:
    return [document for document in yaml.load_all(rendered(*values), Loader) if document]


def render_monitoring(*values: str) -> list[dict[str, Any]]:
    """What the chart renders for a cluster that has the Prometheus Operator's definitions."""
    flags = [flag for value in values for flag in ("--set-json", value)]
    cluster = ("--kube-version", "1.31.0", "--api-versions", "monitoring.coreos.com/v1")
    done = helm("template", "cloze", str(CHART), "--namespace", "cloze-system", *cluster, *flags)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.load_all(done.stdout, Loader) if document]


def pod_specs(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the Deployments, and of the pod of `helm test`."""
    deployments = [document["spec"]["template"]["spec"] for document in documents if document["kind"] == "Deployment"]
    return deployments + [document["spec"] for document in documents if document["kind"] == "Pod"]


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]
