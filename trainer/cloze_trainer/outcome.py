"""How a run ended: the workspace's `outcome.json` and the pod's termination message."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from cloze_api.names import TERMINATION_LOG
from cloze_api.progress import ExitCode, Outcome
from cloze_trainer.errors import GateError, TrainerError
from cloze_trainer.files import write_atomically, write_json

OUTCOME_FILE: Final = "outcome.json"
FAILURE_FILE: Final = "failure.json"
_OWNER_FILE: Final = f".{OUTCOME_FILE}.identity"
ENV_TERMINATION_LOG: Final = "CLOZE_TERMINATION_LOG"
ENV_FOLDER: Final = "CLOZE_OUTCOME_FOLDER"
"""Folder of the pod in which each rank leaves its outcome for the launcher, as `<local rank>.json`."""
# Kubernetes cuts the message at this many bytes.
LARGEST_MESSAGE: Final = 4096


def failed(error: TrainerError, step: int | None = None) -> Outcome:
    """The outcome of a failure."""
    figures = dict(error.figures) if isinstance(error, GateError) else {}
    return Outcome(
        reason=error.reason, message=error.message[:2048], exit_code=int(error.exit_code), step=step, metrics=figures
    )


def encode(outcome: Outcome) -> bytes:
    """JSON of at most 4,096 bytes: metrics go first, the last of them before others, then the end of the message."""
    data = outcome.model_dump_json(by_alias=True, exclude_none=True).encode()
    kept = dict(outcome.metrics)
    while len(data) > LARGEST_MESSAGE and kept:
        kept.popitem()
        data = outcome.model_copy(update={"metrics": kept}).model_dump_json(by_alias=True, exclude_none=True).encode()
    message = outcome.message
    while len(data) > LARGEST_MESSAGE and message:
        message = message[: len(message) // 2]
        shorter = outcome.model_copy(update={"metrics": {}, "message": message})
        data = shorter.model_dump_json(by_alias=True, exclude_none=True).encode()
    return data


def write(path: Path, outcome: Outcome) -> None:
    """Leave an outcome in a file."""
    write_atomically(path, encode(outcome))


def read(path: Path) -> Outcome | None:
    """An outcome left earlier; None when there is none that can be read."""
    try:
        return Outcome.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def finished(workspace: Path, identity: str, *, registered: bool) -> Outcome | None:
    """The outcome of a run that has already succeeded in this workspace, if it was the run with this identity.

    registered: whether success takes a registered version, too.
    """
    outcome = read(workspace / OUTCOME_FILE)
    if outcome is None or outcome.exit_code != ExitCode.SUCCESS:
        return None
    if registered and outcome.model_version is None:
        return None
    return outcome if _owner(workspace).get("identity") == identity else None


def finished_sources(workspace: Path) -> dict[str, str]:
    """Digests of the sources that the finished run was made from, keyed by URI."""
    return dict(_owner(workspace).get("sources") or {})


def _owner(workspace: Path) -> dict[str, Any]:
    try:
        document = json.loads((workspace / _OWNER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def finish(
    workspace: Path, identity: str, outcome: Outcome, *, sources: Mapping[str, str], base: str | None = None
) -> None:
    """Mark the workspace's run as done, so that a restarted pod repeats nothing.

    sources: digests of the data, keyed by URI. base: the base model's digest.
    """
    write_json(workspace / _OWNER_FILE, {"identity": identity, "sources": dict(sources), "base": base})
    write(workspace / OUTCOME_FILE, outcome)


def terminate(outcome: Outcome) -> None:
    """Leave the outcome where Kubernetes reads it.

    The file exists in a pod; outside one nothing is written unless the environment names a file.
    """
    named = os.environ.get(ENV_TERMINATION_LOG)
    path = Path(named or TERMINATION_LOG)
    if named or path.is_file():
        # The kubelet mounts the file itself: it can't be replaced by a rename, and it may be read-only.
        with contextlib.suppress(OSError):
            path.write_bytes(encode(outcome))
