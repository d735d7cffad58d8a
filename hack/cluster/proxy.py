"""The environment's HTTP proxies, and what must not go through them: everything of the cluster is on this machine."""

from __future__ import annotations

from collections.abc import Mapping

from .settings import Settings

_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})


def variables(settings: Settings, env: Mapping[str, str]) -> dict[str, str]:
    """The proxies of `env` with the cluster excepted from them, for a daemon that has no environment of its own."""
    return {name: value for name, value in env.items() if name.lower() in _PROXIES} | exceptions(settings, env)


def exceptions(settings: Settings, env: Mapping[str, str]) -> dict[str, str]:
    """`no_proxy` in both spellings, extended by the cluster's networks; nothing where no proxy is set."""
    if not any(value for name, value in env.items() if name.lower() in _PROXIES):
        return {}
    given = env.get("no_proxy") or env.get("NO_PROXY") or ""
    extended = given if given.strip() == "*" else _extended(given, settings)
    return {"no_proxy": extended, "NO_PROXY": extended}


def _extended(given: str, settings: Settings) -> str:
    names = [name.strip() for name in given.split(",") if name.strip()]
    networks = [settings.link_cidr, settings.pod_cidr, settings.service_cidr]
    # What `env` names by its address too: not every client, Python's among them, understands a network here.
    addresses = [str(settings.node_address), str(settings.gateway_service)]
    ours = ["127.0.0.1", "localhost", ".svc", ".cluster.local", *addresses, *map(str, networks)]
    return ",".join(dict.fromkeys([*names, *ours]))
