"""The Gateway API in the cluster: its definitions, Traefik as the controller in a pod, and one Gateway for all."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import manifests
from .client import Client
from .settings import Settings

NAMESPACE = "gateway"
CLASS = "traefik"
NAME = "cloze"
IMAGE = "cloze.local/traefik"
CONTROLLER = "traefik"
_METRICS_PORT = 9100
_GROUP = "gateway.networking.k8s.io"
_LABELS = {"app.kubernetes.io/name": CONTROLLER}
_READ = ["get", "list", "watch"]
_KINDS = ["gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants", "backendtlspolicies"]
# What Traefik's own manual asks for, without the kinds of the experimental channel.
_RULES = [
    manifests.rule("", ["namespaces"], ["list", "watch"]),
    manifests.rule("", ["services", "secrets", "configmaps"], _READ),
    manifests.rule("discovery.k8s.io", ["endpointslices"], ["list", "watch"]),
    manifests.rule(_GROUP, _KINDS, _READ),
    manifests.rule(_GROUP, [f"{kind}/status" for kind in _KINDS], ["update"]),
]


def image(build: Path) -> str:
    """The image's name for a build of Traefik; another build is another name."""
    return f"{IMAGE}:{build.name.rpartition('-')[2]}"


def definitions(build: Path) -> list[Path]:
    """The definitions of the Gateway API, as files: its standard channel in the version that Traefik was built with."""
    return sorted((build / "gateway-api").glob(f"{_GROUP}_*.yaml"))


def defined(kubectl: Client, files: Sequence[Path]) -> bool:
    """Whether the cluster has these definitions; applying them takes longer than all other objects together."""
    names = [f"{file.stem.removeprefix(f'{_GROUP}_')}.{_GROUP}" for file in files]
    done, text = kubectl.try_run("get", "customresourcedefinitions", *names, "--output=json")
    return done and [_version(json.dumps(item)) for item in json.loads(text)["items"]] == [
        _version(file.read_text()) for file in files
    ]


def _version(definition: str) -> str:
    """The release of the Gateway API that a definition says it is of, in YAML or JSON."""
    found = re.search(rf'{re.escape(_GROUP)}/bundle-version"?: "?(v[\w.-]+)', definition)
    return found[1] if found else ""


def objects(settings: Settings, image: str) -> list[dict[str, Any]]:
    return [
        manifests.namespace(NAMESPACE, **{"pod-security.kubernetes.io/enforce": "restricted"}),
        {
            "apiVersion": f"{_GROUP}/v1",
            "kind": "GatewayClass",
            "metadata": {"name": CLASS},
            "spec": {"controllerName": "traefik.io/gateway-controller"},
        },
        _gateway(),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": CONTROLLER, "namespace": NAMESPACE}},
        *manifests.rights("cloze:gateway", _RULES, account=(NAMESPACE, CONTROLLER)),
        _service(settings),
        _deployment(settings, image),
    ]


def ready(kubectl: Client) -> bool:
    """Whether Traefik of the present image serves, and has taken the Gateway on."""
    path = '{.status.conditions[?(@.type=="Programmed")].status}'
    if kubectl.try_run("get", "gateway", NAME, f"--namespace={NAMESPACE}", f"--output=jsonpath={path}") != (
        True,
        "True",
    ):
        return False
    done, text = kubectl.try_run("get", "deployment", CONTROLLER, f"--namespace={NAMESPACE}", "--output=json")
    if not done:
        return False
    deployment = json.loads(text)
    status = deployment["status"]
    counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")]
    return status.get("observedGeneration") == deployment["metadata"]["generation"] and counts == [1, 1, 1]


def _gateway() -> dict[str, Any]:
    return {
        "apiVersion": f"{_GROUP}/v1",
        "kind": "Gateway",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "gatewayClassName": CLASS,
            "listeners": [
                {"name": "http", "protocol": "HTTP", "port": 80, "allowedRoutes": {"namespaces": {"from": "All"}}}
            ],
        },
    }


def _service(settings: Settings) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": CONTROLLER, "namespace": NAMESPACE},
        "spec": {
            "clusterIP": str(settings.gateway_service),
            "selector": _LABELS,
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    }


def _arguments(settings: Settings) -> list[str]:
    return [
        "--global.checknewversion=false",
        "--global.sendanonymoususage=false",
        # Traefik finds the entry point of a listener by its port; in pods of this cluster anybody may bind to 80.
        "--entrypoints.http.address=:80",
        f"--entrypoints.metrics.address=:{_METRICS_PORT}",
        "--ping.entrypoint=metrics",
        "--metrics.prometheus.entrypoint=metrics",
        "--metrics.prometheus.addserviceslabels=true",
        "--metrics.prometheus.addrouterslabels=true",
        "--metrics.prometheus.buckets=0.005,0.01,0.025,0.05,0.1,0.25,0.5,1,2.5,5,10",
        "--providers.kubernetesgateway=true",
        f"--providers.kubernetesgateway.statusaddress.ip={settings.gateway_service}",
        # Two seconds by default: what follows a change so soon, a rollout's next weight say, would wait that long.
        "--providers.providersthrottleduration=200ms",
        "--log.level=WARN",
    ]


def _deployment(settings: Settings, image: str) -> dict[str, Any]:
    container = {
        "name": CONTROLLER,
        "image": image,
        "imagePullPolicy": "Never",
        "args": _arguments(settings),
        "ports": [{"name": "http", "containerPort": 80}, {"name": "metrics", "containerPort": _METRICS_PORT}],
        "readinessProbe": {"httpGet": {"path": "/ping", "port": "metrics"}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"path": "/ping", "port": "metrics"}, "periodSeconds": 10},
        "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": CONTROLLER, "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": _LABELS},
            "template": {
                "metadata": {
                    "labels": _LABELS,
                    "annotations": {
                        "prometheus.io/scrape": "true",
                        "prometheus.io/port": str(_METRICS_PORT),
                        "prometheus.io/path": "/metrics",
                    },
                },
                "spec": {
                    "serviceAccountName": CONTROLLER,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 65532,
                        "runAsGroup": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [container],
                },
            },
        },
    }
