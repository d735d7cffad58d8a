"""What an encoder is: its architecture and sizes, and how `config.json` of transformers says them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from cloze_api.manifest import SpecialTokens
from cloze_api.pretrain import Architecture
from cloze_api.task import Problem, Task
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.huggingface import PROBLEM_TYPES

INITIALIZER_RANGE: Final = 0.02

_FAMILIES: Final = {
    Architecture.BERT: "Bert",
    Architecture.ROBERTA: "Roberta",
    Architecture.DISTILBERT: "DistilBert",
    Architecture.XLM_ROBERTA: "XLMRoberta",
    Architecture.ELECTRA: "Electra",
    Architecture.MODERNBERT: "ModernBert",
}
_HEADS: Final = {
    Task.FILL_MASK: "ForMaskedLM",
    Task.SEQUENCE_CLASSIFICATION: "ForSequenceClassification",
    Task.TOKEN_CLASSIFICATION: "ForTokenClassification",
    Task.QUESTION_ANSWERING: "ForQuestionAnswering",
    Task.EMBEDDING: "Model",
}
_EPSILONS: Final = {
    Architecture.BERT: 1e-12,
    Architecture.ROBERTA: 1e-5,
    Architecture.DISTILBERT: 1e-12,
    Architecture.XLM_ROBERTA: 1e-5,
    Architecture.ELECTRA: 1e-12,
    Architecture.MODERNBERT: 1e-5,
}
_EPSILON_NAMES: Final = {
    Architecture.BERT: "layer_norm_eps",
    Architecture.ROBERTA: "layer_norm_eps",
    Architecture.XLM_ROBERTA: "layer_norm_eps",
    Architecture.ELECTRA: "layer_norm_eps",
    Architecture.MODERNBERT: "norm_eps",
}
#: Architectures whose positions are counted from the padding's id on.
_COUNTED_FROM_PADDING: Final = (Architecture.ROBERTA, Architecture.XLM_ROBERTA)
_SEGMENT_TYPES: Final = {
    Architecture.BERT: 2,
    Architecture.ELECTRA: 2,
    Architecture.ROBERTA: 1,
    Architecture.XLM_ROBERTA: 1,
}
#: What the sizes are called, where it isn't BERT's word.
_NAMES: Final = {
    Architecture.DISTILBERT: {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_dropout_prob": "dropout",
        "hidden_act": "activation",
    },
    Architecture.MODERNBERT: {"hidden_dropout_prob": "mlp_dropout", "hidden_act": "hidden_activation"},
}

#: Of ModernBERT: every third layer looks at the whole text, the others at as many tokens to each side, and the angles
#: of their rotary positions fall by these bases (Warner et al., arXiv:2412.13663, section 2.1).
GLOBAL_EVERY: Final = 3
LOCAL_REACH: Final = 64
GLOBAL_THETA: Final = 160_000.0
LOCAL_THETA: Final = 10_000.0

#: What other encoders of these kinds may be like, and these networks are not.
_WITHOUT: Final = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "attention_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
    "decoder_bias": True,
}
_SEGMENTS: Final = "token_type_ids"
_INPUTS: Final = ("input_ids", "attention_mask", _SEGMENTS)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """An encoder's architecture and sizes.

    max_length: longest sequence in tokens, special tokens included.
    dropout: after embeddings, attention and feed-forward blocks; of ModernBERT after embeddings and within feed-forward
        blocks. Attention weights have none: the fused kernels of CPUs know no dropout, and newer encoders do without.
    embedding_size: width of an ELECTRA's embeddings where it isn't that of its layers.
    epsilon: what normalisation adds to the variance; the architecture's own by default.
    special_tokens: ids of its tokenizer.
    """

    architecture: Architecture = Architecture.BERT
    vocab_size: int
    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    max_length: int
    dropout: float
    embedding_size: int | None = None
    epsilon: float = 0.0
    special_tokens: SpecialTokens = SPECIAL_IDS

    def __post_init__(self) -> None:
        if not self.epsilon:
            object.__setattr__(self, "epsilon", _EPSILONS[self.architecture])

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings."""
        return self.embedding_size or self.hidden_size

    @property
    def first_position(self) -> int:
        """Row of the position table that the first token gets: RoBERTa leaves those up to the padding's id unused."""
        return self.special_tokens.pad + 1 if self.architecture in _COUNTED_FROM_PADDING else 0

    @property
    def segment_types(self) -> int:
        """Rows of the table that tells the texts of a pair apart; 0 without one."""
        return _SEGMENT_TYPES.get(self.architecture, 0)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What its graphs take, in the order of the networks' arguments."""
        return _INPUTS if self.segment_types > 1 else _INPUTS[:2]

    def class_name(self, task: Task) -> str:
        """The class of transformers that takes its weights."""
        return _FAMILIES[self.architecture] + _HEADS[task]

    def transformers(
        self, task: Task, labels: tuple[str, ...] = (), problem: Problem = Problem.SINGLE_LABEL
    ) -> dict[str, Any]:
        """The content of `config.json` with which `AutoModel.from_pretrained` loads the weights."""
        names = _NAMES.get(self.architecture, {})
        document: dict[str, Any] = {"architectures": [self.class_name(task)], "model_type": self.architecture.value}
        sizes = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate_size,
            "hidden_act": "gelu",
            "hidden_dropout_prob": self.dropout,
            "max_position_embeddings": self.max_length + self.first_position,
        }
        document |= {names.get(name, name): value for name, value in sizes.items()}
        document |= {
            "initializer_range": INITIALIZER_RANGE,
            "pad_token_id": self.special_tokens.pad,
            "tie_word_embeddings": True,
            "dtype": "float32",
            **_own(self),
        }
        if labels:
            document["id2label"] = {str(index): label for index, label in enumerate(labels)}
            if problem is not Problem.SINGLE_LABEL:
                document["problem_type"] = PROBLEM_TYPES[problem]
            document["label2id"] = {label: index for index, label in enumerate(labels)}
        return document

    @classmethod
    def read(cls, path: Path, special_tokens: SpecialTokens = SPECIAL_IDS) -> "EncoderConfig":
        """From a `config.json`: see `of`."""
        return cls.of(json.loads(path.read_text(encoding="utf-8")), special_tokens)

    @classmethod
    def of(cls, document: dict[str, Any], special_tokens: SpecialTokens = SPECIAL_IDS) -> "EncoderConfig":
        """From what a `config.json` says. Raises ValueError, KeyError or TypeError when it isn't one of these.

        special_tokens: of the tokenizer beside it.
        """
        if document["model_type"] not in set(Architecture):
            supported = ", ".join(Architecture)
            raise ValueError(f"config.json describes a {document['model_type']!r} model, not one of {supported}")
        architecture = Architecture(document["model_type"])
        names = _NAMES.get(architecture, {})
        if architecture is Architecture.MODERNBERT:
            document = _modern(document)

        def size(name: str) -> Any:
            return document[names.get(name, name)]

        config = cls(
            architecture=architecture,
            vocab_size=size("vocab_size"),
            layers=size("num_hidden_layers"),
            hidden_size=size("hidden_size"),
            heads=size("num_attention_heads"),
            intermediate_size=size("intermediate_size"),
            max_length=size("max_position_embeddings"),
            dropout=size("hidden_dropout_prob"),
            embedding_size=_embedding_size(document) if architecture is Architecture.ELECTRA else None,
            # DistilBERT's is its own.
            epsilon=document.get(_EPSILON_NAMES.get(architecture, ""), 0.0),
            special_tokens=special_tokens,
        )
        _check(config, document)
        return replace(config, max_length=config.max_length - config.first_position)

    def describe(self) -> dict[str, Any]:
        """Architecture and sizes as a flat dictionary, for logs and the registry."""
        told = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: value for name, value in told.items() if name not in ("epsilon", "special_tokens")}


