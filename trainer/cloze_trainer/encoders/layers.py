"""How layers are run, whatever is in them."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run(layer: nn.Module, hidden_BTD: Tensor, *others: Any, recompute: bool) -> Tensor:
    """A layer's states (B, T, D).

    recompute: keep none of what it computes, and compute it again in the backward pass (Chen et al., arXiv:1604.06174).
    """
    if recompute and torch.is_grad_enabled():
        return cast(Tensor, checkpoint(layer, hidden_BTD, *others, use_reentrant=False))
    return cast(Tensor, layer(hidden_BTD, *others))
