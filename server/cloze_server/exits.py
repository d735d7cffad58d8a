"""How the server ends: its exit codes, and the reason it leaves for the operator."""

import contextlib
import json
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """Exit codes of `cloze-server`."""

    SUCCESS = 0
    """Drained after a signal."""
    INTERNAL = 1
    """An unexpected error while loading."""
    ARTIFACT_INVALID = 10
    """The artifact is not the one that was asked for, is damaged, or can't be run."""
    MODEL_NOT_FOUND = 11
    """The registry answers, and doesn't have this model version."""
    CONFIGURATION = 12
    """A flag, an environment variable or the registry's permissions are wrong."""
    SIGNATURE = 13
    """The artifact isn't signed by a key that is trusted."""
    STORAGE = 20
    """The model cache is full or can't be written."""
    REQUESTS_ABANDONED = 30
    """Ended by a signal before all accepted requests were answered."""
    ROWS_FAILED = 31
    """More rows of a batch run failed than may."""
    INTERRUPTED = 32
    """A batch run was ended by a signal; what is done is kept."""


class FatalError(Exception):
    """The server can't go on. `reason` is CamelCase and fits a condition; the message says what to do."""

    def __init__(self, code: ExitCode, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


def write_termination_message(path: Path, error: FatalError) -> None:
    """Leave one line of JSON where the kubelet looks for it.

    The kubelet creates the file before the container starts, so a missing one means that nobody will read it.
    Kubernetes keeps 4,096 bytes; the message is cut well below that.
    """
    if not path.exists():
        return
    line = json.dumps({"reason": error.reason, "message": str(error)[:2048], "exit_code": int(error.code)})
    with contextlib.suppress(OSError):
        path.write_text(line + "\n", encoding="utf-8")
