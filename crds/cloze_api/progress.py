"""What a training pod tells the operator: progress while it runs, an outcome when it ends."""

from enum import IntEnum
from typing import Annotated

from pydantic import Field

from cloze_api.schema import Reported


class ExitCode(IntEnum):
    """Exit codes of `cloze-train`. A final one is never retried: the same input would fail again."""

    SUCCESS = 0
    INTERNAL = 1
    """An unexpected error; retried."""
    INVALID_INPUT = 10
    """The job or its data is wrong. Final."""
    DIVERGED = 11
    """The loss is not finite. Final."""
    BASE_MISMATCH = 12
    """The base model can't be used: digest, signature, tokenizer or architecture do not match. Final."""
    GATE_FAILED = 13
    """The finished model isn't good enough to be registered. Final."""
    STORAGE = 20
    """The volume is full or can't be written; retried."""
    REGISTRY = 21
    """MLflow didn't answer within the retry budget; the artifact is kept and registration is retried, not counted."""
    PEER_LOST = 22
    """Another rank or the rendezvous is gone; retried, not counted."""
    SUSPENDED = 23
    """Stopped by SIGTERM after a checkpoint; retried, not counted."""


FINAL_EXIT_CODES: tuple[ExitCode, ...] = (
    ExitCode.INVALID_INPUT,
    ExitCode.DIVERGED,
    ExitCode.BASE_MISMATCH,
    ExitCode.GATE_FAILED,
)

#: Codes of pods that stopped because of something else: they don't count against `failurePolicy.maxRestarts`.
BLAMELESS_EXIT_CODES: tuple[ExitCode, ...] = (ExitCode.REGISTRY, ExitCode.PEER_LOST, ExitCode.SUSPENDED)


class Progress(Reported):
    """Reply of a training pod's `/progress`. Only rank 0 has figures; other pods answer 404."""

    stage: str
    """`data`, `tokenizer`, `training`, `evaluation`, `export`, `registration` or `done`."""
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    """Real tokens (no padding) of all ranks."""
    eta_seconds: int | None = None
    checkpoint_step: int | None = None
    """Step of the newest durable checkpoint."""
    figures: dict[str, float] = {}
    """Of the last step, and of the last evaluation within the training."""
    doing: str | None = None
    """What is done with the data before the training: `reading` (and cleaning), `comparing`, `counting` words,
    `tokenizing`, `verifying` what was prepared before, or `waiting` for another run that prepares it."""
    documents: int | None = None
    """Documents with which it is done."""
    done_bytes: int | None = None
    """Bytes with which it is done: of files as they are while they are read or verified, else of text."""
    total_bytes: int | None = None
    """Bytes of all."""


class Outcome(Reported):
    """Termination message of a training pod.

    reason is CamelCase (`DiskFull`, `LabelUnknown`…), message a sentence a person can act on. The model fields are set
    by the rank that registered the version.
    """

    reason: str
    message: Annotated[str, Field(max_length=2048)] = ""
    exit_code: int = 0
    step: int | None = None
    model_name: str | None = None
    model_version: str | None = None
    model_digest: str | None = None
    run_id: str | None = None
    metrics: dict[str, float] = {}
