"""A model's folder in Hugging Face's format: what it holds, and whether it can become an artifact. Reads JSON alone.

Formats: `config.json` of transformers; `modules.json`, `1_Pooling/config.json` and `sentence_bert_config.json` of
sentence-transformers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cloze_api.task import Problem, Task
from cloze_trainer.errors import InputError

CONFIG_FILE = "config.json"
MODULES_FILE = "modules.json"
SENTENCE_FILE = "sentence_bert_config.json"

#: End of the class names in `architectures` that have the head of a task.
HEADS = {
    Task.FILL_MASK: "ForMaskedLM",
    Task.SEQUENCE_CLASSIFICATION: "ForSequenceClassification",
    Task.TOKEN_CLASSIFICATION: "ForTokenClassification",
    Task.QUESTION_ANSWERING: "ForQuestionAnswering",
}
#: `problem_type` of `config.json`.
PROBLEM_TYPES = {
    Problem.SINGLE_LABEL: "single_label_classification",
    Problem.MULTI_LABEL: "multi_label_classification",
    Problem.REGRESSION: "regression",
}
#: Tasks that a folder can be imported for.
TASKS = (*HEADS, Task.EMBEDDING)

#: The artifact has a card of its own.
_KEPT = {"README.md": "UPSTREAM_README.md", "LICENSE": "LICENSE", "LICENSE.txt": "LICENSE.txt", "NOTICE": "NOTICE"}
#: Files besides weights, tokenizer and configuration that say what a model is.
DESCRIPTIONS = (MODULES_FILE, SENTENCE_FILE, *_KEPT)

# Characters of a wrong setting.
_SHOWN = 40

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family of models. segments: whether it tells the texts of a pair apart by `token_type_ids`."""

    segments: bool = False
    positions_after_padding: bool = False
    """Whether positions are counted from the padding's id on, so that so many fewer tokens fit."""


ARCHITECTURES = {
    "bert": Architecture(segments=True),
    "roberta": Architecture(positions_after_padding=True),
    "distilbert": Architecture(),
    "xlm-roberta": Architecture(positions_after_padding=True),
    "electra": Architecture(segments=True),
    "modernbert": Architecture(),
}


@dataclass(frozen=True, slots=True)
class Vectors:
    """How an embedding is made of the last layer."""

    pooling: Pooling
    normalized: bool


@dataclass(frozen=True, slots=True)
class Sentence:
    """How sentence-transformers gives texts to a model. longest: most tokens of one; None where nothing is said of it.

    lowercase: whether capitals are small letters, whatever the tokenizer makes of them.
    """

    longest: int | None = None
    lowercase: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that can be imported for a task.

    labels: by class id, for the tasks that have some. problem: of sequence classification. positions: most tokens that
    the model takes. declared: most that its folder says it should be given; None where it says nothing. files: what
    else describes it, to be kept, with its name in the artifact.
    """

    folder: Path
    task: Task
    architecture: Architecture
    class_name: str
    labels: tuple[str, ...]
    problem: Problem
    vocab_size: int
    positions: int
    declared: int | None
    vectors: Vectors | None
    files: dict[str, str]


def read(
    folder: Path,
    task: Task,
    *,
    pooling: Pooling | None = None,
    normalize: bool = False,
    problem: Problem | None = None,
) -> Checkpoint:
    """Read a folder. Raises InputError that says why it can't be imported.

    pooling, normalize: how vectors are made, problem: what a text's labels are, for a folder that doesn't say.
    """
    config, architecture = configuration(folder)
    labelled = task in (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION)
    labels = _labels(folder, config) if labelled else ()
    known = _problem(folder, config, task, problem, len(labels))
    if labelled:
        _check_labels(folder, labels, known)
    try:
        positions = int(config["max_position_embeddings"])
        vocab_size = int(config["vocab_size"])
        if architecture.positions_after_padding:
            positions -= int(config.get("pad_token_id", 1)) + 1
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError("ConfigInvalid", f"{CONFIG_FILE} of {folder} has no usable {error}") from error
    classes = [str(name) for name in config.get("architectures") or []]
    return Checkpoint(
        folder=folder,
        task=task,
        architecture=architecture,
        class_name=_head(folder, classes, task),
        labels=labels,
        problem=known,
        vocab_size=vocab_size,
        positions=positions,
        declared=sentence(folder).longest,
        vectors=_vectors(folder, pooling, normalize) if task is Task.EMBEDDING else None,
        files={name: kept for name, kept in _KEPT.items() if (folder / name).is_file()},
    )


def sentence(folder: Path) -> Sentence:
    """What `sentence_bert_config.json` says; nothing where it isn't there. Raises InputError for other values."""
    path = folder / SENTENCE_FILE
    if not path.is_file():
        return Sentence()
    settings = _object(path)
    # `null` is as absent.
    longest, lowercase = settings.get("max_seq_length"), settings.get("do_lower_case")
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 1):
        raise _wrong(path, "max_seq_length", longest, "a whole number of tokens from 1 on")
    if lowercase is not None and not isinstance(lowercase, bool):
        raise _wrong(path, "do_lower_case", lowercase, "true or false")
    return Sentence(longest, bool(lowercase))


