"""What both kinds of training job report of themselves."""

from typing import Annotated, Final, Literal

from pydantic import Field

from cloze_api.schema import Digest, ModelName, ModelVersion, Reported

#: Bounds of what a status can hold: what pods say is clipped to them.
REASON_MAX: Final = 128
STAGE_MAX: Final = 64
METRICS_MAX: Final = 64
NODE_MESSAGE_MAX: Final = 256


class Condition(Reported):
    """One condition, as in Kubernetes' API conventions."""

    type: Annotated[str, Field(max_length=64)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(min_length=1, max_length=REASON_MAX)]
    message: Annotated[str, Field(max_length=4096)] = ""
    observed_generation: int = 0
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class ProgressStatus(Reported):
    """Progress as last reported by rank 0."""

    stage: Annotated[str, Field(max_length=STAGE_MAX)] = ""
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: int | None = None
    summary: Annotated[str, Field(max_length=128)] = ""
    """`step/total (percent)` for the printer column; before the training `doing (percent)`."""
    checkpoint_step: int | None = None
    figures: Annotated[dict[str, float], Field(max_length=METRICS_MAX)] = {}
    """Of the last step (`gradient_norm`, `padding_share`, `data_wait_seconds`, `checkpoint_blocked_seconds`,
    `memory_bytes`, `learning_rate`, on GPUs that are known `flops_share`), and of the last evaluation in the training
    (`masked_loss`, `masked_accuracy`, `perplexity`, or the task's own)."""
    doing: Annotated[str, Field(max_length=STAGE_MAX)] | None = None
    """What is done with the data before the training, such as `reading`."""
    documents: int | None = None
    """Documents with which it is done."""
    done_bytes: int | None = None
    """Bytes with which it is done: of files while they are read or verified, else of text."""
    total_bytes: int | None = None
    """Bytes of all."""
    updated: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None


class LastExit(Reported):
    """How the last pod of a node ended."""

    reason: Annotated[str, Field(min_length=1, max_length=REASON_MAX)]
    """The pod's (`DiskFull`), the kubelet's (`OOMKilled`, `Evicted`), or of who took it (`PreemptionByScheduler`)."""
    message: Annotated[str, Field(max_length=NODE_MESSAGE_MAX)] = ""
    exit_code: int | None = None
    time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class NodeStatus(Reported):
    """One place of the gang: what its pod does, and how the one before, or this one, ended."""

    index: int
    """The pod's number in its Job; that of 0 leads."""
    state: Annotated[str, Field(max_length=32)]
    """`Pending`, `Running`, `Terminating`, `Succeeded`, `Failed`, or `Absent` without a pod."""
    reason: Annotated[str, Field(max_length=REASON_MAX)] = ""
    """Why the pod doesn't run: `Unschedulable`, `ImagePullBackOff`…"""
    message: Annotated[str, Field(max_length=NODE_MESSAGE_MAX)] = ""
    last_exit: LastExit | None = None


class RegisteredVersion(Reported):
    """The model version that a job registered."""

    name: ModelName
    version: ModelVersion
    digest: Digest
    run_id: Annotated[str, Field(max_length=64)] = ""


class TrainingStatus(Reported):
    """Status of both kinds of training job. `state` is derived from the conditions, for the printer column only."""

    observed_generation: int = 0
    state: Annotated[str, Field(max_length=32)] = ""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []
    start_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    completion_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    restarts: int = 0
    """How often the gang was restarted after a failure of its own, disruptions not counted."""
    last_failure_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """End of the last failure that `restarts` counts."""
    interruptions: int = 0
    """How often the gang was restarted because a pod was taken away (evicted, preempted, deleted, its machine lost), or
    a peer or the registry was gone; not limited by `maxRestarts`."""
    last_interruption_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """End of the last one that `interruptions` counts."""
    active_seconds: int = 0
    """How long former Jobs were active since the last suspension, which `activeDeadlineSeconds` counts too."""
    nodes: Annotated[
        list[NodeStatus],
        Field(
            max_length=64,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["index"]},
        ),
    ] = []
    """Each place of the gang."""
    progress: ProgressStatus | None = None
    model: RegisteredVersion | None = None
    metrics: Annotated[dict[str, float], Field(max_length=METRICS_MAX)] = {}
    """Evaluation figures of the finished run. Of more than there is room for: those that gates name, the model's own,
    and then others, by label last."""
