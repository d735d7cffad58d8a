"""What a cluster has beside Kubernetes itself: the Gateway API, resource metrics, Prometheus and Alertmanager."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

from . import gateway, monitoring, resource_metrics
from .client import Client, wait
from .console import say
from .settings import Settings
from .tools import Builds

_SECONDS = 90


@dataclass(frozen=True, slots=True)
class Addon:
    """One of them: whether it serves, where, and what says why not."""

    name: str
    ready: Callable[[], bool]
    address: str
    log: str

    def failure(self) -> str:
        return f"{self.name}: not ready, see {self.log}"


def known(settings: Settings, kubectl: Client) -> list[Addon]:
    """All add-ons of a cluster, those first that others may have to wait for."""
    logs = settings.home / "log"
    metrics_log, prometheus_log, alertmanager_log = (
        str(logs / f"{daemon}.log") for daemon in ("metrics-server", "prometheus", "alertmanager")
    )
    traefik_log = f"`kubectl --namespace {gateway.NAMESPACE} logs deployment/{gateway.CONTROLLER}`"
    prometheus, alertmanager = settings.prometheus_url, settings.alertmanager_url
    return [
        Addon("kubectl top", lambda: resource_metrics.ready(kubectl), resource_metrics.API, metrics_log),
        Addon("queries", lambda: monitoring.ready(prometheus), prometheus, prometheus_log),
        Addon("alerts", lambda: monitoring.ready(alertmanager), alertmanager, alertmanager_log),
        Addon("gateway", lambda: gateway.ready(kubectl), settings.gateway_url, traefik_log),
    ]


def install(settings: Settings, kubectl: Client, builds: Builds) -> None:
    """Apply all objects of all add-ons; their pods start once there is a node."""
    authority = base64.b64encode((settings.home / "pki" / "ca.crt").read_bytes()).decode()
    definitions = gateway.definitions(builds.traefik)
    if not gateway.defined(kubectl, definitions):
        kubectl.apply_files(definitions)
    kubectl.apply(
        [
            *resource_metrics.objects(settings, authority),
            *monitoring.objects(settings),
            *gateway.objects(settings, gateway.image(builds.traefik)),
        ]
    )


def wait_for_all(settings: Settings, kubectl: Client) -> None:
    for addon in known(settings, kubectl):
        say(f"  waiting for {addon.name}")
        wait(addon.ready, _SECONDS, addon.failure)
