"""Runs that wait in a queue: Kueue suspends their Job and lets it go, and may say on which machines, meanwhile."""

from typing import Final

from cloze_api.names import LABEL_QUEUE
from cloze_operator.decide.fields import Object, condition, dig
from cloze_operator.decide.snapshot import TrainingSnapshot
from cloze_operator.desired.training import queue_labels

#: Of a run that is suspended, and whose Job has left a queue that the run itself doesn't name.
OUT_OF_QUEUE: Final = "SuspendedOutOfQueue"


def queue_of(live: Object | None) -> str:
    """The queue that decides when a Job may run; empty for one that is the operator's to suspend."""
    return str((dig(live, "metadata", "labels") or {}).get(LABEL_QUEUE, ""))


def is_held(snapshot: TrainingSnapshot) -> bool:
    """Whether the run has to do without a Job: a suspended one that is in a queue would be let go by Kueue.

    Kueue may have put a Job into a queue by itself, which nothing but the status tells of once that Job is gone.
    """
    if not snapshot.parsed.spec.suspend:
        return False
    live = snapshot.children.get("Job")
    left = live is None and condition(snapshot.resource, "Running").get("reason") == OUT_OF_QUEUE
    return left or LABEL_QUEUE in queue_labels(snapshot.resource) or bool(queue_of(live))


def held_reason(snapshot: TrainingSnapshot) -> str:
    """Why a held run has no Job, for its condition Running."""
    return "Suspended" if LABEL_QUEUE in queue_labels(snapshot.resource) else OUT_OF_QUEUE


def is_suspended(snapshot: TrainingSnapshot) -> bool:
    """Whether the run is to stand still, or its Job does: by its own spec, by its queue or by anybody else."""
    return snapshot.parsed.spec.suspend or bool(dig(snapshot.children.get("Job"), "spec", "suspend"))


def waiting_for_admission(snapshot: TrainingSnapshot) -> str:
    """A sentence about a Job that its queue hasn't let go, or no longer; empty for any other."""
    live = snapshot.children.get("Job")
    queue = queue_of(live)
    if live is None or not queue or not dig(live, "spec", "suspend"):
        return ""
    checkpoint = dig(snapshot.resource, "status", "progress", "checkpointStep")
    since = f"; it goes on from the checkpoint of step {checkpoint}" if checkpoint else ""
    uid = live["metadata"]["uid"]
    return (
        f"LocalQueue {queue} hasn't admitted Job {live['metadata']['name']}{since}: "
        f"`kubectl get workloads -l kueue.x-k8s.io/job-uid={uid} -o yaml` says what it waits for"
    )
