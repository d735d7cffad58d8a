"""A rank's part of a batch's gradient, in chunks that its memory holds."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor

from cloze_api.training import Optimization
from cloze_trainer.arithmetic import multiplying
from cloze_trainer.console import log
from cloze_trainer.data.order import generator
from cloze_trainer.errors import InputError
from cloze_trainer.gang import Gang
from cloze_trainer.memory import ChunkTooLarge
from cloze_trainer.parallel import Replicated, Sharded
from cloze_trainer.workload import Chunk, Workload

_DROPOUT_DOMAIN = 4


def seed_step(seed: int, batch: int, rank: int) -> None:
    """Seed torch's generators for one batch of one rank: dropout needs no state in the checkpoint then."""
    torch.manual_seed(int(generator(seed, _DROPOUT_DOMAIN, batch, rank).integers(1 << 63)))


class Gradients(Protocol):
    """What the loop computes gradients with."""

    def add(
        self,
        chunks: Sequence[Chunk],
        again: Callable[[], Sequence[Chunk]],
        batch: int,
        weight: float,
        scale: float = 1.0,
    ) -> float:
        """As Gradient's."""


class Gradient:
    """Adds up gradients over chunks, and over the ranks with the last of them.

    Where a rank survives that its memory is too small, chunks larger than any before are tried first, and what that
    gives is thrown away: no other rank is waiting then, and each may cut its share as it likes.
    """

    def __init__(
        self, trained: Replicated | Sharded, workload: Workload, optimization: Optimization, gang: Gang
    ) -> None:
        self._trained, self._workload, self._optimization, self._gang = trained, workload, optimization, gang
        self._places = self._weight = 0

    def add(
        self,
        chunks: Sequence[Chunk],
        again: Callable[[], Sequence[Chunk]],
        batch: int,
        weight: float,
        scale: float = 1.0,
    ) -> float:
        """Leave the gradient of the mean loss of a batch in the parameters. Returns the sum of this rank's losses.

        chunks: this rank's share. again: the share, with as many tokens at once as the workload has by then. weight: of
        the whole batch. scale: by which the loss is multiplied before the backward pass, and its gradient is divided.
        Raises InputError when a single sequence doesn't fit, and ChunkTooLarge where the others wait in its midst.
        """
        if self._gang.survives_out_of_memory and self._trained.survives_failed_chunks:
            chunks = self._fitting(chunks, again)
        chunks = self._trained.evened(chunks)
        seed_step(self._optimization.seed, batch, self._gang.rank)
        total = torch.zeros((), device=self._gang.device)
        for index, chunk in enumerate(chunks):
            # Gradients are averaged over the ranks, so that a rank's sum is scaled to give the mean.
            last = index == len(chunks) - 1
            with nullcontext() if last else self._trained.alone():
                try:
                    total += self._backward(chunk, scale * self._gang.world / max(1.0, weight))
                except torch.OutOfMemoryError as error:
                    raise ChunkTooLarge(self._gang.rank, chunk.places, self._halved(chunk)) from error
        if scale != 1.0:
            for parameter in self._trained.module.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(scale)
        return float(total)

    def _backward(self, chunk: Chunk, scale: float) -> Tensor:
        with multiplying(self._gang.device, self._optimization.arithmetic):
            loss = self._workload.loss_sum(self._trained.module, chunk)
        (loss * scale).backward()  # type: ignore[no-untyped-call]  # torch has no type here
        return loss.detach()

    def _fitting(self, chunks: Sequence[Chunk], again: Callable[[], Sequence[Chunk]]) -> Sequence[Chunk]:
        """This rank's share of the batch in chunks that go through the model; smaller ones if they must be."""
        at = 0
        while at < len(chunks):
            chunk = chunks[at]
            if (chunk.places <= self._places and chunk.weight <= self._weight) or self._fits(chunk):
                self._places, self._weight = max(self._places, chunk.places), max(self._weight, chunk.weight)
                at += 1
                continue
            self._workload.chunk_tokens = self._halved(chunk)
            log("chunks halved", rank=self._gang.rank, tokens=chunk.places, to=self._workload.chunk_tokens)
            chunks, at = again(), 0
        return chunks

    def _halved(self, chunk: Chunk) -> int:
        """How many tokens to try in place of a chunk that was too large."""
        if chunk.sequences == 1:
            raise InputError(
                "SequenceTooLarge",
                f"one sequence of {chunk.places} tokens doesn't fit into rank {self._gang.rank}'s memory: "
                "set optimization.activationCheckpointing, lower the maximum length, or use a smaller model or a "
                "larger GPU",
            )
        return chunk.places // 2

    def _fits(self, chunk: Chunk) -> bool:
        """Whether memory is enough for a chunk's gradient, of which nothing is kept."""
        try:
            with self._trained.alone():
                self._backward(chunk, 1.0)
            fits = True
        except torch.OutOfMemoryError:
            fits = False
        self._trained.module.zero_grad()
        if not fits:
            torch.cuda.empty_cache()
        return fits
