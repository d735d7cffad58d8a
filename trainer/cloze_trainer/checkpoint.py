"""Training state that outlives the process: the newest checkpoint that is complete and intact counts.

Every rank holds the same state (data parallelism), so rank 0 alone writes. That the write failed reaches the others
as rank 0's end.
"""

import errno
import json
import os
import shutil
import threading
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from cloze_trainer.console import log
from cloze_trainer.errors import TrainerError
from cloze_trainer.files import Damaged, write_json
from cloze_trainer.health import Health
from cloze_trainer.origin import Origin, changed
from cloze_trainer.scaling import LossScale
from cloze_trainer.selection import Choice
from cloze_trainer.volume import Store, Volume, folder_name
from cloze_trainer.workload import CHUNK_TOKENS

_STATE = "state.json"
BEST = "best"
"""Of the best step's weights, in what is written."""


@dataclass(frozen=True, slots=True)
class LoopState:
    """Where the loop stands.

    step: optimizer steps done. tokens: real tokens trained on, over all ranks. skipped: batches that were passed over.
    rollbacks: how often, the last time to the step `retreat`. health: what the steps so far tell.
    chunk_tokens: how many go through the model at once, which were more before memory was too small for them.
    scale: of the loss. choice: the best step so far, where one is selected; its weights lie beside the last step's.
    evaluated: the last step that was. left_out: updates that were, of all steps.
    """

    step: int
    tokens: int
    skipped: int = 0
    rollbacks: int = 0
    retreat: int | None = None
    health: Health = field(default_factory=Health)
    chunk_tokens: int = CHUNK_TOKENS
    scale: LossScale = field(default_factory=LossScale)
    choice: Choice | None = None
    evaluated: int = 0
    left_out: int = 0

    @property
    def batch(self) -> int:
        """Which global batch is next."""
        return self.step + self.skipped

    def rolled_back(self, before: "LoopState") -> "LoopState":
        """Where to go on from an earlier state, over the batches since."""
        return replace(
            before,
            skipped=self.batch - before.step,
            rollbacks=self.rollbacks + 1,
            retreat=before.step,
            health=before.health.restarted(),
            chunk_tokens=min(self.chunk_tokens, before.chunk_tokens),
            left_out=self.left_out,
        )

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "LoopState":
        """From a checkpoint's file; what older ones don't have is as at the beginning."""
        health = document.get("health", {})
        return cls(
            step=document["step"],
            tokens=document["tokens"],
            skipped=document.get("skipped", 0),
            rollbacks=document.get("rollbacks", 0),
            retreat=document.get("retreat"),
            health=Health(**{**health, "losses": tuple(health.get("losses", ()))}),
            chunk_tokens=document.get("chunk_tokens", CHUNK_TOKENS),
            scale=LossScale(**document.get("scale", {})),
            choice=Choice(**document["choice"]) if document.get("choice") else None,
            # Older ones were written after the evaluation of their step.
            evaluated=document.get("evaluated", document["step"]),
            left_out=document.get("left_out", 0),
        )


