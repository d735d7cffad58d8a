"""Optimizers and their learning-rate schedules."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict

from cloze_api.training import Algorithm, Optimization, Schedule
from cloze_trainer.clock import Clock


def learning_rate(settings: Optimization, clock: Clock, before: int, after: int) -> float:
    """Rate of a step before and after which the clock reads so: a linear rise over the warm-up, then the schedule."""
    warmup = min(clock.warmup, clock.total)
    if before < warmup:
        return settings.learning_rate * min(1.0, after / warmup)
    return settings.learning_rate * _factor(settings, (before - warmup) / max(1, clock.total - warmup))


def _factor(settings: Optimization, share: float) -> float:
    """What part of the full rate is left after this share of what follows the warm-up."""
    if settings.schedule is Schedule.CONSTANT:
        return 1.0
    if settings.schedule is Schedule.COSINE:
        return 0.5 * (1.0 + math.cos(math.pi * share))
    if settings.schedule is Schedule.WSD:
        # Stable, then falling as 1 - √x (Hägele et al. 2024, arXiv:2405.18392, section 3).
        return 1.0 - math.sqrt(max(0.0, share - 1.0 + settings.decay_share) / settings.decay_share)
    return 1.0 - share


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that a training changes; beside small matrices the encoder's own stay."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def build(model: nn.Module, settings: Optimization) -> torch.optim.AdamW:
    """The optimizer of what is trained of a model, without decay on biases and normalisation.

    It has its state already, which counts no update: what is tried in the memory that is left fits beside it.
    """
    decayed = [parameter for parameter in trained(model) if parameter.dim() > 1]
    rest = [parameter for parameter in trained(model) if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    options: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
    }
    if settings.algorithm is Algorithm.STABLE_ADAMW:
        optimizer: torch.optim.AdamW = StableAdamW(groups, **options, foreach=False)
    else:
        optimizer = torch.optim.AdamW(groups, **options, fused=True)
    # torch makes a state by an update of nothing, which must not count as one.
    get_state_dict(model, optimizer)
    for each in optimizer.state.values():
        each["step"].zero_()
    return optimizer


class StableAdamW(torch.optim.AdamW):
    """AdamW whose steps are clipped where the second moment lags (Wortsman et al. 2023, arXiv:2304.13013, algorithm 2).

    A tensor's learning rate is divided by max(1, √mean(g² / max(v, ε²))), with the gradient g and the bias-corrected
    second moment v. The state is AdamW's, so that a checkpoint of one fits the other.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        assert closure is None, "the gradients are there already"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            # As AdamW's own: a checkpoint has them under these names.
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        count, (beta1, beta2), epsilon = float(state["step"]), group["betas"], group["eps"]
        first = state["exp_avg"].lerp_(gradient, 1 - beta1) / (1 - beta1**count)
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2) / (1 - beta2**count)
        least = max(epsilon**2, torch.finfo(second.dtype).tiny)
        excess = (gradient.square() / second.clamp(min=least)).mean().sqrt()
        # A tensor still: as a number it would wait for the GPU, once for each parameter.
        rate = group["lr"] / excess.clamp(min=1.0)
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.sub_(rate * first / second.sqrt().add_(epsilon))
