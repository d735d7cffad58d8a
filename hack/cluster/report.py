"""`status`: every part of a cluster in one table, and whether all of them are well."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from . import addons, cgroup, components, lifecycle, node, process, registry, storage
from .client import Client
from .console import duration, size
from .settings import Settings


@dataclass(frozen=True, slots=True)
class Part:
    """One row."""

    name: str
    well: bool
    detail: str


def parts(settings: Settings) -> list[Part]:
    """Every part of our own cluster; one that is down has one row only."""
    running = lifecycle.running(settings)
    if running is None:
        return [Part("node", False, "not running")]
    used = cgroup.memory(settings.cgroup)
    memory = f", its daemons use {size(used)}" if used else ""
    found = [Part("node", True, f"{settings.node_name}, up {duration(_age(running))}{memory}")]
    found += _daemons(settings)
    kubectl = lifecycle.client(settings)
    ready = kubectl.ready()
    found.append(Part("api", ready, settings.api_url))
    if ready:
        well = kubectl.node_ready(settings.node_name)
        found.append(Part("node Ready", well, f"kubelet {kubectl.version()}"))
        path = "{.metadata.annotations.storageclass\\.kubernetes\\.io/is-default-class}"
        marked = kubectl.try_run("get", "storageclass", storage.CLASS, f"--output=jsonpath={path}")
        found.append(Part("storage", marked == (True, "true"), f"class {storage.CLASS}, ReadWriteOnce and Many"))
    dns_up = node.reachable(f"http://{settings.node_address}:{components.DNS_READY_PORT}/ready")
    found.append(Part("dns", dns_up, str(settings.dns_service)))
    found += [Part(addon.name, ready and addon.ready(), addon.address) for addon in addons.known(settings, kubectl)]
    found.append(Part("registry", registry.answers(settings.registry_port), settings.registry))
    return found


def external_parts(kubeconfig: Path, kubectl: str | None) -> list[Part]:
    """A cluster that is not ours: all that is asked of it is to answer."""
    if not kubeconfig.exists():
        return [Part("api", False, f"CLOZE_KUBECONFIG names {kubeconfig}, which is not there")]
    if not kubectl:
        return [Part("api", False, "kubectl, with which the cluster of CLOZE_KUBECONFIG is asked, is not on PATH")]
    version = Client(kubectl, kubeconfig).version()
    return [Part("api", version is not None, f"{kubeconfig}: {version or 'does not answer'}")]


def table(name: str, rows: list[Part]) -> str:
    width = max(len(row.name) for row in rows)
    lines = [f"cluster {name}: {'healthy' if healthy(rows) else 'NOT healthy'}"]
    lines += [f"  {row.name:<{width}}  {'ok' if row.well else '--':<2}  {row.detail}".rstrip() for row in rows]
    return "\n".join(lines)


def healthy(rows: list[Part]) -> bool:
    return all(row.well for row in rows)


def _daemons(settings: Settings) -> list[Part]:
    try:
        units = json.loads((settings.home / "log" / "units.json").read_text())
    except FileNotFoundError:
        return [Part("daemons", False, "not started yet")]
    return [
        Part(unit["name"], unit["running"], f"restarted {unit['starts'] - 1} times" if unit["starts"] > 1 else "")
        for unit in units
    ]


def _age(identity: process.Identity) -> float:
    ticks = 100  # USER_HZ, the unit of start times in /proc, is 100 on every Linux that Kubernetes runs on
    return time.clock_gettime(time.CLOCK_BOOTTIME) - identity.started / ticks
