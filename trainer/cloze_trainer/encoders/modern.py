"""ModernBERT (Warner et al., arXiv:2412.13663): normalised before each block, rotary positions (Su et al.,
arXiv:2104.09864), gated feed-forward blocks (Shazeer, arXiv:2002.05202), and local attention in two layers of three.
"""

import math
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloze_trainer.encoders import layers
from cloze_trainer.encoders.attention import Seen, Texts, Wanted, attend, picked, visible
from cloze_trainer.encoders.config import (
    GLOBAL_EVERY,
    GLOBAL_THETA,
    INITIALIZER_RANGE,
    LOCAL_REACH,
    LOCAL_THETA,
    EncoderConfig,
)
from cloze_trainer.encoders.dropout import Dropout

#: Initial values further from zero than as many deviations are drawn again.
_CUT: Final = 2.0


class Embeddings(nn.Module):
    """Word embeddings, normalised; positions come in the attention."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.special_tokens.pad)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.epsilon, bias=False)
        self.dropout = Dropout(config.dropout)

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Hidden states (B, T, D) of the tokens."""
        return cast(Tensor, self.dropout(self.norm(self.words(input_ids_BT))))


class Rotation:
    """Turns queries and keys by angles that grow with the place, so that their product tells the distance."""

    def __init__(self, places: Tensor, theta: float, width: int) -> None:
        """places: (T,) or (B, T). width: of a head."""
        steps = torch.arange(0, width, 2, device=places.device, dtype=torch.float32) / width
        angles = places[..., None].to(torch.float32) * (1.0 / theta**steps)
        angles = torch.cat((angles, angles), dim=-1)
        if places.dim() > 1:
            angles = angles[:, None]
        self._cosines, self._sines = angles.cos(), angles.sin()

    def turn(self, states_BHTE: Tensor) -> Tensor:
        """The states, turned; in 32-bit floats whatever theirs are."""
        whole = states_BHTE.float()
        half = whole.shape[-1] // 2
        swapped = torch.cat((-whole[..., half:], whole[..., :half]), dim=-1)
        return (whole * self._cosines + swapped * self._sines).to(states_BHTE.dtype)


class Layer(nn.Module):
    """Attention and a gated feed-forward block; the first layer's input is normalised already."""

    def __init__(self, config: EncoderConfig, number: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.heads
        self.is_global = number % GLOBAL_EVERY == 0
        self.attention_norm = nn.LayerNorm(width, eps=config.epsilon, bias=False) if number else nn.Identity()
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=config.epsilon, bias=False)
        self.intermediate = nn.Linear(width, 2 * config.intermediate_size, bias=False)
        self.projection = nn.Linear(config.intermediate_size, width, bias=False)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden_BTD: Tensor, seen: Seen, rotation: Rotation, wanted: Wanted = None) -> Tensor:
        """States as `picked` has them: (B, T, D) of all tokens."""
        batch, length, width = hidden_BTD.shape
        joint = self.query_key_value(self.attention_norm(hidden_BTD))
        query_BHTE, key_BHTE, value_BHTE = (
            joint.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        attended_BTD = attend(rotation.turn(query_BHTE), rotation.turn(key_BHTE), value_BHTE, seen, wanted)
        hidden_BTD = picked(hidden_BTD, wanted) + self.output(attended_BTD)
        content, gate = self.intermediate(self.norm(hidden_BTD)).chunk(2, dim=-1)
        fed_BTD = self.projection(self.dropout(functional.gelu(content) * gate))
        return cast(Tensor, hidden_BTD + fed_BTD)


class ModernEncoder(nn.Module):
    """Embeddings, layers and a last normalisation. recompute: as `layers.run` takes it."""

    recompute = False

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.epsilon, bias=False)
        self._head_width = config.hidden_size // config.heads

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask: Tensor | Texts | None,
        token_types_BT: Tensor | None,
        places_BT: Tensor | None = None,
        wanted: Wanted = None,
    ) -> Tensor:
        """Hidden states as `picked` has them: (B, T, D) of all. attention_mask: as `attention.visible` takes it.

        Types of texts are none.
        """
        assert token_types_BT is None
        length = input_ids_BT.shape[1]
        columns_T = torch.arange(length, device=input_ids_BT.device)
        places = columns_T if places_BT is None else places_BT
        anywhere = visible(attention_mask)
        nearby: Seen
        if isinstance(anywhere, Texts):
            nearby = anywhere._replace(reach=LOCAL_REACH)
        elif torch.onnx.is_in_onnx_export() or length > LOCAL_REACH + 1:
            # Where texts share a row each is in one piece, so that columns are as far apart as places.
            distance_TT = (columns_T[:, None] - columns_T[None, :]).abs()
            near = distance_TT <= LOCAL_REACH
            if anywhere is not None:
                # Padding far from any text would see nothing, not even itself, and its states wouldn't be numbers.
                near = (anywhere & near) | (distance_TT == 0)
            nearby = near
        else:
            nearby = anywhere
        far_turn = Rotation(places, GLOBAL_THETA, self._head_width)
        near_turn = Rotation(places, LOCAL_THETA, self._head_width)
        hidden_BTD = self.embeddings(input_ids_BT)
        for number, layer in enumerate(self.layers, 1):
            how = (anywhere, far_turn) if layer.is_global else (nearby, near_turn)
            needed = wanted if number == len(self.layers) else None
            hidden_BTD = layers.run(layer, hidden_BTD, *how, needed, recompute=self.recompute)
        return cast(Tensor, self.norm(hidden_BTD))


def initialize(model: nn.Module, depth: int) -> None:
    """ModernBERT's initial values: normal, cut at two deviations; what ends a block is smaller the more layers."""
    inner = INITIALIZER_RANGE / math.sqrt(2.0 * depth)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        last = name.rpartition(".")[2]
        deviation = {"output": inner, "projection": inner, "dense": inner}.get(last, INITIALIZER_RANGE)
        if name == "classifier":
            deviation = module.weight.shape[1] ** -0.5
        nn.init.trunc_normal_(module.weight, std=deviation, a=-_CUT * deviation, b=_CUT * deviation)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
