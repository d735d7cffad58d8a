"""Training state on a file system: staged, synced, renamed, marked complete; the newest complete one counts.

Every rank holds the same state (data parallelism), so rank 0 alone writes. That the write failed reaches the others
as rank 0's end.
"""

import errno
import json
import os
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from cloze_api.manifest import file_sha256
from cloze_trainer.console import log
from cloze_trainer.errors import TrainerError
from cloze_trainer.files import COMPLETE, sync_folder, sync_tree, write_json
from cloze_trainer.origin import Origin, changed

_PREFIX = "step-"
_STATE = "state.json"


@dataclass(frozen=True, slots=True)
class LoopState:
    """Where the loop stands. step: optimizer steps done; tokens: real tokens trained on, over all ranks."""

    step: int
    tokens: int


# One process saves and loads, which is meant.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def finished_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that carry their marker, the newest first; their content is not looked at."""
    names = (path.parent.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*/{COMPLETE}"))
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def captured(model: nn.Module, optimizer: torch.optim.Optimizer, into: Any = None) -> dict[str, Any]:
    """A copy of the weights and the optimizer's state in host memory.

    into: a former copy, whose memory is used again where shapes and types are the same.
    """
    weights, moments = get_state_dict(model, optimizer)
    copy: dict[str, Any] = _copied({"model": weights, "optimizer": moments}, into)
    return copy


def _copied(value: Any, into: Any) -> Any:
    if isinstance(value, Tensor):
        fits = isinstance(into, Tensor) and into.shape == value.shape and into.dtype == value.dtype
        target = into if fits else torch.empty(value.shape, dtype=value.dtype, device="cpu")
        return target.copy_(value.detach())
    if isinstance(value, dict):
        former = into if isinstance(into, dict) else {}
        return {key: _copied(item, former.get(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        olds = into if isinstance(into, list | tuple) and len(into) == len(value) else [None] * len(value)
        return type(value)(_copied(item, old) for item, old in zip(value, olds, strict=True))
    return value


def size_bytes(value: Any) -> int:
    """Bytes of all tensors within a captured state."""
    if isinstance(value, Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(size_bytes(item) for item in items)


def _probe(folder: Path) -> None:
    """Write a file, so that the volume says what is wrong with it: torch's writer doesn't. Raises OSError."""
    with (folder / "probe").open("wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())


class Checkpoints:
    """The checkpoints of one run below `folder`; `keep` of them are kept.

    origin: what the run is made from. A checkpoint holds it, and is continued with nothing else: the same bytes would
    mean other tokens, or the same numbers other labels.
    """

    def __init__(self, folder: Path, keep: int, origin: Origin) -> None:
        self.folder, self.keep, self.origin = folder, keep, origin

    def _steps(self) -> list[int]:
        names = (path.name for path in self.folder.glob(f"{_PREFIX}*") if path.is_dir())
        return sorted((int(name.removeprefix(_PREFIX)) for name in names if name[5:].isdigit()), reverse=True)

    def path(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self.folder / f"{_PREFIX}{step:08d}"

    def latest(self) -> int | None:
        """Step of the newest checkpoint that is complete and intact; damaged ones are passed over with a warning."""
        for step in self._steps():
            if damage := self._damage(self.path(step)):
                log("checkpoint skipped", step=step, why=damage)
                continue
            return step
        return None

    @staticmethod
    def _damage(path: Path) -> str:
        """What is wrong with a checkpoint; empty when nothing is."""
        try:
            digests = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return "it was not finished"
        except (OSError, ValueError):
            return "its marker can't be read"
        for name, digest in digests.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if file_sha256(path / name) != digest:
                return f"{name} is damaged"
        return ""

    def save(self, state: LoopState, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Make a checkpoint durable, then drop the oldest. Raises OSError or torch's CheckpointException."""
        self.write(state, captured(model, optimizer))

    def write(self, state: LoopState, tensors: dict[str, Any]) -> None:
        """Make what was captured durable, then drop the oldest. Raises OSError or torch's CheckpointException.

        Without room for it nothing is begun (ENOSPC), so that the last good ones stay as they are.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        needed, free = size_bytes(tensors), shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"a checkpoint takes {needed:,} bytes, and {free:,} are free", str(self.folder))
        target = self.path(state.step)
        staging = self.folder / f".{target.name}.staging"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            try:
                save(
                    tensors,
                    storage_writer=FileSystemWriter(staging, single_file_per_rank=True, sync_files=False),
                    no_dist=True,
                )
            except (RuntimeError, CheckpointException):
                _probe(staging)
                raise
            write_json(staging / _STATE, {"step": state.step, "tokens": state.tokens, **asdict(self.origin)})
            sync_tree(staging)
            digests = {path.name: file_sha256(path) for path in sorted(staging.iterdir())}
            if target.exists():
                shutil.rmtree(target)
            staging.rename(target)
            sync_folder(self.folder)
            write_json(target / COMPLETE, digests)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._prune()

    def _prune(self) -> None:
        """Remove the oldest, and what killed attempts to save or to remove have left. Called when nothing is saved."""
        kept = finished_steps(self.folder)[: self.keep]
        for step in self._steps():
            if step not in kept:
                # The marker goes first, so that a half-deleted checkpoint doesn't count.
                (self.path(step) / COMPLETE).unlink(missing_ok=True)
                shutil.rmtree(self.path(step), ignore_errors=True)
        self._sweep()

    def _sweep(self) -> None:
        """Remove what killed attempts to save have left. Called when nothing is saved."""
        for leftover in self.folder.glob(f".{_PREFIX}*.staging"):
            shutil.rmtree(leftover, ignore_errors=True)

    def load(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> LoopState:
        """Put a checkpoint's tensors into the model and the optimizer.

        Raises InputError when it was made from another base or other data, TrainerError when it doesn't fit the model.
        """
        path = self.path(step)
        document = json.loads((path / _STATE).read_text(encoding="utf-8"))
        since = f"the checkpoint of step {step} in {self.folder} was saved"
        if document.get("base") != self.origin.base:
            raise changed("the base model", since)
        if document.get("data") != self.origin.data:
            raise changed("the data or its preparation", since)
        weights, moments = get_state_dict(model, optimizer)
        state: dict[str, Any] = {"model": weights, "optimizer": moments}
        try:
            load(state, storage_reader=FileSystemReader(path), no_dist=True)
        except (RuntimeError, CheckpointException) as error:
            raise TrainerError(
                "CheckpointMismatch",
                f"{path} doesn't fit this model: it belongs to another run; use another workspace",
            ) from error
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        return LoopState(step=document["step"], tokens=document["tokens"])
