"""Names, networks and ports of one cluster, derived from its name and the environment.

Every cluster gets a slot, and the slot its networks, all inside 198.18.0.0/15: that block is set aside for
benchmarks (RFC 2544), so it clashes with nobody's LAN or VPN.

    slot k:  pods      198.18.(16k).0/20
             services  198.19.(8k).0/21
             link      198.19.255.(4k)/30   (.1 is this machine, .2 is the node)
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from . import state
from .console import ClusterError

SLOTS = 16
DEFAULT_NAME = "cloze"
DEFAULT_PORT_BASE = 6443
DEFAULT_REGISTRY_PORT = 5055
DEFAULT_SCRAPE_SECONDS = 2
_RECORDED = frozenset({"slot", "pod_cidr", "service_cidr", "port_base"})

_PODS = list(IPv4Network("198.18.0.0/16").subnets(new_prefix=20))
_SERVICES = list(IPv4Network("198.19.0.0/17").subnets(new_prefix=21))
_LINKS = list(IPv4Network("198.19.255.0/26").subnets(new_prefix=30))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything about a cluster that its parts have to agree on."""

    name: str
    slot: int
    pod_cidr: IPv4Network
    service_cidr: IPv4Network
    port_base: int
    registry_port: int
    scrape_seconds: int
    cache: Path

    @property
    def home(self) -> Path:
        """The cluster's folder; nothing of the cluster is kept elsewhere."""
        return self.cache / "clusters" / self.name

    @property
    def kubeconfig(self) -> Path:
        return self.home / "kubeconfig"

    @property
    def link(self) -> str:
        """This machine's end of the wire to the node; interface names end at 15 characters."""
        return f"cloze{self.slot}"

    @property
    def link_cidr(self) -> IPv4Network:
        return _LINKS[self.slot]

    @property
    def gateway(self) -> IPv4Address:
        return self.link_cidr[1]

    @property
    def node_address(self) -> IPv4Address:
        return self.link_cidr[2]

    @property
    def node_name(self) -> str:
        return f"{self.name}-node"

    @property
    def cgroup(self) -> str:
        return f"cloze-{self.name}"

    @property
    def firewall_table(self) -> str:
        return f"cloze_{self.name.replace('-', '_')}"

    @property
    def api_service(self) -> IPv4Address:
        return self.service_cidr[1]

    @property
    def dns_service(self) -> IPv4Address:
        return self.service_cidr[10]

    @property
    def gateway_service(self) -> IPv4Address:
        return self.service_cidr[11]

    @property
    def gateway_url(self) -> str:
        return f"http://{self.gateway_service}"

    @property
    def prometheus_port(self) -> int:
        return 9090

    @property
    def prometheus_url(self) -> str:
        return f"http://{self.node_address}:{self.prometheus_port}"

    @property
    def alertmanager_port(self) -> int:
        return 9093

    @property
    def alertmanager_url(self) -> str:
        return f"http://{self.node_address}:{self.alertmanager_port}"

    @property
    def api_port(self) -> int:
        return self.port_base

    @property
    def etcd_port(self) -> int:
        return self.port_base + 1

    @property
    def etcd_peer_port(self) -> int:
        return self.port_base + 2

    @property
    def api_url(self) -> str:
        return f"https://{self.node_address}:{self.api_port}"

    @property
    def registry(self) -> str:
        """The registry's name in image references, the same for a push and inside the cluster."""
        return f"localhost:{self.registry_port}"

    def record(self) -> dict[str, Any]:
        """What has to stay the same for as long as the cluster's state is kept."""
        return {
            "slot": self.slot,
            "pod_cidr": str(self.pod_cidr),
            "service_cidr": str(self.service_cidr),
            "port_base": self.port_base,
            "registry_port": self.registry_port,
        }


def cache_folder() -> Path:
    return Path.home() / ".cache" / "cloze"


def external_kubeconfig(env: Mapping[str, str]) -> Path | None:
    """The kubeconfig of a cluster that is not ours, when `CLOZE_KUBECONFIG` names one."""
    value = env.get("CLOZE_KUBECONFIG", "")
    return Path(value).expanduser() if value else None


def cluster_name(env: Mapping[str, str], given: str | None) -> str:
    name = given or env.get("CLOZE_CLUSTER") or DEFAULT_NAME
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", name):
        raise ClusterError(
            f"the cluster's name {name!r} must be lower-case letters, digits and dashes, at most 32, "
            "beginning and ending with a letter or digit"
        )
    return name


def recorded(cache: Path, name: str) -> dict[str, Any] | None:
    """The record of an existing cluster, or None when it was never created."""
    path = cache / "clusters" / name / "cluster.json"
    try:
        found = state.read(path)
    except ValueError:
        found = {}
    if found is not None and not found.keys() >= _RECORDED:
        raise ClusterError(f"{path} is damaged: start this cluster over with `reset --name {name}`")
    return found


