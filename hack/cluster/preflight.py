"""What has to be true before anything starts; every problem is one sentence that says what to do."""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from . import cgroup, golang, network, packages, registry, tools
from .console import size
from .settings import Settings

GIB = 1024**3
# Measured: Go's module cache 3.9, its build cache 6.9, the binaries 1.1, and room for linking.
FRESH_BUILD_BYTES = 13 * GIB
# The kubelet evicts pods when less than 2 GiB are left; images and volumes need some too.
RUN_BYTES = 4 * GIB
MEMORY_BYTES = 2 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What this machine offers."""

    root: bool
    linux: bool
    free_bytes: int
    memory_bytes: int
    built: bool
    go: Path | None
    pip: bool
    missing_packages: list[str]
    apt: bool
    registry_port_free: bool
    registry_elsewhere: int | None
    nameservers: list[str]
    foreign: list[str]
    networks: list[tuple[IPv4Network, str]]


def gather(settings: Settings) -> Facts:
    settings.cache.mkdir(parents=True, exist_ok=True)
    return Facts(
        root=os.geteuid() == 0,
        linux=Path("/proc/self/ns/net").exists(),
        free_bytes=shutil.disk_usage(settings.cache).free,
        memory_bytes=_available_memory(),
        built=not tools.missing(settings.cache),
        go=golang.find(settings.cache),
        pip=golang.has_pip(),
        missing_packages=packages.missing(),
        apt=shutil.which("apt-get") is not None,
        registry_port_free=_registry_port_free(settings),
        registry_elsewhere=_registry_elsewhere(settings),
        nameservers=network.nameservers(),
        foreign=_foreign(settings),
        networks=network.networks_in_use(except_link=settings.link),
    )


def problems(facts: Facts, settings: Settings) -> list[str]:
    """Every reason not to start, in the order in which a person would mend them."""
    found = []
    if not facts.linux:
        return [
            "Network namespaces are missing: the local cluster needs Linux, so set CLOZE_KUBECONFIG to another one."
        ]
    if not facts.root:
        found.append("Root is missing: run this as root (namespaces, mounts), or set CLOZE_KUBECONFIG to a cluster.")
    needed = RUN_BYTES + (0 if facts.built else FRESH_BUILD_BYTES)
    if facts.free_bytes < needed:
        purpose = "to run" if facts.built else "to build and run"
        found.append(
            f"Disk space is missing: {size(needed)} are needed {purpose} and {size(facts.free_bytes)} are free "
            f"on the disk of {settings.cache}; `prune` deletes unused builds and pulled images, and "
            "`prune --state` the objects and volumes of clusters that are down."
        )
    if facts.memory_bytes < MEMORY_BYTES:
        found.append(
            f"Memory is missing: {size(MEMORY_BYTES)} are needed and {size(facts.memory_bytes)} are available."
        )
    if facts.missing_packages and not facts.apt:
        names = ", ".join(facts.missing_packages)
        found.append(f"Programs are missing that Debian packages as {names}, and there is no apt-get to install them.")
    if not facts.built and facts.go is None and not facts.pip:
        found.append(
            "Go is missing, and pip, which could fetch it: `apt-get install python3-pip`, or install Go 1.21+."
        )
    if not facts.registry_port_free:
        found.append(
            f"Port {settings.registry_port} on 127.0.0.1 is taken by another program: "
            "set CLOZE_REGISTRY_PORT to a free one."
        )
    if facts.registry_elsewhere:
        found.append(
            f"The image registry, one for all clusters, runs on port {facts.registry_elsewhere} and not "
            f"{settings.registry_port}: set CLOZE_REGISTRY_PORT to {facts.registry_elsewhere}, or stop what uses it "
            "(`down` for each cluster, then `registry down`)."
        )
    found += facts.foreign
    for variable, wanted in (("CLOZE_POD_CIDR", settings.pod_cidr), ("CLOZE_SERVICE_CIDR", settings.service_cidr)):
        for used, device in facts.networks:
            if wanted.overlaps(used):
                found.append(f"Network {wanted} overlaps {used} on {device}: set {variable} to a free network.")
    for used, device in facts.networks:
        if settings.link_cidr.overlaps(used):
            found.append(
                f"Network {settings.link_cidr}, the link to the node, overlaps {used} on {device}: "
                "free it, or run `reset`, after which the cluster gets other networks."
            )
    return found


def notices(facts: Facts) -> list[str]:
    """What a person should know, though the cluster starts all the same."""
    nobody = (
        "No name server of this machine can be reached by pods (an IPv4 address that is not on loopback, in "
        "/etc/resolv.conf): they will find each other by name, but not the world."
    )
    return [] if facts.nameservers else [nobody]


def _foreign(settings: Settings) -> list[str]:
    """What stands where the parts of this cluster, which is down, will be, and is not its own leftover."""
    unknown = not (settings.home / "cluster.json").exists()
    found = []
    if network.taken_by_another(settings):
        found.append((f"Link {settings.link}", f"ip link delete {settings.link}"))
    if unknown and network.has_table(settings):
        found.append((f"Firewall table {settings.firewall_table}", f"nft delete table ip {settings.firewall_table}"))
    if (unknown and cgroup.exists(settings.cgroup)) or cgroup.occupied(settings.cgroup):
        removal = f"find /sys/fs/cgroup -depth -type d -regex '.*/{settings.cgroup}\\(/.*\\)?' -delete"
        found.append((f"Control group {settings.cgroup}", removal))
    return [
        f"{part} is there and not of a cluster that {settings.cache} knows: stop that cluster from the HOME that "
        f"started it, or set CLOZE_CLUSTER to another name; what nobody uses any more goes with `{removal}`."
        for part, removal in found
    ]


def _registry_elsewhere(settings: Settings) -> int | None:
    running = registry.port(settings.cache)
    return None if running == settings.registry_port else running


def _registry_port_free(settings: Settings) -> bool:
    if registry.port(settings.cache):
        return True
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", settings.registry_port))
        except OSError:
            return False
    return True


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
