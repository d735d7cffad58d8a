"""Prometheus and Alertmanager as daemons of the node: what they scrape, where they are, and the files they read."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import manifests, node, state
from .console import ClusterError
from .settings import Settings

USER = "cloze:prometheus"
NAMESPACE = "monitoring"
DATA = ("/var/lib/prometheus", "/var/lib/alertmanager")
_CADVISOR_SECONDS = 15
# What containers use of a machine; the rest of cAdvisor's hundred metrics would be most of what is stored.
_CADVISOR_METRICS = "container_(cpu_usage_seconds_total|cpu_cfs_.*_total|memory_working_set_bytes|oom_events_total)"
_META = "__meta_kubernetes_pod"
_ANNOTATION = f"{_META}_annotation_prometheus_io"


def prometheus(settings: Settings, etc: str) -> list[str]:
    """Its arguments; days of history or gigabytes would outlive what a local cluster is for."""
    return [
        f"--config.file={etc}/prometheus.json",
        f"--storage.tsdb.path={DATA[0]}",
        "--storage.tsdb.retention.time=24h",
        "--storage.tsdb.retention.size=1GB",
        f"--web.listen-address={settings.node_address}:{settings.prometheus_port}",
        f"--web.external-url={settings.prometheus_url}",
        "--web.enable-lifecycle",
        "--log.level=warn",
    ]


def alertmanager(settings: Settings, etc: str) -> list[str]:
    return [
        f"--config.file={etc}/alertmanager.yaml",
        f"--storage.path={DATA[1]}",
        "--data.retention=24h",
        f"--web.listen-address={settings.node_address}:{settings.alertmanager_port}",
        f"--web.external-url={settings.alertmanager_url}",
        # There is one, and no other to gossip with.
        "--cluster.listen-address=",
        "--log.level=warn",
    ]


def write(settings: Settings, folder: Path, etc: str, keys: str) -> None:
    """Write what both read from `folder`, where the node has it at `etc`; a person's own alerting stays."""
    (folder / "rules").mkdir(exist_ok=True)
    (folder / "prometheus.json").write_text(json.dumps(_configuration(settings, etc, keys), indent=2) + "\n")
    alerting = folder / "alertmanager.yaml"
    if not alerting.exists():
        alerting.write_text(json.dumps(_ALERTING, indent=2) + "\n")


def objects(settings: Settings) -> list[dict[str, Any]]:
    return [
        manifests.namespace(NAMESPACE),
        *manifests.node_service(settings, "prometheus", NAMESPACE, [("http", "TCP", settings.prometheus_port)]),
        *manifests.node_service(settings, "alertmanager", NAMESPACE, [("http", "TCP", settings.alertmanager_port)]),
        *manifests.rights(
            USER,
            [
                manifests.rule("", ["pods", "nodes"], ["get", "list", "watch"]),
                manifests.rule("", ["nodes/metrics"], ["get"]),
            ],
        ),
    ]


def ready(url: str) -> bool:
    return node.reachable(f"{url}/-/ready")


def install_rules(settings: Settings, files: Sequence[Path]) -> None:
    """Let Prometheus evaluate these rule files beside those of other names; a bad one among them changes nothing."""
    names = [file.with_suffix(".yaml").name for file in files]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ClusterError(f"two rule files have the name {doubled[0]}: rename one")
    for file in files:
        _check([str(settings.home / "bin" / "promtool"), "check", "rules"], file)
    for file, name in zip(files, names, strict=True):
        state.write(_rules(settings) / name, file.read_text())
    _reload(settings.prometheus_url)


def remove_rules(settings: Settings, files: Sequence[Path]) -> None:
    """Let Prometheus forget the rule files of these names."""
    for file in files:
        (_rules(settings) / file.with_suffix(".yaml").name).unlink(missing_ok=True)
    _reload(settings.prometheus_url)


