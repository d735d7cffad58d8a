"""BERT (Devlin et al., arXiv:1810.04805) in plain torch, with the tensor names of transformers' `BertFor…` classes.

A class of our own starts seconds sooner than transformers' (a pod imports no model zoo), applies the vocabulary head
to the masked positions only, and traces to a small ONNX graph. A test holds the two to equal outputs.

Dimensions: B sequences, T tokens, D width, H heads, V vocabulary, C classes, M masked positions.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloze_api.task import Task

LAYER_NORM_EPSILON = 1e-12
INITIALIZER_RANGE = 0.02

ARCHITECTURE_CLASSES = {
    Task.FILL_MASK: "BertForMaskedLM",
    Task.SEQUENCE_CLASSIFICATION: "BertForSequenceClassification",
    Task.TOKEN_CLASSIFICATION: "BertForTokenClassification",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Sizes of an encoder.

    max_length: longest sequence in tokens, special tokens included.
    dropout: after embeddings, attention and feed-forward blocks. Attention weights have none: the fused kernels of
        CPUs know no dropout, and newer encoders do without it.
    """

    vocab_size: int
    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    max_length: int
    dropout: float

    def transformers(self, task: Task, labels: tuple[str, ...] = ()) -> dict[str, Any]:
        """The content of `config.json` with which `AutoModel.from_pretrained` loads the weights."""
        document: dict[str, Any] = {
            "architectures": [ARCHITECTURE_CLASSES[task]],
            "model_type": "bert",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate_size,
            "hidden_act": "gelu",
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": 0.0,
            "max_position_embeddings": self.max_length,
            "type_vocab_size": 2,
            "initializer_range": INITIALIZER_RANGE,
            "layer_norm_eps": LAYER_NORM_EPSILON,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
            "dtype": "float32",
        }
        if labels:
            document["id2label"] = {str(index): label for index, label in enumerate(labels)}
            document["label2id"] = {label: index for index, label in enumerate(labels)}
        return document

    @classmethod
    def read(cls, path: Path) -> "EncoderConfig":
        """Sizes from an artifact's `config.json`. Raises ValueError, KeyError or TypeError when it isn't BERT's."""
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["model_type"] != "bert":
            raise ValueError(f"{path.name} describes a {document['model_type']!r} model, not bert")
        if (document.get("hidden_act"), document.get("layer_norm_eps")) != ("gelu", LAYER_NORM_EPSILON):
            raise ValueError(f"{path.name} describes another activation or normalisation than ours")
        return cls(
            vocab_size=document["vocab_size"],
            layers=document["num_hidden_layers"],
            hidden_size=document["hidden_size"],
            heads=document["num_attention_heads"],
            intermediate_size=document["intermediate_size"],
            max_length=document["max_position_embeddings"],
            dropout=document["hidden_dropout_prob"],
        )

    def describe(self) -> dict[str, Any]:
        """The sizes as a flat dictionary, for logs and the registry."""
        return asdict(self)


class Embeddings(nn.Module):
    """Word, position and type embeddings, summed and normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_length, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(2, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids_BT: Tensor, token_type_ids_BT: Tensor | None, places_BT: Tensor | None) -> Tensor:
        """Hidden states (B, T, D) of the tokens. places_BT: of each token in its text; as they stand when absent."""
        places = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device) if places_BT is None else places_BT
        if token_type_ids_BT is None:
            types = self.token_type_embeddings.weight[0]
        else:
            types = self.token_type_embeddings(token_type_ids_BT)
        hidden_BTD = self.word_embeddings(input_ids_BT) + self.position_embeddings(places) + types
        return cast(Tensor, self.dropout(self.LayerNorm(hidden_BTD)))


class SelfAttention(nn.Module):
    """Bidirectional multi-head attention."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BTD: Tensor, visible: Tensor | None) -> Tensor:
        """Attended states (B, T, D). visible: (B, 1, 1, T) or (B, 1, T, T), true where a key may be looked at."""
        batch, length, width = hidden_BTD.shape

        def split(projected_BTD: Tensor) -> Tensor:
            return projected_BTD.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

        query_BHTE, key_BHTE, value_BHTE = (
            split(self.query(hidden_BTD)),
            split(self.key(hidden_BTD)),
            split(self.value(hidden_BTD)),
        )
        if torch.onnx.is_in_onnx_export():
            # The fused operator traces to a guard against rows without any key, which never occur here, and hides the
            # pattern that ONNX Runtime fuses.
            scores_BHTT = query_BHTE @ key_BHTE.transpose(-1, -2) / math.sqrt(width // self.heads)
            if visible is not None:
                scores_BHTT = scores_BHTT + (1.0 - visible.to(scores_BHTT.dtype)) * torch.finfo(scores_BHTT.dtype).min
            attended_BHTE = torch.softmax(scores_BHTT, dim=-1) @ value_BHTE
        else:
            attended_BHTE = functional.scaled_dot_product_attention(query_BHTE, key_BHTE, value_BHTE, attn_mask=visible)
        return attended_BHTE.transpose(1, 2).reshape(batch, length, width)


class ResidualOutput(nn.Module):
    """Projection, dropout, sum with the block's input, normalisation."""

    def __init__(self, width_in: int, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor, residual: Tensor) -> Tensor:
        """States of the residual's shape."""
        return cast(Tensor, self.LayerNorm(self.dropout(self.dense(states)) + residual))


class Attention(nn.Module):
    """Attention block."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = ResidualOutput(config.hidden_size, config)

    def forward(self, hidden_BTD: Tensor, visible: Tensor | None) -> Tensor:
        """States (B, T, D)."""
        return cast(Tensor, self.output(self.self(hidden_BTD, visible), hidden_BTD))


class Intermediate(nn.Module):
    """First half of the feed-forward block, with the exact GELU."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """States (B, T, intermediate size)."""
        return functional.gelu(self.dense(hidden_BTD))


class Layer(nn.Module):
    """One post-norm encoder layer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.intermediate_size, config)

    def forward(self, hidden_BTD: Tensor, visible: Tensor | None) -> Tensor:
        """States (B, T, D)."""
        attended_BTD = self.attention(hidden_BTD, visible)
        return cast(Tensor, self.output(self.intermediate(attended_BTD), attended_BTD))


