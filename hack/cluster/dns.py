"""The objects that make the node's CoreDNS the cluster's: its service, its one endpoint and what it may read."""

from __future__ import annotations

from typing import Any

from . import manifests
from .settings import Settings

_USER = "cloze:coredns"
_NAME = "kube-dns"


def objects(settings: Settings) -> list[dict[str, Any]]:
    service, endpoints = manifests.node_service(
        settings, _NAME, "kube-system", [("dns", "UDP", 53), ("dns-tcp", "TCP", 53)]
    )
    service["metadata"]["labels"] = {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}
    service["spec"]["clusterIP"] = str(settings.dns_service)
    rules = [
        manifests.rule("", ["services", "pods", "namespaces"], ["list", "watch"]),
        manifests.rule("discovery.k8s.io", ["endpointslices"], ["list", "watch"]),
    ]
    return [service, endpoints, *manifests.rights(_USER, rules)]