# One process saves and loads, which is meant.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def captured(model: nn.Module, optimizer: torch.optim.Optimizer, into: Any = None) -> dict[str, Any]:
    """A copy of the weights and the optimizer's state in host memory.

    All ranks call it for a model that is in parts, and rank 0 alone gets the copy. into: a former copy, whose memory is
    used again where shapes and types are the same.
    """
    gathered = StateDictOptions(full_state_dict=True, cpu_offload=True) if is_sharded(model) else None
    weights, moments = get_state_dict(model, optimizer, options=gathered)
    # What is gathered may still share memory with what is trained, such as the count of steps.
    copy: dict[str, Any] = _copied({"model": weights, "optimizer": moments}, into)
    return copy


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank has a part of it."""
    return isinstance(model, FSDPModule)


def _whole(value: Any) -> Any:
    """The same with room for whole tensors in host memory in place of parts."""
    if isinstance(value, DTensor):
        return torch.empty(value.shape, dtype=value.dtype)
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return value


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
    """The checkpoints of one run; `keep` of them are kept.

    folder: where they are staged, and where they stay unless `store` is another place.
    origin: what the run is made from. A checkpoint holds it, and is continued with nothing else: the same bytes would
    mean other tokens, or the same numbers other labels.
    """

    def __init__(self, folder: Path, keep: int, origin: Origin, store: Store | None = None) -> None:
        self.folder, self.keep, self.origin = folder, keep, origin
        self._here = Volume(folder)
        self._store = store or self._here
        # Steps that were found to be, by whoever looked for one to go on from.
        self._damaged: set[int] = set()

    def latest(self) -> int | None:
        """Step of the newest checkpoint that is complete and intact; damaged ones are passed over with a warning."""
        for step in self._store.steps():
            try:
                self._open(step)
            except Damaged as damage:
                log("checkpoint skipped", step=step, why=str(damage))
                continue
            return step
        return None

    def _open(self, step: int) -> Path:
        """A folder with the step's files. Raises Damaged, and remembers that."""
        try:
            return self._store.open(step)
        except Damaged:
            self._damaged.add(step)
            raise

    def write(self, state: LoopState, tensors: dict[str, Any], give_up: threading.Event | None = None) -> None:
        """Make what was captured durable, then drop the oldest.

        give_up: set when a store that is away need not be tried again. Without room nothing is begun (ENOSPC), so that
        the last good ones stay as they are. Raises OSError, torch's CheckpointException, or TrainerError.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # There may be room for no more than is kept and this one: what a killed attempt left would be in the way of it,
        # and of all that come after it.
        self._drop(self._here, state.step)
        needed, free = size_bytes(tensors), shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"a checkpoint takes {needed:,} bytes, and {free:,} are free", str(self.folder))
        staging = self.folder / f".{folder_name(state.step)}.staging"
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
            write_json(staging / _STATE, asdict(state) | asdict(self.origin))
            self._store.publish(state.step, staging, give_up or threading.Event())
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._damaged.discard(state.step)
        try:
            self._drop(self._store, state.step)
        except TrainerError as error:
            # What was written is durable; the next one prunes.
            log("old checkpoints not removed", why=error.message)

    def _drop(self, store: Store, newest: int) -> None:
        """Remove all but the newest good ones, and what killed attempts to save or to remove have left. Called when
        nothing is saved.

        newest: what is being written. Later ones were damaged, or the run wouldn't have gone on from before them.
        """
        good = [step for step in store.finished() if step <= newest and step not in self._damaged]
        for step in store.steps():
            if step not in good[: self.keep]:
                store.remove(step)
        store.clear()

    def load(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> LoopState:
        """Put a checkpoint's tensors into the model and the optimizer.

        Raises InputError when it was made from another base or other data, TrainerError when it doesn't fit the model.
        """
        path = self._store.open(step)
        document = _document(path)
        since = f"the checkpoint of step {step} in {self.folder} was saved"
        if document.get("base") != self.origin.base:
            raise changed("the base model", since)
        if document.get("data") != self.origin.data:
            raise changed("the data or its preparation", since)
        weights, moments = get_state_dict(model, optimizer)
        state: dict[str, Any] = _whole({"model": weights, "optimizer": moments})
        try:
            load(state, storage_reader=FileSystemReader(path), no_dist=True)
        except (RuntimeError, CheckpointException) as error:
            raise TrainerError(
                "CheckpointMismatch",
                f"{path} doesn't fit this model: it belongs to another run; use another workspace",
            ) from error
        set_state_dict(
            model,
            optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(full_state_dict=is_sharded(model)),
        )
        return LoopState.read(document)

    def best(self, state: LoopState) -> dict[str, Tensor]:
        """The best step's weights, which the checkpoint of this state has; none where none was selected."""
        if state.choice is None:
            return {}
        reader = FileSystemReader(self._store.open(state.step))
        found = {
            name.removeprefix(f"{BEST}."): torch.empty(stored.size, dtype=stored.properties.dtype)
            for name, stored in reader.read_metadata().state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata) and name.startswith(f"{BEST}.")
        }
        load({BEST: found}, storage_reader=reader, no_dist=True)
        return found

    def go_back(self, max_rise: float, tried: int | None) -> int | None:
        """Find the newest intact checkpoint of a sound training, or else the oldest; the newer ones are removed.

        tried: the step that was gone back to before, of no help if nothing sound came after it. Called when nothing is
        saved. Returns a step; None when there is no checkpoint.
        """
        back = None
        for step in self._store.steps():
            try:
                state = LoopState.read(_document(self._open(step)))
            except Damaged:
                continue
            back = step
            if step != tried and state.health.sound(max_rise):
                break
        for step in self._store.steps():
            # The newest goes first: whoever is killed here finds one that leads to the same decision.
            if back is not None and step > back:
                self._store.remove(step)
        return back


def _document(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((path / _STATE).read_text(encoding="utf-8"))
    return document
