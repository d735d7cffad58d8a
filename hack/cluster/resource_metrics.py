"""metrics-server as a daemon of the node, behind the API that `kubectl top` and autoscalers ask."""

from __future__ import annotations

from typing import Any

from . import manifests
from .client import Client
from .settings import Settings

USER = "cloze:metrics"
NAME = "metrics-server"
NAMESPACE = "kube-system"
_PORT = 10260
_GROUP = "metrics.k8s.io"
_VERSION = "v1beta1"
API = f"{_VERSION}.{_GROUP}"
# The shortest that it takes; autoscalers look every 15 seconds.
_RESOLUTION = "10s"


def arguments(etc: str, keys: str) -> list[str]:
    kubeconfig = f"{etc}/metrics.kubeconfig"
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--secure-port={_PORT}",
        f"--tls-cert-file={keys}/metrics-server.crt",
        f"--tls-private-key-file={keys}/metrics-server.key",
        f"--kubelet-certificate-authority={keys}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        f"--metric-resolution={_RESOLUTION}",
        # Shorter than that, or it refuses to start.
        "--kubelet-request-timeout=5s",
    ]


def objects(settings: Settings, authority: str) -> list[dict[str, Any]]:
    """All that registers it; `authority` is what signed its certificate, in base64."""
    return [
        *manifests.node_service(settings, NAME, NAMESPACE, [("https", "TCP", _PORT)]),
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": API},
            "spec": {
                "service": {"name": NAME, "namespace": NAMESPACE, "port": _PORT},
                "group": _GROUP,
                "version": _VERSION,
                "caBundle": authority,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        },
        *manifests.rights(
            USER,
            [
                manifests.rule("", ["nodes/metrics"], ["get"]),
                manifests.rule("", ["pods", "nodes", "namespaces"], ["get", "list", "watch"]),
            ],
        ),
        # Whoever asks through the API server is asked about there.
        manifests.bound(USER, "ClusterRole", "system:auth-delegator"),
        manifests.bound(USER, "Role", "extension-apiserver-authentication-reader", namespace=NAMESPACE),
        # People who may look at a namespace may look at what its pods use.
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {
                "name": "cloze:metrics-reader",
                "labels": {
                    f"rbac.authorization.k8s.io/aggregate-to-{role}": "true" for role in ("view", "edit", "admin")
                },
            },
            "rules": [manifests.rule(_GROUP, ["pods", "nodes"], ["get", "list", "watch"])],
        },
    ]


def ready(kubectl: Client) -> bool:
    path = '{.status.conditions[?(@.type=="Available")].status}'
    return kubectl.try_run("get", "apiservice", API, f"--output=jsonpath={path}") == (True, "True")
