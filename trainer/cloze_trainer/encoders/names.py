"""What tensors are called: ours, and in the files that transformers' classes load."""

import re
from collections.abc import Mapping
from typing import Final

from torch import Tensor

from cloze_api.pretrain import Architecture
from cloze_api.task import Task

_Pairs = tuple[tuple[str, str], ...]

_BERT_LAYER: Final = (
    ("query", "attention.self.query"),
    ("key", "attention.self.key"),
    ("value", "attention.self.value"),
    ("output", "attention.output.dense"),
    ("attention_norm", "attention.output.LayerNorm"),
    ("intermediate", "intermediate.dense"),
    ("projection", "output.dense"),
    ("norm", "output.LayerNorm"),
)
_BERT_EMBEDDINGS: Final = (
    ("words", "word_embeddings"),
    ("positions", "position_embeddings"),
    ("types", "token_type_embeddings"),
    ("norm", "LayerNorm"),
)
_DISTILBERT_LAYER: Final = (
    ("query", "attention.q_lin"),
    ("key", "attention.k_lin"),
    ("value", "attention.v_lin"),
    ("output", "attention.out_lin"),
    ("attention_norm", "sa_layer_norm"),
    ("intermediate", "ffn.lin1"),
    ("projection", "ffn.lin2"),
    ("norm", "output_layer_norm"),
)
_MODERNBERT_LAYER: Final = (
    ("attention_norm", "attn_norm"),
    ("query_key_value", "attn.Wqkv"),
    ("output", "attn.Wo"),
    ("norm", "mlp_norm"),
    ("intermediate", "mlp.Wi"),
    ("projection", "mlp.Wo"),
)


def _encoder(prefix: str, embeddings: _Pairs, layers: str, layer: _Pairs) -> _Pairs:
    return (
        *((f"encoder.embeddings.{ours}", f"{prefix}.embeddings.{theirs}") for ours, theirs in embeddings),
        *((f"encoder.layers.#.{ours}", f"{prefix}.{layers}.#.{theirs}") for ours, theirs in layer),
    )


_ENCODERS: Final[Mapping[Architecture, _Pairs]] = {
    Architecture.BERT: _encoder("bert", _BERT_EMBEDDINGS, "encoder.layer", _BERT_LAYER),
    Architecture.ROBERTA: _encoder("roberta", _BERT_EMBEDDINGS, "encoder.layer", _BERT_LAYER),
    Architecture.DISTILBERT: _encoder("distilbert", _BERT_EMBEDDINGS, "transformer.layer", _DISTILBERT_LAYER),
    Architecture.XLM_ROBERTA: _encoder("roberta", _BERT_EMBEDDINGS, "encoder.layer", _BERT_LAYER),
    Architecture.ELECTRA: (
        *_encoder("electra", _BERT_EMBEDDINGS, "encoder.layer", _BERT_LAYER),
        ("encoder.widen", "electra.embeddings_project"),
    ),
    Architecture.MODERNBERT: (
        *_encoder("model", (("words", "tok_embeddings"), ("norm", "norm")), "layers", _MODERNBERT_LAYER),
        ("encoder.norm", "model.final_norm"),
    ),
}
_ROBERTA_VOCABULARY: Final = (
    ("transform.dense", "lm_head.dense"),
    ("transform.norm", "lm_head.layer_norm"),
    ("bias", "lm_head.bias"),
)
_VOCABULARIES: Final[Mapping[Architecture, _Pairs]] = {
    Architecture.BERT: (
        ("transform.dense", "cls.predictions.transform.dense"),
        ("transform.norm", "cls.predictions.transform.LayerNorm"),
        ("bias", "cls.predictions.bias"),
    ),
    Architecture.ROBERTA: _ROBERTA_VOCABULARY,
    Architecture.XLM_ROBERTA: _ROBERTA_VOCABULARY,
    Architecture.ELECTRA: (
        ("transform.dense", "generator_predictions.dense"),
        ("transform.norm", "generator_predictions.LayerNorm"),
        ("bias", "generator_lm_head.bias"),
    ),
    Architecture.DISTILBERT: (
        ("transform.dense", "vocab_transform"),
        ("transform.norm", "vocab_layer_norm"),
        ("bias", "vocab_projector.bias"),
    ),
    Architecture.MODERNBERT: (
        ("transform.dense", "head.dense"),
        ("transform.norm", "head.norm"),
        ("bias", "decoder.bias"),
    ),
}
_CLASSES: Final = ("classifier", "classifier")
_SPANS: Final = ("classifier", "qa_outputs")
_POOLED_CLASSES: Final = (("pool", "classifier.dense"), ("classifier", "classifier.out_proj"))
_MODERN_CLASSES: Final = (("transform.dense", "head.dense"), ("transform.norm", "head.norm"), _CLASSES)
_HEADS: Final[Mapping[Task, Mapping[Architecture, _Pairs]]] = {
    Task.FILL_MASK: _VOCABULARIES,
    Task.SEQUENCE_CLASSIFICATION: {
        Architecture.BERT: (("pool", "bert.pooler.dense"), _CLASSES),
        Architecture.ROBERTA: _POOLED_CLASSES,
        Architecture.XLM_ROBERTA: _POOLED_CLASSES,
        Architecture.ELECTRA: _POOLED_CLASSES,
        Architecture.DISTILBERT: (("pool", "pre_classifier"), _CLASSES),
        Architecture.MODERNBERT: _MODERN_CLASSES,
    },
    Task.TOKEN_CLASSIFICATION: dict.fromkeys(Architecture, (_CLASSES,)) | {Architecture.MODERNBERT: _MODERN_CLASSES},
    Task.EMBEDDING: dict.fromkeys(Architecture, ()),
    Task.QUESTION_ANSWERING: dict.fromkeys(Architecture, (_SPANS,)) | {Architecture.MODERNBERT: _MODERN_CLASSES},
}


def theirs(ours: str, architecture: Architecture, task: Task) -> str:
    """The name of one of our tensors in transformers' files. A name that isn't ours is a mistake of the caller's."""
    number = re.search(r"\.(\d+)\.", ours)
    pattern = ours if number is None else ours.replace(number[0], ".#.", 1)
    for own, other in (*_ENCODERS[architecture], *_HEADS[task][architecture]):
        if pattern == own or pattern.startswith(f"{own}."):
            renamed = other + pattern[len(own) :]
            return renamed if number is None else renamed.replace("#", number[1], 1)
    raise KeyError(ours)


def with_prefix(tensors: Mapping[str, Tensor], architecture: Architecture) -> Mapping[str, Tensor]:
    """A file's tensors by the names that they have beside a head; those of a bare encoder lack its name in front."""
    prefix = _ENCODERS[architecture][0][1].partition(".")[0]
    if any(name.startswith(f"{prefix}.") for name in tensors):
        return tensors
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def to_theirs(tensors: Mapping[str, Tensor], architecture: Architecture, task: Task) -> dict[str, Tensor]:
    """A network's tensors as transformers' files hold them."""
    return {theirs(name, architecture, task): tensor for name, tensor in tensors.items()}
