"""Checkpoints as folders of a file system: staged, synced, renamed, marked complete."""

import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from cloze_trainer.files import COMPLETE, check, digests_of, recorded, sync_folder, sync_tree, write_json

_PREFIX = "step-"


def folder_name(step: int) -> str:
    """What a step's checkpoint is called."""
    return f"{_PREFIX}{step:08d}"


def step_of(name: str) -> int | None:
    """The step of the checkpoint that is called so, whatever comes after its number; None for another name."""
    found = re.match(rf"{_PREFIX}(\d{{8,}})(-|$)", name)
    return int(found[1]) if found else None


def finished_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that carry their marker, the newest first; their content is not looked at."""
    found = (step_of(path.parent.name) for path in folder.glob(f"{_PREFIX}*/{COMPLETE}"))
    return sorted((step for step in found if step is not None), reverse=True)


class Store(Protocol):
    """Where checkpoints lie once they are durable. One process writes, and nothing else changes what it wrote.

    Where it can't be used any more, TrainerError has a code with which the run is tried again.
    """

    def prepare(self) -> None:
        """Find out whether it can be used, before anything is done for it.

        Raises InputError where it refuses, TrainerError where it doesn't answer.
        """

    def steps(self) -> list[int]:
        """Steps of which there is anything, finished or not, the newest first."""

    def finished(self) -> list[int]:
        """Steps of the checkpoints that carry their marker, the newest first."""

    def open(self, step: int) -> Path:
        """A folder of this machine with the step's files as they were saved. Raises Damaged."""

    def publish(self, step: int, staged: Path, give_up: threading.Event) -> None:
        """Make what lies in a folder of this machine the step's checkpoint, and take that folder away.

        give_up: set when it is of no use any more to try once again.
        """

    def remove(self, step: int) -> None:
        """Remove a step's checkpoint, finished or not."""

    def clear(self) -> None:
        """Remove what killed attempts to save have left. Called when nothing is saved."""


class Volume:
    """A folder of a file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """As in Store. The workspace has been written to by then."""

    def path(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self._folder / folder_name(step)

    def steps(self) -> list[int]:
        """As in Store."""
        found = (step_of(path.name) for path in self._folder.glob(f"{_PREFIX}*") if path.is_dir())
        return sorted((step for step in found if step is not None), reverse=True)

    def finished(self) -> list[int]:
        """As in Store."""
        return finished_steps(self._folder)

    def open(self, step: int) -> Path:
        """As in Store."""
        self.marker(step)
        return self.path(step)

    def marker(self, step: int) -> dict[str, str]:
        """Digests of a step's files, keyed by name, after a look at whether they still are right. Raises Damaged."""
        digests = recorded(self.path(step))
        check(self.path(step), digests)
        return digests

    def publish(self, step: int, staged: Path, give_up: threading.Event) -> None:  # noqa: ARG002 - it is not tried again
        """As in Store. Raises OSError."""
        self.take(step, staged, digests_of(staged))

    def take(self, step: int, staged: Path, digests: Mapping[str, str]) -> None:
        """Publish what has these digests."""
        sync_tree(staged)
        target = self.path(step)
        if target.exists():
            shutil.rmtree(target)
        staged.rename(target)
        sync_folder(self._folder)
        write_json(target / COMPLETE, dict(digests))

    def remove(self, step: int) -> None:
        """As in Store."""
        # The marker goes first, so that a half-deleted checkpoint doesn't count.
        (self.path(step) / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(self.path(step), ignore_errors=True)

    def clear(self) -> None:
        """As in Store."""
        for leftover in self._folder.glob(f".{_PREFIX}*.staging"):
            shutil.rmtree(leftover, ignore_errors=True)
