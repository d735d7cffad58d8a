"""Servers of a ModelDeployment: a Deployment for each revision that has pods, and the Services before them."""

from collections.abc import Mapping
from typing import Any, Final

from cloze_api.names import (
    ANNOTATION_MODEL_DIGEST,
    ANNOTATION_MODEL_VERSION,
    ENV_DEPLOYMENT,
    ENV_DRAIN_SECONDS,
    ENV_FALLBACK,
    ENV_MLFLOW_URI,
    ENV_MODEL_CACHE,
    ENV_MODEL_DIGEST,
    ENV_MODEL_URI,
    ENV_PROVIDER,
    ENV_REVISION,
    LABEL_REVISION,
    MODEL_CACHE_MOUNT,
    SERVER_PORT,
    TERMINATION_LOG,
)
from cloze_api.resources import ModelDeployment
from cloze_api.rollout import Scheduling
from cloze_api.training import Resources
from cloze_operator.desired.metadata import (
    Manifest,
    child_metadata,
    container_security,
    labels,
    pod_security,
    sealed,
    selector,
)
from cloze_operator.desired.options import mounted_secrets, runtime_environment, shared_environment
from cloze_operator.desired.placement import placement
from cloze_operator.desired.platform import Platform
from cloze_operator.desired.revision import Revision, child_name, is_device

SERVER: Final = "server"
"""Name of the container that serves."""

#: Lame-duck time of the server, during which endpoints take notice (5), and what the process takes to end at worst:
#: connections that wait (3), feedback (5), traces (3), a batch that hangs (5), the last log lines (1).
EXIT_MARGIN_SECONDS: Final = 25

#: Port of the Services.
SERVICE_PORT: Final = 80


def server_deployment(
    owner: Mapping[str, Any], resource: ModelDeployment, revision: Revision, replicas: int, platform: Platform
) -> Manifest:
    """Replicas of one revision's server. Another revision is another Deployment: this one is only ever resized, or
    given what all revisions share, such as resources or API keys, and then never loses capacity by it: one more pod
    first, one less after."""
    name = owner["metadata"]["name"]
    served, scheduling = revision.served, resource.spec.scheduling
    annotations = {ANNOTATION_MODEL_VERSION: served.version, ANNOTATION_MODEL_DIGEST: served.digest}
    metadata = child_metadata(owner, child_name(name, revision.name), annotations)
    metadata["labels"][LABEL_REVISION] = revision.name
    chosen = revision_selector(owner, revision.name)
    return sealed(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": chosen},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "minReadySeconds": 2,
                "progressDeadlineSeconds": resource.spec.rollout.progress_deadline_seconds,
                "revisionHistoryLimit": 1,
                "template": {
                    "metadata": {
                        "labels": {**labels(owner["kind"], name), LABEL_REVISION: revision.name},
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
                        **_scheduling(scheduling, chosen),
                        "containers": [_container(owner, resource, revision, platform)],
                        "volumes": [
                            {"name": "cache", "emptyDir": {}},
                            {"name": "tmp", "emptyDir": {}},
                            *(secret.as_volume() for secret in mounted_secrets(resource.spec)),
                        ],
                    },
                },
            },
        },
        # An autoscaler, or a step of the rollout, changes it without making it another Deployment.
        without=("replicas",),
    )


def revision_selector(owner: Mapping[str, Any], revision: str) -> dict[str, str]:
    """Labels that find the pods of one revision."""
    return {**selector(owner["kind"], owner["metadata"]["name"]), LABEL_REVISION: revision}


def _scheduling(scheduling: Scheduling, chosen: Mapping[str, str]) -> dict[str, Any]:
    """Where the pods may run. A revision's pods are spread over machines, if there are enough."""
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": dict(chosen)},
    }
    return {
        "topologySpreadConstraints": [spread],
        **placement(scheduling.node_selector, scheduling.tolerations, scheduling.priority_class_name),
    }


def _container(
    owner: Mapping[str, Any], resource: ModelDeployment, revision: Revision, platform: Platform
) -> dict[str, Any]:
    models = [revision.served, *([revision.fallback] if revision.fallback else [])]
    environment = {
        ENV_MODEL_URI: " ".join(model.uri for model in models),
        ENV_MODEL_DIGEST: " ".join(model.digest for model in models),
        **({ENV_FALLBACK: "=".join(f"{model.name}/{model.version}" for model in models)} if revision.fallback else {}),
        ENV_MLFLOW_URI: platform.tracking_uri,
        ENV_MODEL_CACHE: MODEL_CACHE_MOUNT,
        **runtime_environment(revision.runtime, resource.spec.resources),
        # A GPU that isn't used must not go unnoticed.
        **({ENV_PROVIDER: "cuda"} if revision.devices else {}),
        **shared_environment(resource.spec),
        ENV_DRAIN_SECONDS: str(resource.spec.drain_seconds),
        ENV_DEPLOYMENT: owner["metadata"]["name"],
        ENV_REVISION: revision.name,
        **platform.trust_environment(),
        "HOME": "/tmp",  # noqa: S108 - a path in the pod, where /tmp is an emptyDir
    }
    return {
        "name": SERVER,
        **platform.container_image(revision.image),
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "ports": [{"name": "http", "containerPort": SERVER_PORT, "protocol": "TCP"}],
        "resources": _resources(resource.spec.resources, revision),
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
            *(secret.as_mount() for secret in mounted_secrets(resource.spec)),
        ],
    }


def _resources(resources: Resources, revision: Revision) -> dict[str, Any]:
    """What a pod gets: CPU and memory as the spec has them now, GPUs as the revision was made for.

    Kubernetes wants GPUs as limits, and takes as many for requests.
    """
    parts = {"requests": resources.requests, "limits": resources.limits}
    kept = {part: {name: text for name, text in named.items() if not is_device(name)} for part, named in parts.items()}
    kept["limits"] |= dict(revision.devices)
    return {part: named for part, named in kept.items() if named}


def server_service(owner: Mapping[str, Any], name: str, revision: str | None) -> Manifest:
    """A Service before the pods of one revision, or of all of them without one. Only ready pods are ever behind it."""
    metadata = child_metadata(owner, name)
    if revision:
        metadata["labels"][LABEL_REVISION] = revision
    return sealed(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {
                "selector": revision_selector(owner, revision)
                if revision
                else selector(owner["kind"], owner["metadata"]["name"]),
                "ports": [{"name": "http", "port": SERVICE_PORT, "targetPort": "http", "protocol": "TCP"}],
            },
        }
    )


def preview_name(owner: str) -> str:
    """Name of the Service before the revision that is tried."""
    return f"{owner}-preview"
