"""The training loop, for both kinds of job.

Legend: a *step* is one update of the weights from one global batch; a *share* is a rank's part of that batch; a
*chunk* is what fits through the model at once. Everything random is seeded from (seed, step, rank), so a step depends
only on the weights, the optimizer's state and its own number: that is all a checkpoint holds.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cloze_api.progress import ExitCode
from cloze_api.training import Optimization
from cloze_trainer.checkpoint import Checkpoints, LoopState
from cloze_trainer.console import log
from cloze_trainer.data.order import generator
from cloze_trainer.errors import Suspended, TrainerError
from cloze_trainer.gang import Gang
from cloze_trainer.optimizer import adamw, learning_rate
from cloze_trainer.progress import ProgressFile
from cloze_trainer.saving import Saver
from cloze_trainer.stopping import StopSignal

# Tokens that go through the model at once, padding included.
CHUNK_TOKENS = 16_384
# Updates in a row that may be left out because the gradient isn't finite.
NON_FINITE_BUDGET = 3
_TRACK_EVERY_STEPS = 10
_DROPOUT_DOMAIN = 4


@dataclass(frozen=True, slots=True)
class Chunk:
    """Input tensors of one forward pass.

    targets: classes of what is predicted. weight: how many predictions it counts for; 0 for a stand-in of a rank
    without a share. tokens: real tokens.
    """

    inputs: tuple[Tensor | None, ...]
    targets: Tensor
    weight: int
    tokens: int


class Workload(Protocol):
    """What is trained, on what."""

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""

    def share(self, step: int, rank: int, world: int) -> Sequence[Chunk]:
        """A rank's part of a step's batch; at least one chunk."""

    def loss_sum(self, model: nn.Module, chunk: Chunk) -> Tensor:
        """Sum of the losses (nats) of a chunk's predictions."""

    def evaluate(self, model: nn.Module, gang: Gang) -> dict[str, float]:
        """Figures over the evaluation data, the same on every rank."""

    def evaluate_after(self, step: int) -> bool:
        """Whether to evaluate within the training once this many steps are done."""


class Tracker(Protocol):
    """Takes figures during the training; never blocks, never fails."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of a step."""


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators for one step of one rank: dropout needs no state in the checkpoint then."""
    torch.manual_seed(int(generator(seed, _DROPOUT_DOMAIN, step, rank).integers(1 << 63)))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the loop works with."""

    gang: Gang
    checkpoints: Checkpoints
    progress: ProgressFile
    tracker: Tracker
    stop: StopSignal

    def report(self, step: int, total: int, loss: float, tokens: int, saver: Saver) -> None:
        """Tell the launcher, and every few steps the tracker, what the step before this one gave."""
        self.progress.step(step, total, loss=loss if math.isfinite(loss) else None, tokens=tokens)
        if step % _TRACK_EVERY_STEPS == 0 or step == total:
            values = {
                "loss": loss,
                "checkpoint_blocked_seconds": saver.blocked_seconds,
                "checkpoints_missed": saver.missed,
            }
            if (rate := self.progress.tokens_per_second) is not None:
                values["tokens_per_second"] = rate
            self.tracker.metrics(step, values)


def train(
    model: nn.Module, workload: Workload, optimization: Optimization, every_steps: int, around: Surroundings
) -> None:
    """Train to the last step, from the newest checkpoint when there is one; the weights change in place.

    every_steps: how often the state is saved. Raises Suspended after a checkpoint when the stop signal came,
    TrainerError `Diverged` when the gradient stays non-finite, PeerLost's causes (RuntimeError of the process group),
    OSError when a checkpoint can't be written, but for a full volume, which costs that checkpoint only.
    """
    gang, progress = around.gang, around.progress
    total = workload.total_steps

    # --- state: fresh, or where the newest checkpoint stands
    trained = cast(DistributedDataParallel, gang.distributed(model))
    optimizer = adamw(trained, optimization)
    state = LoopState(step=0, tokens=0)
    resume = gang.from_leader(around.checkpoints.latest() if gang.leads else None)
    if resume is not None:
        state = around.checkpoints.load(resume, model, optimizer)
        progress.checkpoint(state.step)
        if gang.leads:
            log("resumed", step=state.step)

    first = state.step
    progress.step(state.step, total, loss=None, tokens=state.tokens)
    own_loss, weight, non_finite = 0.0, 1.0, 0
    trained.train()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    # The saver's end comes first, so that a stop is answered once what is in flight is durable.
    with around.stop.deferred(), Saver(around.checkpoints, gang, progress, resume) as saver:
        while state.step < total:
            # --- one small sum tells all ranks the batch's weight, who was asked to stop, and the last step's loss
            step = state.step
            chunks = workload.share(step, gang.rank, gang.world)
            previous_weight = weight
            weight, tokens, stop, loss_sum, failed = gang.sum(
                sum(chunk.weight for chunk in chunks),
                sum(chunk.tokens for chunk in chunks),
                around.stop.requested,
                own_loss,
                saver.failed,
            )
            saver.check(failed)
            if step > first:
                around.report(step, total, loss_sum / max(1.0, previous_weight), state.tokens, saver)
            if stop:
                saver.save(state, model, optimizer)
                saver.settle()
                kept = "rank 0 saves the checkpoint"
                if gang.leads:
                    kept = "its checkpoint is durable"
                    if saver.durable != step:
                        kept = f"the volume was full: the newest checkpoint is that of step {saver.durable or 0}"
                raise Suspended(f"stopped by a signal after step {step}; {kept}")

            # --- gradient: DDP averages over ranks, so a rank's sum is scaled to give the mean over the global batch
            rate = learning_rate(optimization, step, total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            seed_step(optimization.seed, step, gang.rank)
            own = torch.zeros((), device=gang.device)
            for index, chunk in enumerate(chunks):
                last = index == len(chunks) - 1
                with nullcontext() if last else trained.no_sync():
                    loss = workload.loss_sum(trained, chunk)
                    (loss * (gang.world / max(1.0, weight))).backward()  # type: ignore[no-untyped-call]  # torch has no type here
                own += loss.detach()
            own_loss = float(own)

            # --- update; the averaged gradient is the same on all ranks, and so is the decision to leave it out
            norm = float(torch.nn.utils.clip_grad_norm_(trained.parameters(), optimization.gradient_clip))
            if math.isfinite(norm):
                optimizer.step()
                non_finite = 0
            else:
                non_finite += 1
                if gang.leads:
                    log("update left out", step=step, why="the gradient isn't finite")
                if non_finite >= NON_FINITE_BUDGET:
                    raise TrainerError(
                        "Diverged",
                        f"the gradient was not finite in {non_finite} steps in a row, up to step {step}: lower "
                        "optimization.learningRate, add warmupSteps, or lower gradientClip",
                        ExitCode.DIVERGED,
                    )
            optimizer.zero_grad()
            state = LoopState(step=step + 1, tokens=state.tokens + int(tokens))

            # --- now and then: evaluate, save
            if workload.evaluate_after(state.step) and state.step < total:
                around.tracker.metrics(state.step, workload.evaluate(model, gang))
                trained.train()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            if state.step % every_steps == 0 and state.step < total and not non_finite:
                saver.save(state, model, optimizer)

        if state.step > first:
            (loss_sum,) = gang.sum(own_loss)
            around.report(total, total, loss_sum / max(1.0, weight), state.tokens, saver)
        if not math.isfinite(float(sum(parameter.detach().double().sum() for parameter in model.parameters()))):
            raise TrainerError("Diverged", "the trained weights are not finite", ExitCode.DIVERGED)
        saver.save(state, model, optimizer)
        saver.settle()