def _wrong(path: Path, key: str, found: Any, wanted: str) -> InputError:
    """The refusal of a setting."""
    shown = json.dumps(found)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    return InputError("ConfigInvalid", f"{key} in {path} is {shown}: give {wanted}, or remove it")


def configuration(folder: Path) -> tuple[dict[str, Any], Architecture]:
    """What `config.json` says, and the family of models. Raises InputError for a folder that isn't to be loaded."""
    if not folder.is_dir():
        raise InputError("FolderMissing", f"{folder} isn't a folder: give one in Hugging Face's format")
    if not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        # Weights that were pickled run code when they are loaded.
        message = f"the weights of {folder} are pickled, and loading them could run anything"
        raise InputError("PickleRefused", f"{message}: save them as safetensors where they come from")
    if not (folder / CONFIG_FILE).is_file():
        raise InputError("ConfigMissing", f"{folder} has no {CONFIG_FILE}: it isn't a model in Hugging Face's format")
    config = _object(folder / CONFIG_FILE)
    kind = config.get("model_type")
    architecture = ARCHITECTURES.get(str(kind))
    if architecture is None or config.get("auto_map"):
        what = "code of its own" if architecture else f"the architecture {kind!r}"
        raise InputError("ArchitectureUnsupported", f"{folder} has {what}; supported are {', '.join(ARCHITECTURES)}")
    return config, architecture


def _head(folder: Path, classes: Sequence[str], task: Task) -> str:
    """The class with the task's head; for embeddings any. Raises InputError."""
    if not classes:
        raise InputError("ConfigInvalid", f"{CONFIG_FILE} of {folder} names no architectures")
    if task is Task.EMBEDDING:
        return classes[0]
    for name in classes:
        if name.endswith(HEADS[task]):
            return name
    fitting = [each.value for each, end in HEADS.items() if any(name.endswith(end) for name in classes)]
    raise InputError(
        "HeadMissing",
        f"{folder} is a {', '.join(classes)} without a head for {task}: import it for "
        f"{' or '.join([*fitting, Task.EMBEDDING.value])}, or fine-tune it first",
    )


