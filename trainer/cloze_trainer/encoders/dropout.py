"""Dropout (Srivastava et al. 2014) whose noise costs next to nothing on a processor.

torch draws one number after the other on one thread, which was an eighth of a training step.
"""

from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor, nn

#: As many bits of noise decide on each number.
_BITS: Final = 16
_STEPS: Final = 1 << _BITS


class Dropout(nn.Dropout):
    """nn.Dropout, with a probability that is rounded to 1/65536 on processors. The noise follows from torch's seed."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """Values of the same shape, of which some are 0 and the others larger, while training."""
        # A compiler knows torch's own, and makes it part of what is around it.
        if not self.training or not self.p or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        # One number of torch's, so that whatever keeps and restores its state has the same noise.
        seed = int(torch.randint(1 << 62, ()))
        return cast(Tensor, _Noise.apply(input, seed, min(round(self.p * _STEPS), _STEPS - 1)))


class _Noise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, seed: int, dropped: int) -> Tensor:
        count = values.numel()
        # Raw words, whose stream NumPy guarantees to stay the same from release to release.
        words = np.random.SFC64(seed).random_raw(-(-count * _BITS // 64))
        kept = torch.from_numpy(words.view(np.uint16)[:count] >= dropped).view(values.shape)
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - dropped / _STEPS)
        return (values * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.scale), None, None
