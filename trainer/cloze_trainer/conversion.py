"""Weights, tokenizer and graph of a checkpoint in Hugging Face's format, written into an artifact's folder."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Set before the library is imported. A folder is read, never a hub: that is asked for with each, because a variable
# would keep the whole process, and what it starts, from sources at one.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from tokenizers import Tokenizer, normalizers
from torch import nn

from cloze_api.manifest import ONNX_FILE, TOKENIZER_FILE, SpecialTokens
from cloze_api.task import Problem, Task
from cloze_api.vocabulary import misfit
from cloze_trainer.console import log
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.encoders.names import theirs
from cloze_trainer.errors import InputError
from cloze_trainer.export import INPUTS, OUTPUT, TOLERANCE, Graph, apart, export_graph, write_graph
from cloze_trainer.heads import Classes, Embedding, Span
from cloze_trainer.huggingface import PROBLEM_TYPES, Checkpoint, sentence
from cloze_trainer.model import build

transformers.utils.logging.disable_progress_bar()

_VECTOR_OUTPUT = "embedding"
_SHORTEST = 8
# Protocol buffers, which ONNX files are, hold no more.
_LARGEST_GRAPH_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Facts:
    """What the manifest has to say about the files. dimensions: of an embedding; 0 for other tasks."""

    inputs: tuple[str, ...]
    output: str
    max_length: int
    special_tokens: SpecialTokens
    lowercase: bool
    dimensions: int


def write(checkpoint: Checkpoint, folder: Path) -> Facts:
    """Convert a checkpoint. Raises InputError for what can't be, TrainerError when the graph isn't the model."""
    loaded, tokenizer = load_tokenizer(checkpoint.folder)
    special_tokens = find_special_tokens(
        checkpoint.folder, loaded, tokenizer, mask=checkpoint.task is Task.FILL_MASK, vocab_size=checkpoint.vocab_size
    )
    model = _model(checkpoint)
    _check_padding(checkpoint, int(model.config.pad_token_id or 0), special_tokens.pad)
    longest = int(min(loaded.model_max_length, checkpoint.positions))
    max_length = min(longest, checkpoint.declared or longest)
    if max_length < _SHORTEST:
        raise InputError("LengthInvalid", f"{checkpoint.folder} takes {max_length} tokens, at least {_SHORTEST} needed")
    # A tokenizer may not tell the texts of a pair apart though the model could; then the model never learnt it. And a
    # model may have a single type though its tokenizer tells of two.
    types = int(getattr(model.config, "type_vocab_size", 1))
    segments = checkpoint.architecture.segments and types > 1 and 1 in tokenizer.encode("a", "a").type_ids
    inputs = INPUTS if segments else INPUTS[:2]
    graph = Graph(
        inputs=inputs,
        output=_VECTOR_OUTPUT if checkpoint.task is Task.EMBEDDING else OUTPUT,
        per_token=checkpoint.task not in (Task.SEQUENCE_CLASSIFICATION, Task.EMBEDDING),
        vocab_size=checkpoint.vocab_size,
        max_length=max_length,
        pad=special_tokens.pad,
    )
    if checkpoint.problem is not Problem.SINGLE_LABEL:
        # So that transformers' pipelines know it, too, where it had to be told.
        model.config.problem_type = PROBLEM_TYPES[checkpoint.problem]
    model.save_pretrained(folder)
    loaded.save_pretrained(folder)
    tokenizer.save(str(folder / TOKENIZER_FILE), pretty=False)
    for path in folder.iterdir():
        # Weights are written for their owner alone, and served by another.
        path.chmod(0o644)
    for name, kept in checkpoint.files.items():
        shutil.copyfile(checkpoint.folder / name, folder / kept)
    _export(checkpoint, model, graph, special_tokens, folder / ONNX_FILE)
    log("converted", model=checkpoint.class_name, max_length=max_length, vocab_size=checkpoint.vocab_size)
    return Facts(
        inputs=inputs,
        output=graph.output,
        max_length=max_length,
        special_tokens=special_tokens,
        lowercase=is_lowercase(tokenizer),
        dimensions=int(model.config.hidden_size) if checkpoint.task is Task.EMBEDDING else 0,
    )


def _check_padding(checkpoint: Checkpoint, config: int, tokenizer: int) -> None:
    """Raise InputError where a token would be left out of the count of positions that isn't padding, or padding not."""
    if checkpoint.architecture.positions_after_padding and config != tokenizer:
        raise InputError(
            "SpecialTokensInvalid",
            f"config.json of {checkpoint.folder} has the pad_token_id {config}, its tokenizer {tokenizer}: positions "
            "are counted by it, so correct the one that is wrong",
        )


def _headed(checkpoint: Checkpoint, model: Any, inputs: tuple[str, ...]) -> nn.Module:
    if checkpoint.vectors is not None:
        return Embedding(model, inputs, checkpoint.vectors)
    return Span(model, inputs) if checkpoint.task is Task.QUESTION_ANSWERING else Classes(model, inputs)


def _export(checkpoint: Checkpoint, model: Any, graph: Graph, special_tokens: SpecialTokens, path: Path) -> None:
    """Write the graph, of our own network where that answers as the model does. Raises as `export_graph`."""
    headed, own = _headed(checkpoint, model, graph.inputs), _own_classifier(checkpoint, model, special_tokens)
    if own is not None:
        write_graph(own, graph, path)
        if apart(headed, graph, path) <= TOLERANCE:
            return
    export_graph(headed, graph, path)