def _labels(folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """Label names by class id. Raises InputError for unnamed ones."""
    named = config.get("id2label")
    # What transformers assumes where a configuration doesn't say.
    named = {"0": "LABEL_0", "1": "LABEL_1"} if named is None else named
    try:
        return tuple(str(named[str(number)]) for number in range(len(named)))
    except (KeyError, TypeError) as error:
        raise InputError("ConfigInvalid", f"id2label in {CONFIG_FILE} of {folder} has gaps") from error


def _problem(folder: Path, config: dict[str, Any], task: Task, told: Problem | None, labels: int) -> Problem:
    """What the labels of a text are, from the folder or as told. Raises InputError where neither says it."""
    if task is not Task.SEQUENCE_CLASSIFICATION:
        if told is not None:
            raise InputError("ProblemUnsuitable", f"--problem is for sequence-classification, not for {task}")
        return Problem.SINGLE_LABEL
    if (named := config.get("problem_type")) is not None:
        known = next((problem for problem, name in PROBLEM_TYPES.items() if name == named), None)
        if known is None:
            raise InputError(
                "ConfigInvalid",
                f"problem_type in {CONFIG_FILE} of {folder} is none of {', '.join(PROBLEM_TYPES.values())}",
            )
        if told not in (None, known):
            raise InputError("ProblemKnown", f"{CONFIG_FILE} of {folder} says {named}: leave --problem out")
        return known
    if told is None and labels == 1:
        raise InputError(
            "ProblemUnknown",
            f"{folder} has one output and no problem_type to say whether it is a number or a label that a text has or "
            "hasn't: give --problem regression or --problem multi-label, as the model was trained",
        )
    return told or Problem.SINGLE_LABEL


def _check_labels(folder: Path, labels: tuple[str, ...], problem: Problem) -> None:
    """Raise InputError for labels that aren't those of the problem."""
    if problem is Problem.REGRESSION:
        if len(labels) != 1:
            raise InputError("LabelsInvalid", f"{folder} gives {len(labels)} numbers of a text: one is supported")
        return
    least = 1 if problem is Problem.MULTI_LABEL else 2
    if len(labels) < least or len(set(labels)) < len(labels):
        raise InputError(
            "LabelsInvalid", f"{folder} has the labels {', '.join(labels)}: at least {least} needed, all different"
        )


def _vectors(folder: Path, pooling: Pooling | None, normalize: bool) -> Vectors:
    """How vectors are made, from the folder or as told. Raises InputError where neither says it, or both do."""
    if not (folder / MODULES_FILE).is_file():
        if pooling is None:
            raise InputError(
                "PoolingUnknown",
                f"{folder} has no {MODULES_FILE} to say how vectors are made of the last layer: give --pooling mean or "
                "--pooling cls, as the model was trained, and --normalize if its vectors have length 1",
            )
        return Vectors(pooling, normalize)
    if pooling is not None or normalize:
        raise InputError("PoolingKnown", f"{MODULES_FILE} of {folder} says how vectors are made: leave it to that")
    modules = _list(folder / MODULES_FILE)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise InputError(
            "ModulesUnsupported",
            f"{folder} is made of {', '.join(kinds)}; supported are Transformer, Pooling and Normalize, in this order",
        )
    if modules[0].get("path"):
        raise InputError("ModulesUnsupported", f"{folder} keeps its encoder in {modules[0]['path']}: move it up")
    settings = _object(folder / str(modules[1].get("path", "")) / CONFIG_FILE)
    return Vectors(_pooling(folder, settings), len(kinds) == 3)


def _pooling(folder: Path, settings: dict[str, Any]) -> Pooling:
    chosen = {name.removeprefix("pooling_mode_") for name, value in settings.items() if value is True}
    chosen &= {"cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"}
    if isinstance(named := settings.get("pooling_mode"), str):
        chosen = {named}
    if chosen in ({"mean_tokens"}, {"mean"}):
        return "mean"
    if chosen in ({"cls_token"}, {"cls"}):
        return "cls"
    found = ", ".join(sorted(chosen)) or "nothing"
    raise InputError("PoolingUnsupported", f"{folder} pools by {found}; supported are the mean and the first token")


def _object(path: Path) -> dict[str, Any]:
    document = _json(path)
    if not isinstance(document, dict):
        raise InputError("ConfigInvalid", f"{path} isn't a JSON object")
    return document


def _list(path: Path) -> list[dict[str, Any]]:
    document = _json(path)
    if not isinstance(document, list) or not all(isinstance(each, dict) for each in document):
        raise InputError("ConfigInvalid", f"{path} isn't a list of modules")
    return document


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("ConfigUnreadable", f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError("ConfigInvalid", f"{path} isn't JSON in UTF-8") from error
