"""AdamW and its learning-rate schedules."""

import math

import torch
from torch import nn

from cloze_api.training import Optimization, Schedule

BETAS = (0.9, 0.98)
EPSILON = 1e-6


def learning_rate(settings: Optimization, step: int, total_steps: int) -> float:
    """Rate of the step with this index (from 0): a linear rise over the warm-up, then the schedule down to zero."""
    warmup = min(settings.warmup_steps, total_steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, total_steps - warmup)
    if settings.schedule is Schedule.CONSTANT:
        return settings.learning_rate
    if settings.schedule is Schedule.COSINE:
        return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))
    return settings.learning_rate * (1.0 - share)


def adamw(model: nn.Module, settings: Optimization) -> torch.optim.AdamW:
    """AdamW without decay on biases and normalisation."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    rest = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=BETAS,
        eps=EPSILON,
        fused=True,
    )
