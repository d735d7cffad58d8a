"""Every way in which a run can fail, as a reason, a sentence and an exit code."""

import errno
import re
import traceback
from collections.abc import Iterator, Mapping

from cloze_api.progress import ExitCode


class TrainerError(Exception):
    """A failure that the trainer understands.

    reason: CamelCase, fits a Kubernetes condition.
    message: a sentence that says what was wrong, where, and what to do; never the user's text.
    """

    def __init__(self, reason: str, message: str, exit_code: ExitCode = ExitCode.INTERNAL) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.exit_code = exit_code


class InputError(TrainerError, ValueError):
    """The job or its data is wrong: the same input would fail again."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message, ExitCode.INVALID_INPUT)


class BaseModelError(TrainerError):
    """The base model can't be used."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message, ExitCode.BASE_MISMATCH)


class GateError(TrainerError):
    """The finished model isn't good enough. figures: those of its evaluation."""

    def __init__(self, message: str, figures: Mapping[str, float]) -> None:
        super().__init__("GateFailed", message, ExitCode.GATE_FAILED)
        self.figures = figures


class RegistryError(TrainerError):
    """MLflow didn't answer within the budget."""

    def __init__(self, message: str) -> None:
        super().__init__("RegistryUnavailable", message, ExitCode.REGISTRY)


class PeerLost(TrainerError):
    """Another rank or the rendezvous is gone."""

    def __init__(self, message: str, reason: str = "PeerLost") -> None:
        super().__init__(reason, message, ExitCode.PEER_LOST)


class RankStuck(PeerLost):
    """Another rank lives, or seems to, and doesn't come."""

    REASON = "RankStuck"

    def __init__(self, message: str) -> None:
        super().__init__(message, self.REASON)


class Suspended(TrainerError):
    """Asked to stop by a signal; what can be saved is saved."""

    def __init__(self, message: str) -> None:
        super().__init__("Suspended", message, ExitCode.SUSPENDED)


# Characters of one exception that go into the log.
_LONGEST_DETAIL = 500
_FULL = {errno.ENOSPC, errno.EDQUOT}
_UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
# What gloo, NCCL and torch's store say when the other end is gone. Not their names alone: a wrong network interface or
# a GPU without memory is reported by them, too, and never goes away.
_CONNECTION = re.compile(
    r"connection (was )?(likely )?(closed|reset|refused|aborted|timed out)|broken pipe|no route to host"
    r"|recvValue failed|sendBytes failed|socket has timed out|wait timeout after"
    r"|timed out waiting \d+ ?ms for (a )?(recv|send)|timeout caused pair closure"
    r"|nccl(Remote|System)Error|remote process exited|collective operation timeout",
    re.IGNORECASE,
)
_CONNECTION_TYPES = (
    "DistNetworkError",
    "DistStoreError",
    "RendezvousConnectionError",
    "RendezvousTimeoutError",
    "RendezvousClosedError",
)
_COMPILER_TYPES = ("BackendCompilerFailed", "InductorError", "TritonMissing", "GPUTooOldForTriton")


STORAGE_ERRORS = frozenset(_FULL | _UNWRITABLE)
"""Error numbers of a volume that can't take what is written."""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, its causes, and what torch.distributed.checkpoint wraps (a dictionary of failures by rank)."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inner = [current.__cause__, current.__context__]
        failures = getattr(current, "failures", None)
        if isinstance(failures, dict):
            inner += [item[0] if isinstance(item, tuple) else item for item in failures.values()]
        pending += [item for item in inner if isinstance(item, BaseException)]


def classify(error: BaseException, *, ranks: int = 1) -> TrainerError:
    """What a failure means for the run.

    ranks: number of ranks; a lost connection can only be a lost peer's when there is more than one.
    """
    chain = list(_chain(error))
    for item in chain:
        if isinstance(item, TrainerError):
            return item
    for item in chain:
        if isinstance(item, OSError) and item.errno in _FULL:
            return TrainerError(
                "DiskFull",
                "the workspace's volume is full: raise spec.storage.size or lower spec.checkpoint.keep; "
                "the newest complete checkpoint is kept",
                ExitCode.STORAGE,
            )
    for item in chain:
        if isinstance(item, OSError) and item.errno in _UNWRITABLE:
            return TrainerError(
                "StorageUnusable",
                f"{item.filename or 'the workspace'} can't be used ({item.strerror}): "
                "check the volume and that the pod's user may write to it (fsGroup)",
                ExitCode.STORAGE,
            )
    for item in chain:
        # The serialisers report a failed write without its errno.
        if isinstance(item, RuntimeError) and re.search(r"PytorchStreamWriter|No space left", str(item)):
            return TrainerError(
                "DiskFull",
                "a file could not be written to the workspace: check its free space (spec.storage.size); "
                "the newest complete checkpoint is kept",
                ExitCode.STORAGE,
            )
    for item in chain:
        broken = isinstance(item, RuntimeError) and _CONNECTION.search(str(item)) is not None
        if ranks > 1 and (broken or type(item).__name__ in _CONNECTION_TYPES):
            return PeerLost("the connection to another rank was lost; the gang starts again from the last checkpoint")
    for item in chain:
        if isinstance(item, MemoryError) or "can't allocate memory" in str(item) or "out of memory" in str(item):
            return TrainerError(
                "OutOfMemory",
                "a rank ran out of memory: raise its memory limit or lower spec.optimization.batchSequences",
            )
    for item in chain:
        if type(item).__name__ in _COMPILER_TYPES:
            return InputError(
                "CompilationFailed",
                "a layer could not be compiled; the log has the compiler's words: remove optimization.compile, or take "
                "an image whose compiler works (spec.image)",
            )
    return TrainerError(
        "InternalError", f"unexpected {type(error).__name__}: the log has the place; it is retried from a checkpoint"
    )


def technical(error: BaseException) -> str:
    """What the system, torch and other native libraries say about a failure; they hold no text of the user."""
    lines = []
    for item in _chain(error):
        library = type(item).__module__.partition(".")[0] in ("torch", "onnxruntime", "safetensors")
        if library or isinstance(item, OSError | MemoryError) or type(item) is RuntimeError:
            lines.append(f"{type(item).__name__}: {item}"[:_LONGEST_DETAIL])
        else:
            lines.append(type(item).__name__)
    return "; ".join(lines)


def trace(error: BaseException) -> str:
    """The innermost frames of a failure: places in the code, without any value."""
    return "".join(traceback.format_tb(error.__traceback__)[-8:])
