"""Encoders with the head of a task.

Dimensions: B sequences, T tokens, D width, V vocabulary, C classes, M masked positions.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloze_api.pretrain import Architecture
from cloze_api.task import Task
from cloze_trainer.encoders import modern, names, postnorm
from cloze_trainer.encoders.attention import FIRST, Texts
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.encoders.dropout import Dropout


class Transform(nn.Module):
    """Dense, GELU and normalisation in front of the vocabulary, and of ModernBERT's classes."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        bias = config.architecture is not Architecture.MODERNBERT
        self.dense = nn.Linear(config.hidden_size, config.embedding_width, bias=bias)
        self.norm = nn.LayerNorm(config.embedding_width, eps=config.epsilon, bias=bias)

    def forward(self, states: Tensor) -> Tensor:
        """States as wide as embeddings are."""
        return cast(Tensor, self.norm(functional.gelu(self.dense(states))))


class _TaskModel(nn.Module):
    """An encoder; heads come on top."""

    def __init__(self, config: EncoderConfig, task: Task) -> None:
        super().__init__()
        self.config, self.task = config, task
        self.is_modern = config.architecture is Architecture.MODERNBERT
        self.encoder = (modern.ModernEncoder if self.is_modern else postnorm.PostNormEncoder)(config)
        self.dropout = Dropout(config.dropout)

    def _initialize(self) -> None:
        if self.is_modern:
            modern.initialize(self, self.config.layers)
        else:
            postnorm.initialize(self)


class MaskedLanguageModel(_TaskModel):
    """Predicts hidden tokens; the projection on the vocabulary is the word embedding's matrix."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config, Task.FILL_MASK)
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self._initialize()

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask: Tensor | Texts | None = None,
        token_types_BT: Tensor | None = None,
        positions_M: Tensor | None = None,
        places_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V), or (M, V) at `positions_M`, indices into the flattened (B × T) tokens.

        attention_mask, places_BT: as the encoders take them.
        """
        hidden = self.encoder(input_ids_BT, attention_mask, token_types_BT, places_BT, positions_M)
        if positions_M is not None:
            hidden = hidden[0]
        return functional.linear(self.transform(hidden), self.encoder.embeddings.words.weight, self.bias)


class SequenceClassifier(_TaskModel):
    """One class for a text, from its first token."""

    def __init__(self, config: EncoderConfig, classes: int) -> None:
        super().__init__(config, Task.SEQUENCE_CLASSIFICATION)
        if self.is_modern:
            self.transform = Transform(config)
        else:
            self.pool = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, classes)
        self._initialize()

    def forward(
        self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None = None, token_types_BT: Tensor | None = None
    ) -> Tensor:
        """Logits (B, C)."""
        first_BD = self.encoder(input_ids_BT, attention_mask_BT, token_types_BT, wanted=FIRST)[:, 0]
        return cast(Tensor, self.classifier(self.dropout(self._pooled(first_BD))))

    def _pooled(self, first_BD: Tensor) -> Tensor:
        if self.is_modern:
            return cast(Tensor, self.transform(first_BD))
        if self.config.architecture is Architecture.DISTILBERT:
            return functional.relu(self.pool(first_BD))
        if self.config.architecture is Architecture.BERT:
            return torch.tanh(self.pool(first_BD))
        pooled_BD = self.pool(self.dropout(first_BD))
        return functional.gelu(pooled_BD) if self.config.architecture is Architecture.ELECTRA else torch.tanh(pooled_BD)


class TokenClassifier(_TaskModel):
    """One class for each token; or of an answer, how well each token begins and ends it."""

    def __init__(self, config: EncoderConfig, classes: int, task: Task = Task.TOKEN_CLASSIFICATION) -> None:
        super().__init__(config, task)
        if self.is_modern:
            self.transform = Transform(config)
        self.classifier = nn.Linear(config.hidden_size, classes)
        self._initialize()

    def forward(
        self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None = None, token_types_BT: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, C)."""
        hidden_BTD = self.encoder(input_ids_BT, attention_mask_BT, token_types_BT)
        if self.is_modern:
            hidden_BTD = self.transform(hidden_BTD)
        return cast(Tensor, self.classifier(self.dropout(hidden_BTD)))


class Embedder(_TaskModel):
    """A vector of length 1 for a text: the mean over its tokens (Reimers and Gurevych, arXiv:1908.10084)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config, Task.EMBEDDING)
        self._initialize()

    def forward(
        self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None = None, token_types_BT: Tensor | None = None
    ) -> Tensor:
        """Vectors (B, D)."""
        hidden_BTD = self.encoder(input_ids_BT, attention_mask_BT, token_types_BT)
        if attention_mask_BT is None:
            return functional.normalize(hidden_BTD.mean(1), dim=-1)
        weights_BT1 = attention_mask_BT.unsqueeze(-1).to(hidden_BTD.dtype)
        return functional.normalize((hidden_BTD * weights_BT1).sum(1) / weights_BT1.sum(1), dim=-1)


TaskModel = MaskedLanguageModel | SequenceClassifier | TokenClassifier | Embedder


def build(task: Task, config: EncoderConfig, classes: int = 0) -> TaskModel:
    """A freshly initialised model; the values come from torch's global generator."""
    if task is Task.FILL_MASK:
        return MaskedLanguageModel(config)
    if task is Task.SEQUENCE_CLASSIFICATION:
        return SequenceClassifier(config, classes)
    if task is Task.EMBEDDING:
        return Embedder(config)
    if task is Task.QUESTION_ANSWERING:
        return TokenClassifier(config, 2, task)
    return TokenClassifier(config, classes)


def tensors(model: TaskModel) -> dict[str, Tensor]:
    """A model's tensors as transformers' class of its name loads them."""
    return names.to_theirs(model.state_dict(), model.config.architecture, model.task)


def load_encoder(model: TaskModel, weights: Mapping[str, Tensor]) -> list[str]:
    """Copy an artifact's tensors into a task model; what the artifact has not of its new head keeps its initial values.

    Returns the names of those.

    Raises ValueError naming the first tensor of the encoder that is missing, or one that has another shape.
    """
    weights = names.with_prefix(weights, model.config.architecture)
    own, fresh = model.state_dict(), []
    for name, target in own.items():
        theirs = names.theirs(name, model.config.architecture, model.task)
        if theirs not in weights:
            if not name.startswith("encoder."):
                fresh.append(theirs)
                continue
            raise ValueError(f"the base model has no tensor {theirs}")
        if name.startswith("classifier."):
            continue
        if weights[theirs].shape != target.shape:
            shapes = f"has shape {tuple(weights[theirs].shape)}, expected {tuple(target.shape)}"
            raise ValueError(f"the base model's tensor {theirs} {shapes}")
        own[name] = weights[theirs]
    model.load_state_dict(own)
    return fresh
