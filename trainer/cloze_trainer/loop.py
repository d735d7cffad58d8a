"""The training loop, for both kinds of job.

Legend: a *step* is one update of the weights from one global batch; a *share* is a rank's part of that batch; a
*chunk* is what fits through the model at once. Everything random is seeded from (seed, batch, rank), so a step depends
only on the weights, the optimizer's state and which batch it is: with what is known of the training's health, that is
all a checkpoint holds. Batches are taken in order; those of a stretch that went wrong are passed over.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from torch import nn

from cloze_api.progress import ExitCode
from cloze_api.training import Optimization
from cloze_trainer.attendance import Attendance, Part
from cloze_trainer.best import Best
from cloze_trainer.checkpoint import Checkpoints, LoopState
from cloze_trainer.compiling import compiled
from cloze_trainer.console import log
from cloze_trainer.errors import Suspended, TrainerError
from cloze_trainer.gang import Gang
from cloze_trainer.gradient import Gradient, Gradients
from cloze_trainer.optimizer import build, learning_rate
from cloze_trainer.parallel import Replicated, Sharded, share_out
from cloze_trainer.profiling import Profiler
from cloze_trainer.progress import ProgressFile
from cloze_trainer.saving import Saver
from cloze_trainer.scaling import LossScale, overflowed
from cloze_trainer.selection import Selection
from cloze_trainer.stopping import StopSignal
from cloze_trainer.workload import CHUNK_TOKENS, Workload

_TRACK_EVERY_STEPS = 10


class Tracker(Protocol):
    """Takes figures during the training; never blocks, never fails."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of a step."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the loop works with.

    gradients: makes what computes them. chunk_tokens: more are known not to fit. selection: how a step is chosen, if
    one is.
    """

    gang: Gang
    checkpoints: Checkpoints
    progress: ProgressFile
    tracker: Tracker
    stop: StopSignal
    attendance: Attendance
    profiler: Profiler
    gradients: Callable[[Replicated | Sharded, Workload, Optimization, Gang], Gradients] = Gradient
    chunk_tokens: int = CHUNK_TOKENS
    selection: Selection | None = None

    def report(self, state: LoopState, total: int, loss: float, saver: Saver, figures: Mapping[str, float]) -> None:
        """Tell the launcher, and every few steps the tracker, what the last step gave.

        figures: of the step, by the names that the launcher knows; those that aren't finite are left out.
        """
        figures = {name: value for name, value in figures.items() if math.isfinite(value)}
        self.progress.figures(figures)
        self.progress.step(state.step, total, loss=loss if math.isfinite(loss) else None, tokens=state.tokens)
        self.progress.trouble(rollbacks=state.rollbacks, skipped=state.skipped, left_out=state.left_out)
        if state.step % _TRACK_EVERY_STEPS == 0 or state.step == total:
            values = {
                "loss": loss,
                "rollbacks": state.rollbacks,
                "left_out_updates": state.left_out,
                "missed_checkpoints": saver.missed,
                "chunk_tokens": state.chunk_tokens,
                "loss_scale": state.scale.value,
                **figures,
            }
            if (rate := self.progress.tokens_per_second) is not None:
                values["tokens_per_second"] = rate
            self.tracker.metrics(state.step, values)


def train(
    model: nn.Module, workload: Workload, optimization: Optimization, every_steps: int, around: Surroundings
) -> tuple[nn.Module, LoopState]:
    """Train to the end, from the newest checkpoint when there is one. Returns the model, trained, and where that was.

    every_steps: how often the state is saved. A training that diverges goes back to a checkpoint and passes over the
    batches since. Raises Suspended after a checkpoint when the stop signal came, TrainerError `Diverged` when going
    back is of no help, PeerLost's causes (RuntimeError of the process group), OSError when a checkpoint can't be
    written, but for a full volume, which costs that checkpoint only.
    """
    gang, progress, attendance = around.gang, around.progress, around.attendance
    clock, expected = workload.clock, workload.total_steps

    # --- state: fresh, or where the newest checkpoint stands
    trained = share_out(model, optimization.sharding, gang)
    optimizer = build(trained.module, optimization)
    gradient = around.gradients(trained, workload, optimization, gang)
    state = LoopState(step=0, tokens=0, scale=LossScale.first(optimization.arithmetic))
    best = Best(around.selection, gang)

    def load(step: int) -> LoopState:
        """The state of a checkpoint; what saved it may have multiplied in another arithmetic."""
        loaded = around.checkpoints.load(step, model, optimizer)
        return replace(loaded, scale=loaded.scale.suiting(optimization.arithmetic))

    resume = gang.from_leader(around.checkpoints.latest() if gang.leads else None)
    if resume is not None:
        state = load(resume)
        best.load(around.checkpoints, state)
        progress.checkpoint(state.step)
        if gang.leads:
            log("resumed", step=state.step)

    state = replace(state, chunk_tokens=min(state.chunk_tokens, around.chunk_tokens))
    workload.chunk_tokens = state.chunk_tokens
    progress.step(state.step, expected, loss=None, tokens=state.tokens)
    own_loss, weight, unseen = 0.0, 1.0, False
    norm = padding = waited = rate = 0.0
    most = gang.peak_flops(optimization.arithmetic)
    trained.module.train()

    # The saver's end comes first, so that a stop is answered once what is in flight is durable.
    with (
        around.stop.deferred(),
        Saver(around.checkpoints, gang, progress, resume) as saver,
        attendance,
        around.profiler,
        compiled(trained.model, wanted=optimization.compile),
    ):
        while True:
            # --- one small sum tells all ranks the batch's weight, who was asked to stop, and the last step's loss
            step, last_weight = state.step, weight
            last = clock.over(step, state.tokens)
            over = last or best.over(state.choice)
            # The last step is evaluated, too, where it may not be the one that is taken.
            due = step > state.evaluated and (bool(around.selection) if last else workload.evaluate_after(step))
            if not due:
                around.profiler.at(step)
            done = clock.share(step, state.tokens)
            share = partial(workload.share, state.batch, gang.rank, gang.world, done)
            began = time.monotonic()
            attendance.at(step, Part.DATA)
            chunks = () if over or due else share()
            waited += time.monotonic() - began
            attendance.at(step, Part.BATCH)
            weight, tokens, places, stop, loss_sum, failed, smaller = gang.sum(
                sum(chunk.weight for chunk in chunks),
                sum(chunk.tokens for chunk in chunks),
                sum(chunk.places for chunk in chunks),
                around.stop.requested,
                own_loss,
                saver.failed,
                workload.chunk_tokens < state.chunk_tokens,
            )
            attendance.rest()
            saver.check(failed)
            if smaller:
                # What fits on one rank is right for all, and for whoever goes on from a checkpoint.
                workload.chunk_tokens = int(gang.least(workload.chunk_tokens))
                state = replace(state, chunk_tokens=workload.chunk_tokens)
                chunks = () if over or due else share()
            if unseen:
                # A batch in which nothing was to be predicted tells nothing.
                unseen, loss = False, loss_sum / last_weight if last_weight else math.nan
                state = replace(state, health=state.health.seen(loss))
                figures = {
                    "gradient_norm": norm,
                    "padding_share": padding,
                    "data_wait_seconds": waited,
                    "checkpoint_blocked_seconds": saver.blocked_seconds,
                    "memory_bytes": gang.memory_bytes(),
                    "learning_rate": rate,
                }
                if most and progress.tokens_per_second:
                    figures["flops_share"] = progress.tokens_per_second * workload.flops_per_token / most
                around.report(state, step if over else max(expected, step + 1), loss, saver, figures)
            padding = 1 - tokens / places if places else 0.0

            # --- what to do about it: go back and pass over what went wrong, end, save, stop, evaluate
            if trouble := state.health.trouble(optimization.max_loss_rise):
                if state.rollbacks >= optimization.max_rollbacks:
                    raise _diverged(trouble, state)
                back = saver.go_back(optimization.max_loss_rise, state.retreat)
                if back is None:
                    raise _diverged(trouble, state)
                if gang.leads:
                    log("rolled back", step=step, to=back, why=trouble, skipped=step - back)
                state = state.rolled_back(load(back))
                best.load(around.checkpoints, state)
                workload.chunk_tokens = state.chunk_tokens
                progress.checkpoint(back)
                continue
            if over and not due:
                break
            if step and step % every_steps == 0 and not (state.health.left_out or due):
                saver.save(state, model, optimizer, best.weights)
            if stop:
                saver.save(state, model, optimizer, best.weights)
                saver.settle()
                kept = "rank 0 saves the checkpoint"
                if gang.leads:
                    kept = "its checkpoint is durable"
                    if saver.durable != step:
                        kept = f"it could not be saved: the newest checkpoint is that of step {saver.durable or 0}"
                raise Suspended(f"stopped by a signal after step {step}; {kept}")
            if due:
                whole = trained.whole()
                measured = workload.evaluate(whole, gang, lambda: around.stop.requested)
                trained.module.train()
                # What was broken off is made when the run goes on.
                if measured is not None:
                    around.tracker.metrics(step, measured)
                    progress.evaluated(measured)
                    choice = best.after(state.choice, step, measured, whole)
                    state = replace(state, choice=choice, evaluated=step)
                    if best.over(choice):
                        progress.over(step)
                continue

            # --- gradient of the mean loss over the global batch; once more where a scaled loss was too much for fp16
            rate = learning_rate(
                optimization,
                clock,
                clock.reading(step, state.tokens),
                clock.reading(step + 1, state.tokens + int(tokens)),
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            attendance.at(step, Part.GRADIENT)
            scale, unseen = state.scale, True
            while True:
                own_loss = gradient.add(chunks, share, state.batch, weight, scale.value)
                norm = trained.clip(optimization.gradient_clip)
                if math.isfinite(norm) or not overflowed(scale, norm, *gang.sum(own_loss)):
                    break
                optimizer.zero_grad()
                scale = scale.fallen()
                if gang.leads:
                    log("loss scale lowered", step=step, to=scale.value)

            # --- update; the averaged gradient is the same on all ranks, and so is the decision to leave it out
            if finite := math.isfinite(norm):
                optimizer.step()
                scale = scale.updated()
            elif gang.leads:
                log("update left out", step=step, why="the gradient isn't finite")
            optimizer.zero_grad()
            state = replace(
                state,
                step=step + 1,
                tokens=state.tokens + int(tokens),
                health=state.health.updated(finite=finite),
                scale=scale,
                left_out=state.left_out + (not finite),
            )
            attendance.rest()

        whole = trained.whole()
        if not math.isfinite(float(sum(parameter.detach().double().sum() for parameter in whole.parameters()))):
            raise _diverged("the trained weights are not finite", state)
        saver.save(state, model, optimizer, best.weights)
        saver.settle()
    best.put_into(whole, state.choice)
    return whole, state


def _diverged(why: str, state: LoopState) -> TrainerError:
    tried = f", after {state.rollbacks} rollbacks" if state.rollbacks else ""
    return TrainerError(
        "Diverged",
        f"{why}, up to step {state.step}{tried}: lower optimization.learningRate, raise warmupSteps, or lower "
        "gradientClip",
        ExitCode.DIVERGED,
    )