def _own(config: EncoderConfig) -> dict[str, Any]:
    """What only this architecture's `config.json` says."""
    ends = {"bos_token_id": config.special_tokens.cls, "eos_token_id": config.special_tokens.sep}
    if config.architecture is Architecture.DISTILBERT:
        return {
            "attention_dropout": 0.0,
            "seq_classif_dropout": config.dropout,
            "qa_dropout": config.dropout,
            "sinusoidal_pos_embds": False,
        }
    if config.architecture is Architecture.MODERNBERT:
        return {
            "norm_eps": config.epsilon,
            "embedding_dropout": config.dropout,
            "attention_dropout": 0.0,
            "classifier_dropout": config.dropout,
            "global_attn_every_n_layers": GLOBAL_EVERY,
            "global_rope_theta": GLOBAL_THETA,
            "local_attention": 2 * LOCAL_REACH,
            "local_rope_theta": LOCAL_THETA,
            "cls_token_id": config.special_tokens.cls,
            "sep_token_id": config.special_tokens.sep,
            **ends,
        }
    own = {
        "attention_probs_dropout_prob": 0.0,
        "type_vocab_size": config.segment_types,
        "layer_norm_eps": config.epsilon,
    }
    if config.architecture is Architecture.ELECTRA:
        return own | {"embedding_size": config.embedding_width}
    return own | (ends if config.architecture in _COUNTED_FROM_PADDING else {})


def _embedding_size(document: Mapping[str, Any]) -> int | None:
    """Width of the embeddings where it isn't that of the layers."""
    size: int = document["embedding_size"]
    return None if size == document["hidden_size"] else size


def _modern(document: Mapping[str, Any]) -> dict[str, Any]:
    """A ModernBERT's settings in the words of its first release; newer ones list layers and their angles."""
    spelt = dict(document)
    for kind, name in (("full_attention", "global_rope_theta"), ("sliding_attention", "local_rope_theta")):
        angles = (document.get("rope_parameters") or {}).get(kind)
        if angles is not None and angles.get("rope_type", "default") == "default":
            spelt[name] = angles["rope_theta"]
    if "layer_types" in document:
        every = GLOBAL_EVERY
        kinds = ["sliding_attention" if n % every else "full_attention" for n in range(document["num_hidden_layers"])]
        spelt["global_attn_every_n_layers"] = every if document["layer_types"] == kinds else 0
    return spelt


def _check(config: EncoderConfig, document: Mapping[str, Any]) -> None:
    """Whether what these networks take for granted holds. Raises ValueError."""
    names = _NAMES.get(config.architecture, {})
    granted = {names.get("hidden_act", "hidden_act"): "gelu", "pad_token_id": config.special_tokens.pad}
    granted |= {
        name: value
        for name, value in _own(config).items()
        if not name.endswith(("dropout", "dropout_prob", "token_id", "_eps"))
    }
    granted["tie_word_embeddings"] = True
    granted |= {name: value for name, value in _WITHOUT.items() if name in document}
    other = sorted(name for name, value in granted.items() if document.get(name) != value)
    if other:
        raise ValueError(f"config.json describes another kind of {config.architecture}: see {', '.join(other)}")
