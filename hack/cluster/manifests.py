"""Objects of the same form that several parts of the cluster need: what a user may do, and a daemon's service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .settings import Settings

Manifest = dict[str, Any]

_RBAC = "rbac.authorization.k8s.io"


def rule(group: str, resources: Sequence[str], verbs: Sequence[str]) -> Manifest:
    return {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}


def rights(name: str, rules: Sequence[Manifest], account: tuple[str, str] | None = None) -> list[Manifest]:
    """A ClusterRole and its binding, to the user of that name or to the ServiceAccount (namespace, name)."""
    role = {"apiVersion": f"{_RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": list(rules)}
    return [role, bound(name, "ClusterRole", name, account=account)]


def bound(user: str, kind: str, role: str, *, namespace: str = "", account: tuple[str, str] | None = None) -> Manifest:
    """A binding of `role` to a user or ServiceAccount; with `namespace`, for that namespace alone."""
    subject: Manifest = {"apiGroup": _RBAC, "kind": "User", "name": user}
    if account:
        subject = {"kind": "ServiceAccount", "namespace": account[0], "name": account[1]}
    name = user if role == user else f"{user}:{role}"
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "RoleBinding" if namespace else "ClusterRoleBinding",
        "metadata": {"name": name, "namespace": namespace} if namespace else {"name": name},
        "roleRef": {"apiGroup": _RBAC, "kind": kind, "name": role},
        "subjects": [subject],
    }


def namespace(name: str, **labels: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def node_service(
    settings: Settings, name: str, namespace: str, ports: Sequence[tuple[str, str, int]]
) -> tuple[Manifest, Manifest]:
    """The service of a daemon of the node, which no selector finds, and its one endpoint: name, protocol and number."""
    meta = {"name": name, "namespace": namespace}
    listed = [{"name": port, "protocol": protocol, "port": number} for port, protocol, number in ports]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": listed}}
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**meta, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [str(settings.node_address)], "conditions": {"ready": True}}],
        "ports": listed,
    }
    return service, endpoints
