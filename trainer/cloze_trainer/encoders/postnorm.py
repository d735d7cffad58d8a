"""BERT (Devlin et al., arXiv:1810.04805) and what is built like it: RoBERTa (Liu et al., arXiv:1907.11692) and
XLM-RoBERTa (Conneau et al., arXiv:1911.02116), whose positions begin later and whose texts of a pair aren't told apart,
DistilBERT (Sanh et al., arXiv:1910.01108), which has no types of texts at all, and ELECTRA (Clark et al.,
arXiv:2003.10555), whose embeddings may be narrower than its layers.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloze_trainer.encoders import layers
from cloze_trainer.encoders.attention import Seen, Texts, Wanted, attend, picked, visible
from cloze_trainer.encoders.config import INITIALIZER_RANGE, EncoderConfig
from cloze_trainer.encoders.dropout import Dropout


class Embeddings(nn.Module):
    """Word, position and type embeddings, summed and normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        first, width = config.first_position, config.embedding_width
        self.words = nn.Embedding(config.vocab_size, width, padding_idx=config.special_tokens.pad)
        self.positions = nn.Embedding(
            config.max_length + first, width, padding_idx=config.special_tokens.pad if first else None
        )
        self.types = nn.Embedding(config.segment_types, width) if config.segment_types else None
        self.norm = nn.LayerNorm(width, eps=config.epsilon)
        self.dropout = Dropout(config.dropout)
        self.first = first

    def forward(self, input_ids_BT: Tensor, token_types_BT: Tensor | None, places_BT: Tensor | None) -> Tensor:
        """Sums as wide as embeddings are. places_BT: of each token in its text; as they stand when absent."""
        places = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device) if places_BT is None else places_BT
        hidden_BTD = self.words(input_ids_BT) + self.positions(places + self.first if self.first else places)
        if self.types is not None:
            hidden_BTD = hidden_BTD + (self.types.weight[0] if token_types_BT is None else self.types(token_types_BT))
        return cast(Tensor, self.dropout(self.norm(hidden_BTD)))


class Layer(nn.Module):
    """Attention and a feed-forward block with the exact GELU, each summed with its input and then normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.epsilon)
        self.intermediate = nn.Linear(width, config.intermediate_size)
        self.projection = nn.Linear(config.intermediate_size, width)
        self.norm = nn.LayerNorm(width, eps=config.epsilon)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden_BTD: Tensor, seen: Seen, wanted: Wanted = None) -> Tensor:
        """States as `picked` has them: (B, T, D) of all tokens."""
        batch, length, width = hidden_BTD.shape

        def split(projected_BTD: Tensor) -> Tensor:
            return projected_BTD.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

        attended_BTD = attend(
            split(self.query(hidden_BTD)), split(self.key(hidden_BTD)), split(self.value(hidden_BTD)), seen, wanted
        )
        hidden_BTD = self.attention_norm(self.dropout(self.output(attended_BTD)) + picked(hidden_BTD, wanted))
        fed_BTD = self.projection(functional.gelu(self.intermediate(hidden_BTD)))
        return cast(Tensor, self.norm(self.dropout(fed_BTD) + hidden_BTD))


class PostNormEncoder(nn.Module):
    """Embeddings and layers. recompute: as `layers.run` takes it."""

    recompute = False

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.widen = nn.Linear(config.embedding_size, config.hidden_size) if config.embedding_size else None
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask: Tensor | Texts | None,
        token_types_BT: Tensor | None,
        places_BT: Tensor | None = None,
        wanted: Wanted = None,
    ) -> Tensor:
        """Hidden states as `picked` has them: (B, T, D) of all. attention_mask: as `attention.visible` takes it."""
        seen = visible(attention_mask)
        hidden_BTD: Tensor = self.embeddings(input_ids_BT, token_types_BT, places_BT)
        if self.widen is not None:
            hidden_BTD = self.widen(hidden_BTD)
        *inner, last = self.layers
        for layer in inner:
            hidden_BTD = layers.run(layer, hidden_BTD, seen, recompute=self.recompute)
        return layers.run(last, hidden_BTD, seen, wanted, recompute=self.recompute)


def initialize(model: nn.Module) -> None:
    """BERT's initial values: normal with deviation 0.02, biases zero, normalisation the identity."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INITIALIZER_RANGE)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
