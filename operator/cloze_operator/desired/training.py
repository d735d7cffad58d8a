"""Children of a training run: claim, ConfigMap with the job, headless Service, Indexed Job."""

from collections.abc import Mapping
from typing import Any, Final

import yaml

from cloze_api.names import API_VERSION, JOB_FILE, LABEL_QUEUE, QUEUE_PREFIX, RENDEZVOUS_PORT
from cloze_api.progress import BLAMELESS_EXIT_CODES, FINAL_EXIT_CODES, ExitCode
from cloze_api.resources import PretrainJob, TrainingJob
from cloze_operator.desired.metadata import Manifest, child_metadata, sealed, selector
from cloze_operator.desired.origins import Origins, with_origins
from cloze_operator.desired.platform import Platform
from cloze_operator.desired.trainer import TRAINER, Gang, pod_template

#: Fields of a Job's spec that may change while it exists.
MUTABLE_JOB_FIELDS: Final = ("suspend", "activeDeadlineSeconds", "backoffLimit")

#: Fields of a training spec that only the operator acts on. The rest is what the pods read.
_OPERATIONAL: Final = ("suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
#: The same of its failurePolicy.
_OPERATIONAL_POLICY: Final = ("maxRestarts",)

JOB_KEY: Final = JOB_FILE.rsplit("/", 1)[1]


def run_name(job: TrainingJob) -> str:
    """Name of the run's Job and headless Service."""
    return f"{job.metadata.name}-{'pretrain' if isinstance(job, PretrainJob) else 'finetune'}"


def spec_name(job: TrainingJob) -> str:
    """Name of the ConfigMap with the job."""
    return f"{run_name(job)}-spec"


def claim_name(job: TrainingJob) -> str:
    """Name of the run's volume claim."""
    return f"{run_name(job)}-run"


def queue_labels(owner: Mapping[str, Any]) -> dict[str, str]:
    """What a resource says to Kueue about its Job: the queue, and the priority in it."""
    found = owner["metadata"].get("labels") or {}
    return {key: value for key, value in sorted(found.items()) if key.startswith(QUEUE_PREFIX)}


def claim(owner: Mapping[str, Any], job: TrainingJob) -> Manifest:
    """The run's volume: it outlives pods, suspension and restarts, not the resource."""
    storage = job.spec.storage
    spec: dict[str, Any] = {
        "accessModes": [storage.access_mode.value],
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class_name:
        spec["storageClassName"] = storage.storage_class_name
    return sealed(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": child_metadata(owner, claim_name(job)),
            "spec": spec,
        }
    )


def config_map(owner: Mapping[str, Any], job: TrainingJob, origins: Origins) -> Manifest:
    """The resource as the training pods read it, with exact versions."""
    document = {
        "apiVersion": API_VERSION,
        "kind": owner["kind"],
        "metadata": {key: owner["metadata"][key] for key in ("name", "namespace", "uid")},
        "spec": with_origins(_without_operational(owner["spec"]), origins),
    }
    return sealed(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": child_metadata(owner, spec_name(job), origins.annotations()),
            "data": {JOB_KEY: yaml.safe_dump(document, sort_keys=True, allow_unicode=True)},
        }
    )


def read_spec(config_map: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The spec that a run's ConfigMap gives to its pods; None where it can't be read."""
    try:
        document = yaml.safe_load(config_map["data"][JOB_KEY]) if config_map else None
    except (KeyError, TypeError, yaml.YAMLError):
        return None
    found = document.get("spec") if isinstance(document, Mapping) else None
    return found if isinstance(found, Mapping) else None


def _without_operational(spec: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in spec.items() if key not in _OPERATIONAL}
    policy = {key: value for key, value in kept.pop("failurePolicy", {}).items() if key not in _OPERATIONAL_POLICY}
    return {**kept, "failurePolicy": policy} if policy else kept


def service(owner: Mapping[str, Any], job: TrainingJob) -> Manifest:
    """Names of the pods. They must resolve before any pod is ready: the ranks meet first, then train."""
    return sealed(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": child_metadata(owner, run_name(job)),
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": selector(owner["kind"], owner["metadata"]["name"]),
                "ports": [
                    {
                        "name": "rendezvous",
                        "port": RENDEZVOUS_PORT,
                        "targetPort": RENDEZVOUS_PORT,
                        "protocol": "TCP",
                    }
                ],
            },
        }
    )


def pod_failure_policy() -> dict[str, Any]:
    """Which failures end the run, which are nobody's fault, and (all others) which count against maxRestarts.

    Order matters: the first rule that matches is taken. A pod that stops because a peer died, because it was told to,
    or because the registry is away after all the work is done, isn't counted.
    """

    def codes(*values: ExitCode) -> dict[str, Any]:
        return {"containerName": TRAINER, "operator": "In", "values": sorted(int(value) for value in values)}

    return {
        "rules": [
            {"action": "FailJob", "onExitCodes": codes(*FINAL_EXIT_CODES)},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "Ignore", "onExitCodes": codes(*BLAMELESS_EXIT_CODES)},
        ]
    }


def backoff_limit(job: TrainingJob) -> int:
    """Pod failures that the Job allows: those of a gang that fails as a whole `maxRestarts` times and once more.

    The operator counts gangs and lowers the limit when they are used up; this one holds while nobody counts.
    """
    return (job.spec.failure_policy.max_restarts + 1) * job.spec.topology.nodes - 1


def mutable_job_fields(job: TrainingJob, spent: int) -> dict[str, Any]:
    """The part of the Job's spec that follows the resource for as long as the run lasts. None means absent.

    spent: seconds of the deadline that former Jobs of the run have used up.
    """
    deadline = job.spec.active_deadline_seconds
    return {
        "suspend": job.spec.suspend,
        "activeDeadlineSeconds": None if deadline is None else max(1, deadline - spent),
        "backoffLimit": backoff_limit(job),
    }


def indexed_job(owner: Mapping[str, Any], job: TrainingJob, origins: Origins, platform: Platform) -> Manifest:
    """One pod per node, with stable names. No TTL here: a Job that vanishes would be taken for one to start again.

    One that goes to a queue is born suspended, so that no pod is made before the queue has looked at it; as there is
    one Job, all its pods are let go at once or none is.
    """
    nodes = job.spec.topology.nodes
    gang = Gang(
        job_name=run_name(job),
        service=run_name(job),
        claim=claim_name(job),
        config_map=spec_name(job),
        origins=origins,
    )
    spent = int((owner.get("status") or {}).get("activeSeconds") or 0)
    mutable = {key: value for key, value in mutable_job_fields(job, spent).items() if value is not None}
    queue, metadata = queue_labels(owner), child_metadata(owner, run_name(job), origins.annotations())
    if LABEL_QUEUE in queue:
        mutable["suspend"] = True
    return sealed(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {**metadata, "labels": {**metadata["labels"], **queue}},
            "spec": {
                "completions": nodes,
                "parallelism": nodes,
                "completionMode": "Indexed",
                # The only value that goes with a podFailurePolicy, and the right one: two pods with the same index
                # must never write the same checkpoint.
                "podReplacementPolicy": "Failed",
                "podFailurePolicy": pod_failure_policy(),
                "template": pod_template(owner, job, gang, platform),
                **mutable,
            },
        },
        without=MUTABLE_JOB_FIELDS,
    )
