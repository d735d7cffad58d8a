"""Children of a ModelDeployment: a Deployment of inference servers and the Service before them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloze_api.names import (
    ANNOTATION_MODEL_DIGEST,
    ANNOTATION_MODEL_VERSION,
    ENV_DRAIN_SECONDS,
    ENV_MAX_BATCH_TOKENS,
    ENV_MAX_QUEUE_TOKENS,
    ENV_MLFLOW_URI,
    ENV_MODEL_CACHE,
    ENV_MODEL_DIGEST,
    ENV_MODEL_URI,
    ENV_THREADS,
    ENV_TIMEOUT_SECONDS,
    MODEL_CACHE_MOUNT,
    SERVER_PORT,
    TERMINATION_LOG,
)
from cloze_api.resources import ModelDeployment
from cloze_operator.desired.metadata import (
    Manifest,
    child_metadata,
    container_security,
    labels,
    pod_security,
    sealed,
    selector,
)
from cloze_operator.desired.platform import Platform

SERVER: Final = "server"
"""Name of the container that serves."""

#: Lame-duck time of the server, during which endpoints take notice, and time for the process to end.
EXIT_MARGIN_SECONDS: Final = 20


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """The exact version to serve."""

    name: str
    version: str
    digest: str

    @property
    def uri(self) -> str:
        """Where the server finds it."""
        return f"models:/{self.name}/{self.version}"


def deployment_name(name: str) -> str:
    """Name of the Deployment."""
    return f"{name}-server"


def read_served_version(deployment: Mapping[str, Any] | None) -> ServedVersion | None:
    """The version that a Deployment's pod template has: what was decided stands there, whoever forgot it."""
    template = ((deployment or {}).get("spec") or {}).get("template") or {}
    for container in (template.get("spec") or {}).get("containers", []):
        environment = {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}
        uri = re.fullmatch(r"models:/([^/]+)/([^/]+)", environment.get(ENV_MODEL_URI, ""))
        if uri and environment.get(ENV_MODEL_DIGEST):
            return ServedVersion(uri[1], uri[2], environment[ENV_MODEL_DIGEST])
    return None


def server_deployment(
    owner: Mapping[str, Any], resource: ModelDeployment, served: ServedVersion, platform: Platform
) -> Manifest:
    """Replicas of the server. A new version never takes capacity away: one more pod first, one less after."""
    name = owner["metadata"]["name"]
    annotations = {ANNOTATION_MODEL_VERSION: served.version, ANNOTATION_MODEL_DIGEST: served.digest}
    return sealed(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": child_metadata(owner, deployment_name(name), annotations),
            "spec": {
                "replicas": resource.spec.replicas,
                "selector": {"matchLabels": selector(owner["kind"], name)},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "minReadySeconds": 2,
                "progressDeadlineSeconds": 600,
                "revisionHistoryLimit": 3,
                "template": {
                    "metadata": {
                        "labels": labels(owner["kind"], name),
                        "annotations": {
                            **annotations,
                            "prometheus.io/scrape": "true",
                            "prometheus.io/port": str(SERVER_PORT),
                            "prometheus.io/path": "/metrics",
                        },
                    },
                    "spec": {
                        "automountServiceAccountToken": False,
                        "enableServiceLinks": False,
                        "terminationGracePeriodSeconds": resource.spec.drain_seconds + EXIT_MARGIN_SECONDS,
                        "securityContext": pod_security(),
                        **platform.pull_secret_references(),
                        "containers": [_container(resource, served, platform)],
                        "volumes": [{"name": "cache", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
                    },
                },
            },
        }
    )


def _container(resource: ModelDeployment, served: ServedVersion, platform: Platform) -> dict[str, Any]:
    runtime = resource.spec.runtime
    environment = {
        ENV_MODEL_URI: served.uri,
        ENV_MODEL_DIGEST: served.digest,
        ENV_MLFLOW_URI: platform.tracking_uri,
        ENV_MODEL_CACHE: MODEL_CACHE_MOUNT,
        ENV_THREADS: str(runtime.threads),
        ENV_MAX_BATCH_TOKENS: str(runtime.max_batch_tokens),
        ENV_MAX_QUEUE_TOKENS: str(runtime.max_queue_tokens),
        ENV_TIMEOUT_SECONDS: str(runtime.timeout_seconds),
        ENV_DRAIN_SECONDS: str(resource.spec.drain_seconds),
        "HOME": "/tmp",  # noqa: S108 - a path in the pod, where /tmp is an emptyDir
    }
    return {
        "name": SERVER,
        **platform.container_image(runtime.image or platform.serve_image),
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "ports": [{"name": "http", "containerPort": SERVER_PORT, "protocol": "TCP"}],
        "resources": resource.spec.resources.model_dump(exclude_defaults=True),
        "securityContext": container_security(),
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        # Download, verification and warm-up take as long as the model is big: ten minutes, then it's a failure, and the
        # restarts show it.
        "startupProbe": {
            "httpGet": {"path": "/readyz", "port": "http"},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 300,
        },
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": "http"},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 2,
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": "http"},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        "volumeMounts": [
            {"name": "cache", "mountPath": MODEL_CACHE_MOUNT},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a path in the pod
        ],
    }


def server_service(owner: Mapping[str, Any]) -> Manifest:
    """The address that clients use; it only ever has ready pods behind it."""
    name = owner["metadata"]["name"]
    return sealed(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": child_metadata(owner, name),
            "spec": {
                "selector": selector(owner["kind"], name),
                "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
            },
        }
    )