class Layers(nn.Module):
    """The stack of layers."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, hidden_BTD: Tensor, visible: Tensor | None) -> Tensor:
        """States (B, T, D)."""
        for layer in self.layer:
            hidden_BTD = layer(hidden_BTD, visible)
        return hidden_BTD


class Pooler(nn.Module):
    """The first token's state, projected."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """States (B, D)."""
        return torch.tanh(self.dense(hidden_BTD[:, 0]))


class Encoder(nn.Module):
    """Embeddings, layers and, for sequence classification, the pooler."""

    def __init__(self, config: EncoderConfig, *, pooled: bool) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config)
        self.pooler = Pooler(config) if pooled else None

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask: Tensor | None,
        token_types_BT: Tensor | None,
        places_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D).

        attention_mask: which tokens are looked at, (B, T), or by which, (B, T, T); without it every one by all.
        """
        visible = None
        if attention_mask is not None:
            mask = attention_mask[:, None] if attention_mask.dim() > 2 else attention_mask[:, None, None, :]
            visible = mask.to(torch.bool)
        return cast(Tensor, self.encoder(self.embeddings(input_ids_BT, token_types_BT, places_BT), visible))


class Transform(nn.Module):
    """Dense, GELU and normalisation in front of the vocabulary."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)

    def forward(self, states: Tensor) -> Tensor:
        """States of the same shape."""
        return cast(Tensor, self.LayerNorm(functional.gelu(self.dense(states))))


class Predictions(nn.Module):
    """Scores over the vocabulary; the projection is the word embedding's matrix."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor, embedding_VD: Tensor) -> Tensor:
        """Logits (…, V) of states (…, D)."""
        return functional.linear(self.transform(states), embedding_VD, self.bias)


class MaskedHead(nn.Module):
    """Holder that gives the predictions the name they have in transformers."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)


class MaskedLanguageModel(nn.Module):
    """Predicts hidden tokens."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.bert = Encoder(config, pooled=False)
        self.cls = MaskedHead(config)
        initialize(self)

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask: Tensor | None = None,
        token_types_BT: Tensor | None = None,
        positions_M: Tensor | None = None,
        places_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V), or (M, V) at `positions_M`, indices into the flattened (B × T) tokens.

        attention_mask, places_BT: as in Encoder and Embeddings.
        """
        hidden = self.bert(input_ids_BT, attention_mask, token_types_BT, places_BT)
        if positions_M is not None:
            hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions_M)
        return cast(Tensor, self.cls.predictions(hidden, self.bert.embeddings.word_embeddings.weight))


class SequenceClassifier(nn.Module):
    """One class for a text."""

    def __init__(self, config: EncoderConfig, classes: int) -> None:
        super().__init__()
        self.bert = Encoder(config, pooled=True)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, classes)
        initialize(self)

    def forward(
        self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None = None, token_types_BT: Tensor | None = None
    ) -> Tensor:
        """Logits (B, C)."""
        hidden_BTD = self.bert(input_ids_BT, attention_mask_BT, token_types_BT)
        assert self.bert.pooler is not None
        return cast(Tensor, self.classifier(self.dropout(self.bert.pooler(hidden_BTD))))


class TokenClassifier(nn.Module):
    """One class for each token."""

    def __init__(self, config: EncoderConfig, classes: int) -> None:
        super().__init__()
        self.bert = Encoder(config, pooled=False)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, classes)
        initialize(self)

    def forward(
        self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None = None, token_types_BT: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, C)."""
        hidden_BTD = self.bert(input_ids_BT, attention_mask_BT, token_types_BT)
        return cast(Tensor, self.classifier(self.dropout(hidden_BTD)))


TaskModel = MaskedLanguageModel | SequenceClassifier | TokenClassifier


def build(task: Task, config: EncoderConfig, classes: int = 0) -> TaskModel:
    """A freshly initialised model; the values come from torch's global generator."""
    if task is Task.FILL_MASK:
        return MaskedLanguageModel(config)
    if task is Task.SEQUENCE_CLASSIFICATION:
        return SequenceClassifier(config, classes)
    return TokenClassifier(config, classes)


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


def load_encoder(model: TaskModel, weights: Mapping[str, Tensor]) -> None:
    """Copy the encoder's tensors of an artifact into a task model; its new head and pooler keep their initial values.

    Raises ValueError naming the first tensor that is missing or has another shape.
    """
    own = model.state_dict()
    for name, target in own.items():
        if not name.startswith("bert.") or (name.startswith("bert.pooler.") and name not in weights):
            continue
        if name not in weights:
            raise ValueError(f"the base model has no tensor {name}")
        if weights[name].shape != target.shape:
            raise ValueError(
                f"the base model's tensor {name} has shape {tuple(weights[name].shape)}, expected {tuple(target.shape)}"
            )
        own[name] = weights[name]
    model.load_state_dict(own)
