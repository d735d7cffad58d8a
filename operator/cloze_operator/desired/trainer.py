"""The pod template of a training run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloze_api.names import (
    CORPUS_MOUNT,
    DATA_CACHE_MOUNT,
    ENV_BASE_DIGEST,
    ENV_CORPUS_ROOT,
    ENV_DATA_CACHE,
    ENV_JOB_UID,
    ENV_MLFLOW_URI,
    ENV_RENDEZVOUS,
    ENV_SIGNING_KEY,
    ENV_TEACHER_DIGEST,
    ENV_WORKSPACE,
    JOB_FILE,
    PROGRESS_PORT,
    RENDEZVOUS_PORT,
    SECRETS_MOUNT,
    SIGNING_MOUNT,
    TERMINATION_LOG,
    WORKSPACE_MOUNT,
)
from cloze_api.resources import PretrainJob, TrainingJob
from cloze_api.source import Source, SourceKind, parse_source
from cloze_api.training import AccessMode
from cloze_operator.desired.metadata import container_security, labels, pod_security, selector
from cloze_operator.desired.origins import Origins
from cloze_operator.desired.placement import placement
from cloze_operator.desired.platform import Platform

TRAINER: Final = "trainer"
"""Name of the container that trains."""

#: Readable by the pod's group alone.
_SECRET_MODE: Final = 0o440


@dataclass(frozen=True, slots=True, kw_only=True)
class Gang:
    """Names that the pods of one run share."""

    job_name: str
    service: str
    claim: str
    config_map: str
    origins: Origins


def source_uris(job: TrainingJob) -> tuple[str, ...]:
    """URIs of everything the run reads, in the order of the spec."""
    folder = job.spec.pretrained.uri if job.spec.pretrained else None
    if isinstance(job, PretrainJob):
        names = job.spec.cleaning.names
        data = (*(corpus.uri for corpus in job.spec.corpus), *([names.uri] if names else []))
    else:
        data = job.spec.dataset.sources
    return (*data, *([folder] if folder else []))


def mounted_sources(job: TrainingJob) -> tuple[Source, ...]:
    """Claims and ConfigMaps that the run reads, one of each, in a fixed order."""
    found = (parse_source(uri) for uri in source_uris(job))
    by_mount = {source.mount: source for source in found if source.container}
    return tuple(by_mount[mount] for mount in sorted(by_mount))


def store_secrets(job: TrainingJob) -> tuple[str, ...]:
    """Names of the Secrets that give access to the run's sources and to its checkpoints, one of each, sorted."""
    secrets = [job.spec.checkpoint.credentials]
    if isinstance(job, PretrainJob):
        secrets += [corpus.credentials for corpus in job.spec.corpus]
        secrets += [job.spec.cleaning.names.credentials] if job.spec.cleaning.names else []
    else:
        secrets += [job.spec.dataset.credentials]
    secrets += [job.spec.pretrained.credentials] if job.spec.pretrained else []
    return tuple(sorted({secret.secret_name for secret in secrets if secret}))


def is_pinned(job: TrainingJob) -> bool:
    """Whether the run's volume forces all its pods to one machine."""
    return job.spec.topology.nodes > 1 and job.spec.storage.access_mode is AccessMode.READ_WRITE_ONCE


def pod_template(owner: Mapping[str, Any], job: TrainingJob, gang: Gang, platform: Platform) -> dict[str, Any]:
    """What every pod of the gang looks like; its index comes from Kubernetes as JOB_COMPLETION_INDEX."""
    name = owner["metadata"]["name"]
    topology = job.spec.topology
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "subdomain": gang.service,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": topology.grace_seconds,
        "securityContext": pod_security(),
        **platform.pull_secret_references(),
        "containers": [_container(owner, job, gang, platform)],
        "volumes": _volumes(job, gang),
    }
    spec |= placement(topology.node_selector, topology.tolerations, topology.priority_class_name)
    if is_pinned(job):
        spec["affinity"] = {
            "podAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "labelSelector": {"matchLabels": selector(owner["kind"], name)},
                        "topologyKey": "kubernetes.io/hostname",
                    }
                ]
            }
        }
    return {
        "metadata": {
            "labels": labels(owner["kind"], name),
            "annotations": {
                "prometheus.io/scrape": "true",
                "prometheus.io/port": str(PROGRESS_PORT),
                "prometheus.io/path": "/metrics",
            },
        },
        "spec": spec,
    }


