"""Saves checkpoints beside the training: the state is copied at once, and made durable by a thread of its own."""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import MappingProxyType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from cloze_trainer.checkpoint import BEST, Checkpoints, LoopState, captured, is_sharded
from cloze_trainer.console import log
from cloze_trainer.errors import PeerLost, classify
from cloze_trainer.gang import Gang
from cloze_trainer.progress import ProgressFile

#: Reasons of failures that cost the checkpoint only: the training goes on from memory, and the last good one is kept.
_MISSED = ("DiskFull", "CheckpointNotStored")
#: How long a store that is away is tried again when nothing else is left to do; a pod that is told to go has a minute.
_PATIENCE_SECONDS = 15.0


class Saver:
    """Rank 0's writer; on the other ranks it does nothing. At most one checkpoint is being written.

    A full volume, or a store that is away, costs the checkpoint only: it is logged and counted (`missed`). A store is
    tried again until the next checkpoint is due. Any other error is kept, `failed`
    tells it, and `settle` or `check` ends all ranks with it. Leaving the block waits for the write that is in flight.
    durable: step of the newest durable checkpoint. blocked_seconds: how long the training waited for copies and writes.
    """

    def __init__(self, checkpoints: Checkpoints, gang: Gang, progress: ProgressFile, durable: int | None) -> None:
        self._checkpoints, self._gang, self._progress = checkpoints, gang, progress
        self.durable = durable
        self.blocked_seconds, self.missed = 0.0, 0
        self._error: BaseException | None = None
        self._buffers: dict[str, Any] | None = None
        self._flight: tuple[int, Future[float]] | None = None
        self._give_up = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.wait()
        self._thread.shutdown()

    @property
    def failed(self) -> bool:
        """Whether a write has failed in a way that ends the run."""
        self._collect(wait=False)
        return self._error is not None

    def save(
        self,
        state: LoopState,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        best: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Copy the state and begin to write it, after the write before has ended. Nothing when it is durable already.

        All ranks call it. Model and optimizer may change as soon as this returns; the best step's weights may not.
        """
        began = time.monotonic()
        # What is to be saved now is worth more than what a store hasn't taken so far.
        self._give_up.set()
        self._collect(wait=True)
        # The others wait here, and not in a collective of the training, whose patience is shorter.
        due = self._gang.from_leader(self.durable != state.step and self._error is None)
        if due and (self._gang.leads or is_sharded(model)):
            self._buffers = captured(model, optimizer, self._buffers)
        if not self._gang.leads:
            return
        if due:
            assert self._buffers is not None
            self._give_up = threading.Event()
            tensors = {**self._buffers, BEST: best} if best else self._buffers
            self._flight = (state.step, self._thread.submit(self._write, state, tensors, self._give_up))
        self._waited(began)

    def wait(self) -> None:
        """Wait until the write in flight, if any, has ended."""
        began = time.monotonic()
        if self._flight is not None:
            wait([self._flight[1]], timeout=_PATIENCE_SECONDS)
            self._give_up.set()
        self._collect(wait=True)
        self._waited(began)

    def go_back(self, max_rise: float, tried: int | None) -> int | None:
        """Wait for the write in flight, and drop what was saved since the training was sound; all ranks call it.

        tried: as in Checkpoints. Returns the step of the checkpoint to go on from, the same on all ranks; None when
        there is none.
        """
        self.settle()
        back: int | None = self._gang.from_leader(
            self._checkpoints.go_back(max_rise, tried) if self._gang.leads else None
        )
        self.durable = back
        return back

    def settle(self) -> None:
        """Wait for the write in flight; all ranks call it. Raises its error on rank 0, and PeerLost on the others."""
        self.wait()
        self.check(self._gang.from_leader(self.failed))

    def check(self, failed: float) -> None:
        """Raise when a rank's write has failed, as their sum tells."""
        if self._error is not None:
            raise self._error
        if failed:
            raise PeerLost("rank 0 could not save a checkpoint, and tells why")

    def _waited(self, began: float) -> None:
        self.blocked_seconds += time.monotonic() - began
        self._progress.saving(blocked_seconds=self.blocked_seconds, missed=self.missed)

    def _write(self, state: LoopState, tensors: dict[str, Any], give_up: threading.Event) -> float:
        began = time.monotonic()
        self._checkpoints.write(state, tensors, give_up)
        return time.monotonic() - began

    def _collect(self, *, wait: bool) -> None:
        """Take note of how the write in flight ended. All of it happens on the training's thread."""
        if self._flight is None or not (wait or self._flight[1].done()):
            return
        (step, future), self._flight = self._flight, None
        error = future.exception()
        if error is None:
            self.durable = step
            self._progress.checkpoint(step, future.result())
        elif classify(error).reason in _MISSED:
            self.missed += 1
            log("checkpoint left out", step=step, why=classify(error).message, missed=self.missed)
        else:
            self._error = error