def _own_classifier(checkpoint: Checkpoint, model: Any, special_tokens: SpecialTokens) -> nn.Module | None:
    """A classifier of texts as our own network, whose last layer computes no more than is read of it.

    None where it isn't one of those. Its head may still be of another kind with the same tensors.
    """
    if checkpoint.task is not Task.SEQUENCE_CLASSIFICATION:
        return None
    stored = model.state_dict()
    try:
        config = EncoderConfig.of(model.config.to_dict(), special_tokens)
        own = build(checkpoint.task, config, len(checkpoint.labels))
        own.load_state_dict({name: stored[theirs(name, config.architecture, own.task)] for name in own.state_dict()})
    except (KeyError, RuntimeError, TypeError, ValueError):
        return None
    return own


def is_lowercase(tokenizer: Tokenizer) -> bool:
    """Whether capitals are no other letters to it."""
    return tokenizer.normalizer is not None and bool(tokenizer.normalizer.normalize_str("A") == "a")


def load_tokenizer(folder: Path) -> tuple[Any, Tokenizer]:
    """The folder's tokenizer, as transformers has it, and what does the work in it. Raises InputError.

    Capitals are small letters to it where sentence-transformers would make them so before it sees the text.
    """
    lowercase = sentence(folder).lowercase
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # A copy: the settings of the one in use stay as they are.
        tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # whatever it is, the folder has no tokenizer that can be used
        message = f"{folder} has no tokenizer that transformers loads as a fast one ({type(error).__name__})"
        raise InputError("TokenizerUnsupported", f"{message}: put its tokenizer.json there") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if not lowercase or is_lowercase(tokenizer):
        return loaded, tokenizer
    # In front of what is there: a lowercasing BERT normaliser would drop accents, too.
    rest = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
    return _whole(loaded, tokenizer), tokenizer


def _whole(loaded: Any, tokenizer: Tokenizer) -> Any:
    """The same for transformers, which then loads all of it from `tokenizer.json`: its classes for single
    architectures make the normaliser anew.
    """
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=loaded.model_max_length,
        model_input_names=loaded.model_input_names,
        **loaded.special_tokens_map,
    )


def find_special_tokens(
    folder: Path, loaded: Any, tokenizer: Tokenizer, *, mask: bool, vocab_size: int | None
) -> SpecialTokens:
    """The ids that a server needs, where the tokenizer fits the model. Raises InputError.

    mask: whether one is needed. vocab_size: of the model, if there is one yet.
    """
    ids = {role: getattr(loaded, f"{role}_token_id") for role in SpecialTokens.model_fields}
    needed = [role for role, field in SpecialTokens.model_fields.items() if field.is_required()]
    needed += ["mask"] if mask else []
    if missing := [role for role in needed if ids[role] is None]:
        raise InputError("SpecialTokensMissing", f"the tokenizer of {folder} has no {', '.join(missing)} token")
    special = SpecialTokens(**ids)
    if found := misfit(tokenizer, special, vocab_size):
        # One of another kind than this trainer's, and not a broken one.
        reason = "TokenizerUnsupported" if found.reason == "TokenizerInvalid" else found.reason
        message = f"the tokenizer of {folder} {found.told}: correct it there, or name another tokenizer"
        raise InputError(reason, message)
    return special


def load_model(folder: Path, task: Task) -> tuple[Any, dict[str, Any]]:
    """The model in 32-bit floats with a task's head, and what transformers tells of its weights. Raises InputError."""
    classes = {
        Task.FILL_MASK: transformers.AutoModelForMaskedLM,
        Task.SEQUENCE_CLASSIFICATION: transformers.AutoModelForSequenceClassification,
        Task.TOKEN_CLASSIFICATION: transformers.AutoModelForTokenClassification,
        Task.QUESTION_ANSWERING: transformers.AutoModelForQuestionAnswering,
        Task.EMBEDDING: transformers.AutoModel,
    }
    try:
        model, found = classes[task].from_pretrained(
            folder,
            local_files_only=True,
            # Of a folder with both, nothing pickled is read.
            use_safetensors=True,
            dtype=torch.float32,
            # Traces to fewer nodes, and the runtime fuses them.
            attn_implementation="eager",
            output_loading_info=True,
        )
    except Exception as error:  # the library's errors share no base class
        message = f"the weights of {folder} can't be loaded ({type(error).__name__}): {str(error)[:300]}"
        raise InputError("WeightsInvalid", message) from error
    return model, found


def _model(checkpoint: Checkpoint) -> Any:
    """The model in 32-bit floats. Raises InputError for weights that aren't all there."""
    model, found = load_model(checkpoint.folder, checkpoint.task)
    # The pooler belongs to sequence classification's head; no vector is made of it.
    missing = sorted(name for name in found["missing_keys"] if "pooler." not in name or checkpoint.vectors is None)
    if missing or found["mismatched_keys"]:
        what = missing[0] if missing else str(next(iter(found["mismatched_keys"])))
        message = f"{checkpoint.folder} has no weights for {what}: it would be random; import it for another task"
        raise InputError("WeightsMissing", message)
    if sum(each.numel() for each in model.parameters()) * 4 >= _LARGEST_GRAPH_BYTES:
        raise InputError("ModelTooLarge", f"{checkpoint.folder} has 2 GiB of weights or more, which no ONNX file holds")
    return model