def _container(owner: Mapping[str, Any], job: TrainingJob, gang: Gang, platform: Platform) -> dict[str, Any]:
    topology = job.spec.topology
    environment = {
        # Short on purpose: the cluster's domain isn't always cluster.local.
        ENV_RENDEZVOUS: f"{gang.job_name}-0.{gang.service}:{RENDEZVOUS_PORT}",
        ENV_JOB_UID: owner["metadata"]["uid"],
        ENV_WORKSPACE: WORKSPACE_MOUNT,
        ENV_CORPUS_ROOT: CORPUS_MOUNT,
        ENV_MLFLOW_URI: platform.tracking_uri,
        **({ENV_DATA_CACHE: DATA_CACHE_MOUNT} if job.spec.storage.data_cache else {}),
        **platform.trust_environment(),
        "OMP_NUM_THREADS": str(topology.threads_per_process),
        # The root is read-only; what libraries keep in a home folder goes to memory of the pod's own.
        "HOME": "/tmp",  # noqa: S108 - a path in the pod, where /tmp is an emptyDir
    }
    if gang.origins.base:
        environment[ENV_BASE_DIGEST] = gang.origins.base.digest
    if gang.origins.teacher:
        environment[ENV_TEACHER_DIGEST] = gang.origins.teacher.digest
    signing = job.spec.registry.signing
    if signing:
        environment[ENV_SIGNING_KEY] = f"{SIGNING_MOUNT}/{signing.key}"
    return {
        "name": TRAINER,
        **platform.container_image(job.spec.image or platform.train_image),
        "args": ["run", JOB_FILE],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "ports": [{"name": "progress", "containerPort": PROGRESS_PORT, "protocol": "TCP"}],
        "resources": job.spec.topology.resources.model_dump(exclude_defaults=True),
        "securityContext": container_security(),
        "terminationMessagePath": TERMINATION_LOG,
        # When the trainer dies before it can leave its outcome, the end of its log is better than nothing.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "job", "mountPath": JOB_FILE.rsplit("/", 1)[0], "readOnly": True},
            {"name": "run", "mountPath": WORKSPACE_MOUNT},
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - a path in the pod
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a path in the pod
            *(
                {"name": f"corpus-{index}", "mountPath": f"{CORPUS_MOUNT}/{source.mount}", "readOnly": True}
                for index, source in enumerate(mounted_sources(job))
            ),
            *(
                {"name": f"credentials-{index}", "mountPath": f"{SECRETS_MOUNT}/{secret}", "readOnly": True}
                for index, secret in enumerate(store_secrets(job))
            ),
            *([{"name": "signing", "mountPath": SIGNING_MOUNT, "readOnly": True}] if signing else []),
            *([{"name": "data-cache", "mountPath": DATA_CACHE_MOUNT}] if job.spec.storage.data_cache else []),
        ],
    }


def _volumes(job: TrainingJob, gang: Gang) -> list[dict[str, Any]]:
    return [
        {"name": "job", "configMap": {"name": gang.config_map}},
        {"name": "run", **_workspace(job, gang)},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": job.spec.topology.shared_memory}},
        {"name": "tmp", "emptyDir": {}},
        *(_source_volume(index, source) for index, source in enumerate(mounted_sources(job))),
        *(
            {"name": f"credentials-{index}", "secret": {"secretName": secret, "defaultMode": _SECRET_MODE}}
            for index, secret in enumerate(store_secrets(job))
        ),
        *_signing_volume(job),
        *_data_cache_volume(job),
    ]


def _data_cache_volume(job: TrainingJob) -> list[dict[str, Any]]:
    cache = job.spec.storage.data_cache
    if cache is None:
        return []
    return [{"name": "data-cache", "persistentVolumeClaim": {"claimName": cache.claim_name}}]


def _signing_volume(job: TrainingJob) -> list[dict[str, Any]]:
    """The private key alone, whatever else its Secret holds."""
    signing = job.spec.registry.signing
    if signing is None:
        return []
    items = [{"key": signing.key, "path": signing.key}]
    secret = {"secretName": signing.secret_name, "items": items, "defaultMode": _SECRET_MODE}
    return [{"name": "signing", "secret": secret}]


def _workspace(job: TrainingJob, gang: Gang) -> dict[str, Any]:
    storage = job.spec.storage
    if storage.ephemeral:
        return {"emptyDir": {"sizeLimit": storage.size}}
    return {"persistentVolumeClaim": {"claimName": gang.claim}}


def _source_volume(index: int, source: Source) -> dict[str, Any]:
    if source.kind is SourceKind.CONFIG_MAP:
        return {"name": f"corpus-{index}", "configMap": {"name": source.container}}
    return {"name": f"corpus-{index}", "persistentVolumeClaim": {"claimName": source.container}}
