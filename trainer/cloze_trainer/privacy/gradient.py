"""Gradients of which no example has more than its share, and noise over their sum."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from cloze_api.training import Optimization
from cloze_trainer.arithmetic import multiplying
from cloze_trainer.gang import Gang
from cloze_trainer.gradient import seed_step
from cloze_trainer.optimizer import trained as trained_of
from cloze_trainer.parallel import Replicated, Sharded
from cloze_trainer.privacy import secret
from cloze_trainer.privacy.budget import Budget
from cloze_trainer.workload import Chunk, Workload


class PrivateGradient:
    """In the place of Gradient: one backward pass for each example, each cut to the largest norm.

    The sum over all ranks gets the noise, and is divided by how many examples a step has on average: how many it has
    really is nobody's business.
    """

    def __init__(
        self,
        trained: Replicated | Sharded,
        workload: Workload,
        optimization: Optimization,
        gang: Gang,
        *,
        budget: Budget,
        key: bytes,
        expected: float,
    ) -> None:
        """expected: how many examples a step has on average."""
        assert isinstance(trained, Replicated), "a model in parts was refused before"
        assert not optimization.max_rollbacks, "as Private.careful has it"
        self._trained, self._workload, self._optimization, self._gang = trained, workload, optimization, gang
        self._budget, self._key, self._expected = budget, key, expected
        self._parameters = trained_of(trained.model)

    def add(
        self,
        chunks: Sequence[Chunk],
        again: Callable[[], Sequence[Chunk]],  # noqa: ARG002 - as Gradient's
        batch: int,
        weight: float,  # noqa: ARG002 - as Gradient's
        scale: float = 1.0,
    ) -> float:
        """As Gradient's: leave the gradient in the parameters. Returns the sum of this rank's losses."""
        assert scale == 1.0, "fp16 was refused before"
        gang, most = self._gang, self._budget.asked.max_grad_norm
        losses: list[float] = []

        def each() -> Iterator[Tensor]:
            for chunk in chunks:
                if chunk.weight:
                    with multiplying(gang.device, self._optimization.arithmetic):
                        loss = self._workload.loss_sum(self._trained.module, chunk)
                    losses.append(float(loss.detach()))
                    # Of an example's words the mean: long ones would be cut more than short ones.
                    yield loss / chunk.weight

        seed_step(self._optimization.seed, batch, gang.rank)
        with self._trained.alone():
            own = clipped_sum(self._parameters, each(), most)
        summed = gang.sum_array(own)
        summed += self._budget.noise * most * torch.from_numpy(secret.noise(self._key, batch, len(summed)))
        parts = torch.split((summed / self._expected).to(gang.device), [each.numel() for each in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()
        return sum(losses)


def clipped_sum(parameters: Sequence[nn.Parameter], losses: Iterable[Tensor], most: float) -> Tensor:
    """Sum (flat, in the order of the parameters) of the losses' gradients, each scaled down to the norm `most`.

    One that isn't finite has no direction, and is left out: the step is as private without it.
    """
    total = torch.zeros(sum(each.numel() for each in parameters), device=parameters[0].device)
    _forget(parameters)
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no type here
        own = torch.cat([_flat(each) for each in parameters])
        norm = float(own.norm())
        if 0 < norm < math.inf:
            total += own * min(1.0, most / norm)
        _forget(parameters)
    return total


def _forget(parameters: Sequence[nn.Parameter]) -> None:
    for each in parameters:
        each.grad = None


def _flat(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.numel(), device=parameter.device)
    return parameter.grad.detach().flatten()