def install_alerting(settings: Settings, file: Path) -> None:
    """Let Alertmanager work by this configuration; one that it would refuse changes nothing."""
    _check(["amtool", "check-config"], file)
    state.write(settings.home / "etc" / "alertmanager.yaml", file.read_text())
    _reload(settings.alertmanager_url)


def _rules(settings: Settings) -> Path:
    return settings.home / "etc" / "rules"


def _check(command: list[str], file: Path) -> None:
    if not file.is_file():
        raise ClusterError(f"{file} is not a file")
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{file} is refused by `{' '.join(command)}`:\n{(done.stderr or done.stdout).strip()}")


def _reload(url: str) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        direct.open(urllib.request.Request(f"{url}/-/reload", method="POST"), timeout=30).close()  # noqa: S310 - ours
    except urllib.error.HTTPError as error:
        raise ClusterError(f"{url} did not take its new files: {error.read().decode().strip()}") from error
    except OSError as error:
        raise ClusterError(f"{url} did not reload its files: {error}") from error


# Nobody is told until a person says who; the pages at the address show what fires.
_ALERTING: dict[str, Any] = {
    "route": {
        "receiver": "nobody",
        "group_by": ["alertname", "namespace"],
        "group_wait": "5s",
        "group_interval": "30s",
        "repeat_interval": "4h",
    },
    "receivers": [{"name": "nobody"}],
}


def _configuration(settings: Settings, etc: str, keys: str) -> dict[str, Any]:
    alertmanager_target = f"{settings.node_address}:{settings.alertmanager_port}"
    every = f"{settings.scrape_seconds}s"
    return {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": [f"{etc}/rules/*.yaml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager_target]}]}]},
        "scrape_configs": [_pods(etc), _cadvisor(etc, keys)],
    }


def _pods(etc: str) -> dict[str, Any]:
    """Every running pod with the annotations that most charts know: scrape, port and path."""
    return {
        "job_name": "pods",
        # The operator tells of resources in other namespaces than its own.
        "honor_labels": True,
        "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": f"{etc}/prometheus.kubeconfig"}],
        "relabel_configs": [
            {"source_labels": [f"{_ANNOTATION}_scrape"], "regex": "true", "action": "keep"},
            {"source_labels": [f"{_META}_phase"], "regex": "Running", "action": "keep"},
            # One target for each declared port; the annotation says which, and so which container it is.
            {
                "source_labels": [f"{_ANNOTATION}_port"],
                "target_label": f"{_META}_container_port_number",
                "action": "keepequal",
            },
            {"source_labels": [f"{_ANNOTATION}_path"], "regex": "(.+)", "target_label": "__metrics_path__"},
            {"source_labels": [f"{_META}_container_name"], "target_label": "container"},
            {"source_labels": [f"{_META}_name"], "target_label": "pod"},
            {"source_labels": [f"{_META}_node_name"], "target_label": "node"},
            {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        ],
    }


def _cadvisor(etc: str, keys: str) -> dict[str, Any]:
    every = f"{_CADVISOR_SECONDS}s"
    return {
        "job_name": "cadvisor",
        "scheme": "https",
        "metrics_path": "/metrics/cadvisor",
        "scrape_interval": every,
        "scrape_timeout": every,
        "tls_config": {
            "ca_file": f"{keys}/ca.crt",
            "cert_file": f"{keys}/prometheus.crt",
            "key_file": f"{keys}/prometheus.key",
        },
        # Its namespaces and pods are those that it measures.
        "honor_labels": True,
        "kubernetes_sd_configs": [{"role": "node", "kubeconfig_file": f"{etc}/prometheus.kubeconfig"}],
        "relabel_configs": [{"source_labels": ["__meta_kubernetes_node_name"], "target_label": "node"}],
        "metric_relabel_configs": [
            {"source_labels": ["__name__"], "regex": _CADVISOR_METRICS, "action": "keep"},
            {"source_labels": ["container"], "regex": "(POD)?", "action": "drop"},
            {"regex": "image|name|cpu", "action": "labeldrop"},
        ],
    }
