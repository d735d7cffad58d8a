"""Tiny random models of every architecture that can be imported, in Hugging Face's format."""

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from cloze_api.task import Task

LABELS = {0: "O", 1: "B-PER", 2: "I-PER"}
LETTERS = "abcdefghijklmnopqrstuvwxyz.?"
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@dataclass(frozen=True)
class Family:
    """Configuration, for a number of tokens, and tokenizer of an architecture. 40 tokens fit."""

    config: Callable[[int], Any]
    tokenizer: Callable[[], Any]


def wordpiece() -> Any:
    """BERT's tokenizer, of letters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {
        token: number for number, token in enumerate([*special, *LETTERS, *(f"##{each}" for each in LETTERS)])
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=10**9, **names)


def byte_level(special: list[str], *, roberta: bool) -> Any:
    """A tokenizer of bytes, as RoBERTa's and ModernBERT's are of merged ones."""
    vocabulary = {
        token: number for number, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    cls, pad, sep, unknown, mask = special
    if roberta:
        tokenizer.post_processor = processors.RobertaProcessing((sep, 2), (cls, 0), add_prefix_space=False)
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B {sep}", special_tokens=[(cls, 0), (sep, 2)]
        )
    names = {"cls_token": cls, "pad_token": pad, "sep_token": sep, "unk_token": unknown, "mask_token": mask}
    if roberta:
        names |= {"bos_token": cls, "eos_token": sep}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def sentence_piece_model() -> bytes:
    """SentencePiece's model of a few words, with its own rules for characters."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(f"{letter}{word} {word}{letter}" for letter in LETTERS for word in ("the", "is", "ing")),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def sentence_pieces() -> Any:
    """XLM-RoBERTa's tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sentencepiece.bpe.model").write_bytes(sentence_piece_model())
        return transformers.XLMRobertaTokenizer.from_pretrained(folder)


FAMILIES = {
    "bert": Family(
        lambda size: transformers.BertConfig(
            vocab_size=size, max_position_embeddings=40, initializer_range=0.4, **SIZES
        ),
        wordpiece,
    ),
    "distilbert": Family(
        lambda size: transformers.DistilBertConfig(
            vocab_size=size,
            max_position_embeddings=40,
            initializer_range=0.4,
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=32,
        ),
        wordpiece,
    ),
    "roberta": Family(
        lambda size: transformers.RobertaConfig(
            vocab_size=size,
            max_position_embeddings=42,
            type_vocab_size=1,
            initializer_range=0.4,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            **SIZES,
        ),
        lambda: byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], roberta=True),
    ),
    "xlm-roberta": Family(
        lambda size: transformers.XLMRobertaConfig(
            vocab_size=size, max_position_embeddings=42, type_vocab_size=1, initializer_range=0.4, **SIZES
        ),
        sentence_pieces,
    ),
    "electra": Family(
        lambda size: transformers.ElectraConfig(
            vocab_size=size, embedding_size=8, max_position_embeddings=40, initializer_range=0.4, **SIZES
        ),
        wordpiece,
    ),
    "modernbert": Family(
        lambda size: transformers.ModernBertConfig(
            **{**SIZES, "num_hidden_layers": 4},
            vocab_size=size,
            max_position_embeddings=40,
            local_attention=8,
            initializer_range=0.4,
            cls_token_id=0,
            bos_token_id=0,
            pad_token_id=1,
            sep_token_id=2,
            eos_token_id=2,
        ),
        lambda: byte_level(["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"], roberta=False),
    ),
}
HEADS = {
    Task.FILL_MASK: transformers.AutoModelForMaskedLM,
    Task.SEQUENCE_CLASSIFICATION: transformers.AutoModelForSequenceClassification,
    Task.TOKEN_CLASSIFICATION: transformers.AutoModelForTokenClassification,
    Task.QUESTION_ANSWERING: transformers.AutoModelForQuestionAnswering,
    Task.EMBEDDING: transformers.AutoModel,
}


def save(folder: Path, family: str, task: Task, **settings: Any) -> tuple[Any, Any]:
    """Write a tiny random model, configured so, in Hugging Face's format; the model and its tokenizer."""
    tokenizer = FAMILIES[family].tokenizer()
    config = FAMILIES[family].config(len(tokenizer))
    if task in (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION):
        config.id2label, config.label2id = LABELS, {name: number for number, name in LABELS.items()}
    for name, value in settings.items():
        setattr(config, name, value)
    torch.manual_seed(3)
    model = HEADS[task].from_config(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer
