"""Losses of peers in a row: a peer that goes is replaced, a fault that looks like one must not be tried forever."""

import contextlib
import json
from pathlib import Path

from cloze_trainer.errors import TrainerError
from cloze_trainer.files import write_json
from cloze_trainer.volume import finished_steps

#: Losses in a row, without a newer checkpoint in between, that are not held against the run.
PATIENCE = 10


class PeerLosses:
    """Counts a pod's losses of peers since the newest checkpoint.

    The count is kept in the workspace: a pod whose rendezvous is gone ends, and another takes its place.
    index: the pod's own within the gang.
    """

    def __init__(self, workspace: Path, index: str) -> None:
        self._checkpoints = workspace / "checkpoints"
        self._file = workspace / f".peer-losses-{index}.json"

    def another(self) -> TrainerError | None:
        """Count one more. When that is too many, the failure that counts against the run; then it starts at zero."""
        reached = self._reached()
        count = 1
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            before = json.loads(self._file.read_text(encoding="utf-8"))
            if before["checkpoint"] == reached:
                count = int(before["losses"]) + 1
        exhausted = count > PATIENCE
        with contextlib.suppress(OSError):
            write_json(self._file, {"checkpoint": reached, "losses": 0 if exhausted else count})
        if not exhausted:
            return None
        return TrainerError(
            "PeersLostRepeatedly",
            f"the connection to the other ranks was lost {count} times in a row without a checkpoint in between: look "
            "at the log of the pod that failed first, at the network between the pods and at their memory",
        )

    def _reached(self) -> int:
        """Step of the newest finished checkpoint; -1 without any."""
        return max(finished_steps(self._checkpoints), default=-1)