def slots_held(cache: Path) -> dict[str, int]:
    """The slot of every cluster that has a readable record; a damaged one must not stop the others."""
    held = {}
    for path in sorted((cache / "clusters").glob("*/cluster.json")):
        with contextlib.suppress(ClusterError):
            if record := recorded(cache, path.parent.name):
                held[path.parent.name] = int(record["slot"])
    return held


def free_slot(held: Iterable[int], networks_in_use: Iterable[IPv4Network]) -> int:
    """The lowest slot that no cluster holds and whose networks no route of this machine touches."""
    taken = set(held)
    in_use = list(networks_in_use)
    for slot in range(SLOTS):
        wanted = (_PODS[slot], _SERVICES[slot], _LINKS[slot])
        if slot not in taken and not any(net.overlaps(used) for net in wanted for used in in_use):
            return slot
    raise ClusterError(f"all {SLOTS} cluster slots are taken: remove a cluster with `reset`, or run `prune`")


def derive(env: Mapping[str, str], name: str, slot: int, cache: Path) -> Settings:
    """The settings of a cluster in `slot`; the environment overrides what the slot implies."""
    settings = Settings(
        name=name,
        slot=slot,
        pod_cidr=_network(env, "CLOZE_POD_CIDR", _PODS[slot], 24),
        service_cidr=_network(env, "CLOZE_SERVICE_CIDR", _SERVICES[slot], 27),
        port_base=_port(env, "CLOZE_CLUSTER_PORT_BASE", DEFAULT_PORT_BASE),
        registry_port=_port(env, "CLOZE_REGISTRY_PORT", DEFAULT_REGISTRY_PORT),
        scrape_seconds=_scrape_seconds(env),
        cache=cache,
    )
    for (variable, network), (other, taken) in (
        (("CLOZE_POD_CIDR", settings.pod_cidr), ("CLOZE_SERVICE_CIDR", settings.service_cidr)),
        (("CLOZE_POD_CIDR", settings.pod_cidr), ("the link to the node,", settings.link_cidr)),
        (("CLOZE_SERVICE_CIDR", settings.service_cidr), ("the link to the node,", settings.link_cidr)),
    ):
        if network.overlaps(taken):
            raise ClusterError(f"{variable} {network} and {other} {taken} overlap: set {variable} to another network")
    return settings


def restore(env: Mapping[str, str], name: str, record: Mapping[str, Any], cache: Path) -> Settings:
    """The settings of a cluster that exists; the environment may repeat them but not change them."""
    asked = derive(env, name, record["slot"], cache)
    kept = Settings(
        name=name,
        slot=record["slot"],
        pod_cidr=IPv4Network(record["pod_cidr"]),
        service_cidr=IPv4Network(record["service_cidr"]),
        port_base=record["port_base"],
        # Records of before this port was one of them leave it to the environment.
        registry_port=record.get("registry_port", asked.registry_port),
        # Not recorded: each start may have another.
        scrape_seconds=asked.scrape_seconds,
        cache=cache,
    )
    for variable, now, then in (
        ("CLOZE_POD_CIDR", asked.pod_cidr, kept.pod_cidr),
        ("CLOZE_SERVICE_CIDR", asked.service_cidr, kept.service_cidr),
        ("CLOZE_CLUSTER_PORT_BASE", asked.port_base, kept.port_base),
        ("CLOZE_REGISTRY_PORT", asked.registry_port, kept.registry_port),
    ):
        if env.get(variable) and now != then:
            raise ClusterError(
                f"cluster {name!r} was created with {then}, but {variable} says {now}: "
                f"unset it, or start over with `reset`"
            )
    return kept


def leftover(cache: Path, name: str) -> Settings:
    """The settings of a cluster that is to be removed: what the environment says does not matter any more.

    Without a readable record its slot is unknown. Any will do, since only a link that bears its mark is touched.
    """
    try:
        record = recorded(cache, name)
    except ClusterError:
        record = None
    return derive({}, name, 0, cache) if record is None else restore({}, name, record, cache)


def _network(env: Mapping[str, str], variable: str, default: IPv4Network, longest: int) -> IPv4Network:
    try:
        network = IPv4Network(env[variable]) if env.get(variable) else default
    except ValueError as error:
        raise ClusterError(f"{variable} is not an IPv4 network: {error}") from error
    if network.prefixlen > longest:
        raise ClusterError(f"{variable} {network} is too small: give at least a /{longest}")
    return network


def _scrape_seconds(env: Mapping[str, str]) -> int:
    value = env.get("CLOZE_SCRAPE_SECONDS") or str(DEFAULT_SCRAPE_SECONDS)
    if not value.isdigit() or not 1 <= int(value) <= 60:
        raise ClusterError(f"CLOZE_SCRAPE_SECONDS must be a whole number of seconds from 1 to 60, not {value!r}")
    return int(value)


def _port(env: Mapping[str, str], variable: str, default: int) -> int:
    value = env.get(variable) or str(default)
    if not value.isdigit() or not 1024 <= int(value) <= 60000:
        raise ClusterError(f"{variable} must be a port between 1024 and 60000, not {value!r}")
    return int(value)
