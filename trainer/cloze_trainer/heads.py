"""transformers' models as modules with the one output that an artifact's graph has.

Dimensions: B sequences, T tokens, D width, C classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloze_trainer.huggingface import Vectors


class _Named(nn.Module):
    """A model that takes its inputs by name; here they come in the order of `inputs`."""

    def __init__(self, model: nn.Module, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._inputs = tuple(inputs)

    def run(self, inputs: Sequence[Tensor]) -> Any:
        return self.model(**dict(zip(self._inputs, inputs, strict=True)))


class Classes(_Named):
    """Logits (B, T, C) or (B, C), as the model's head gives them."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.run(inputs).logits
        return logits


class Span(_Named):
    """Logits (B, T, 2) of the first and the last token of an answer."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """See the class."""
        output = self.run(inputs)
        return torch.stack([output.start_logits, output.end_logits], dim=-1)


class Embedding(_Named):
    """Vectors (B, D): the mean over the tokens or the first one, and of length 1 where asked.

    As sentence-transformers' modules Pooling and Normalize make them.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[str], vectors: Vectors) -> None:
        super().__init__(model, inputs)
        self._vectors = vectors
        self._mask = self._inputs.index("attention_mask")

    def forward(self, *inputs: Tensor) -> Tensor:
        """See the class."""
        hidden_BTD: Tensor = self.run(inputs).last_hidden_state
        if self._vectors.pooling == "cls":
            pooled_BD = hidden_BTD[:, 0]
        else:
            weights_BT1 = inputs[self._mask].unsqueeze(-1).to(hidden_BTD.dtype)
            pooled_BD = (hidden_BTD * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1e-9)
        return functional.normalize(pooled_BD, dim=-1) if self._vectors.normalized else pooled_BD
