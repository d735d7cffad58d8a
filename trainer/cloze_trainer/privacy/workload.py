"""A fine-tuning whose steps are on examples drawn at random, each by itself, as the accountant takes for granted."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cloze_api.pretrain import PretrainJobSpec
from cloze_api.training import Optimization
from cloze_trainer.clock import Clock
from cloze_trainer.console import log
from cloze_trainer.data.labelled import IGNORED
from cloze_trainer.finetune import FineTuning
from cloze_trainer.gang import Gang
from cloze_trainer.parallel import Replicated, Sharded
from cloze_trainer.pretrain import Pretraining
from cloze_trainer.privacy import budget, secret
from cloze_trainer.privacy.budget import Budget
from cloze_trainer.privacy.gradient import PrivateGradient
from cloze_trainer.run import Run
from cloze_trainer.workload import Chunk, Workload


class Private:
    """A Workload: the given one's examples, each a chunk of its own, whose number is left to chance."""

    def __init__(self, inner: FineTuning, budget: Budget, key: bytes) -> None:
        """key: of all that is random."""
        self.inner, self.budget, self._key = inner, budget, key
        # One example at a time: each has its own gradient.
        self.chunk_tokens = 1

    @property
    def total_steps(self) -> int:
        """As many as the budget is for."""
        return self.budget.steps

    @property
    def clock(self) -> Clock:
        """As the inner one's."""
        return self.inner.clock

    @property
    def flops_per_token(self) -> float:
        """As the inner one's."""
        return self.inner.flops_per_token

    def share(self, batch: int, rank: int, world: int, done: float) -> Sequence[Chunk]:  # noqa: ARG002 - no matter here
        """A rank's part of those that a step's lot has fallen on; a stand-in of weight 0 where it has none."""
        own = secret.sample(self._key, batch, len(self.inner.train), self.budget.rate)[rank::world]
        if len(own):
            return [self.inner.chunk(own[at : at + 1]) for at in range(len(own))]
        chunk = self.inner.chunk(torch.zeros(1, dtype=torch.int64).numpy())
        return [replace(chunk, targets=torch.full_like(chunk.targets, IGNORED), weight=0, tokens=0)]

    def loss_sum(self, model: nn.Module, chunk: Chunk) -> Tensor:
        """As the inner one's."""
        return self.inner.loss_sum(model, chunk)

    def evaluate(
        self, model: nn.Module, gang: Gang, stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """As the inner one's."""
        return self.inner.evaluate(model, gang, stopped)

    def evaluate_after(self, step: int) -> bool:
        """As the inner one's."""
        return self.inner.evaluate_after(step)

    def gradient(
        self, trained: Replicated | Sharded, workload: Workload, optimization: Optimization, gang: Gang
    ) -> PrivateGradient:
        """What the loop computes gradients with."""
        expected = self.budget.rate * len(self.inner.train)
        return PrivateGradient(
            trained, workload, optimization, gang, budget=self.budget, key=self._key, expected=expected
        )

    @staticmethod
    def careful(optimization: Optimization) -> Optimization:
        """Without going back: steps that went wrong have spent what they have, and there is no more for others."""
        return optimization.model_copy(update={"max_rollbacks": 0})

    def figures(self, steps: int) -> dict[str, float]:
        """What so many steps have spent."""
        return {
            "epsilon_spent": self.budget.spent(steps),
            "epsilon_budget": self.budget.asked.epsilon,
            "delta": self.budget.asked.delta,
            "noise_multiplier": self.budget.noise,
        }


def begin(run: Run, workload: FineTuning | Pretraining, gang: Gang) -> Private | None:
    """The workload under its budget; None where none is asked for. Raises InputError where it can't hold."""
    spec = run.job.spec
    if isinstance(spec, PretrainJobSpec) or isinstance(workload, Pretraining) or spec.privacy is None:
        return None
    found = None
    if gang.leads:
        size = {"examples": len(workload.train), "batch": spec.optimization.batch_sequences}
        planned = budget.plan(spec.privacy, **size, steps=workload.total_steps)
        found = planned, secret.obtain(_key_file(run))
        log("private training", rate=planned.rate, noise=planned.noise, epsilon=planned.spent(planned.steps))
    planned, key = gang.from_leader(found)
    return Private(workload, planned, key)


def forget(run: Run) -> None:
    """The run's model is done: nobody needs its key any more."""
    secret.forget(_key_file(run))


def _key_file(run: Run) -> Path:
    return run.workspace / "privacy.key"
