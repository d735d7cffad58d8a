"""The command line of `cloze-train import`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from cloze_api.finetune import Export
from cloze_api.names import ENV_MLFLOW_URI, ENV_SIGNING_KEY
from cloze_api.precision import Precision
from cloze_api.pretrained import PretrainedFolder
from cloze_api.schema import ModelName
from cloze_api.task import Problem, Task
from cloze_trainer import example_options, huggingface
from cloze_trainer.data.records import JSON_LINES, Form
from cloze_trainer.errors import InputError
from cloze_trainer.huggingface import ARCHITECTURES, TASKS

_URIS = "file:///path, s3://bucket/path, gs://bucket/path or hf://owner/name"


class Asked(NamedTuple):
    """The command line.

    source: a path or a URI. matryoshka: numbers of dimensions that vectors may be cut to. precision: those besides
    fp32. examples: what they are tried on. problem: what a text's labels are. revision: of a repository at `hf://`.
    form: how the examples lie in their file.
    """

    source: str
    task: Task
    name: str
    output: Path
    register: bool
    pooling: huggingface.Pooling | None
    normalize: bool
    matryoshka: list[int]
    precision: tuple[Precision, ...] = ()
    examples: Path | None = None
    max_accuracy_loss: float = Export().max_accuracy_loss
    license: str | None = None
    problem: Problem | None = None
    revision: str | None = None
    form: Form = JSON_LINES

    @property
    def uri(self) -> str | None:
        """The source where it is no path."""
        return self.source if "://" in self.source else None

    @property
    def origin(self) -> str:
        """What the source is called where others read it: a folder's name, or the whole URI."""
        if self.uri is None:
            return Path(self.source).resolve().name
        return f"{self.uri}@{self.revision}" if self.revision else self.uri


def parse(arguments: Sequence[str]) -> Asked:
    """Read the command line; ends the process with usage for one that can't be read."""
    parser = argparse.ArgumentParser(
        prog="cloze-train import",
        description="Make a verified artifact (weights, tokenizer, ONNX graph) of a folder in Hugging "
        f"Face's format. Architectures: {', '.join(ARCHITECTURES)}. Embedding models may be sentence-transformers' "
        "folders. Serve it with cloze-server --model DIR.",
        epilog=f"--register needs {ENV_MLFLOW_URI}. The same command again registers what an earlier one has written. "
        f"With {ENV_SIGNING_KEY} the artifact is signed by the private key in that file. Stores are read with "
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN and the "
        "like, as a job outside a cluster reads them.",
    )
    parser.add_argument(
        "source",
        metavar="FOLDER",
        help=f"config.json, weights in safetensors, tokenizer: a path, or {_URIS}",
    )
    parser.add_argument(
        "--revision", metavar="NAME", help="branch, tag or commit of hf://; its main branch when absent"
    )
    parser.add_argument("--task", type=Task, choices=TASKS, required=True, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--name", required=True, help="the model's name, also in the registry")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder for the artifact")
    parser.add_argument("--register", action="store_true", help="also make a version in MLflow")
    parser.add_argument("--pooling", choices=["mean", "cls"], help="of an encoder without modules.json")
    parser.add_argument("--normalize", action="store_true", help="give vectors length 1; without modules.json")
    parser.add_argument(
        "--matryoshka",
        type=_dimensions,
        default=[],
        metavar="N,N",
        help="numbers of leading dimensions that the model was trained to be cut to",
    )
    parser.add_argument(
        "--precision",
        type=_precisions,
        default=(),
        metavar="int8,fp16",
        help="graphs in these besides fp32: int8 for CPUs, fp16 for GPUs",
    )
    parser.add_argument(
        "--examples",
        type=Path,
        metavar="FILE",
        help="examples with text, label, tokens and labels, or question and context: on them other precisions are "
        "held to fp32, and the profile is what they are like and what the model says of them",
    )
    example_options.add(parser)
    parser.add_argument(
        "--max-accuracy-loss",
        type=float,
        default=Export().max_accuracy_loss,
        metavar="SHARE",
        help="how far they may fall below fp32 there (default %(default)s: half a point)",
    )
    parser.add_argument(
        "--problem",
        type=Problem,
        choices=list(Problem),
        metavar="PROBLEM",
        help=f"of sequence classification, without problem_type in config.json: {', '.join(Problem)}",
    )
    parser.add_argument(
        "--license", metavar="NAME", help="for the model card, such as apache-2.0; by default that of its README.md"
    )
    parsed = parser.parse_args(arguments)
    try:
        form = example_options.form(parsed, parsed.examples)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    del parsed.format, parsed.field
    return Asked(**vars(parsed), form=form)


def _dimensions(text: str) -> list[int]:
    """Raises ArgumentTypeError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} isn't whole numbers with commas between, as 256,128") from None


def _precisions(text: str) -> tuple[Precision, ...]:
    """Raises ArgumentTypeError for what is none, or is there anyhow."""
    besides = [each.value for each in Precision if each is not Precision.FP32]
    if strange := [part for part in text.split(",") if part not in besides]:
        raise argparse.ArgumentTypeError(f"{strange[0]!r} is none of {', '.join(besides)}; fp32 is always there")
    return tuple(dict.fromkeys(Precision(part) for part in text.split(",")))


def check(asked: Asked) -> None:
    """Raise InputError for names that can't be any, and for options that don't go together."""
    _check_source(asked)
    try:
        TypeAdapter(ModelName).validate_python(asked.name)
    except ValidationError as error:
        message = f"--name: {error.errors(include_url=False, include_input=False)[0]['msg']}"
        raise InputError("NameInvalid", message) from error
    if asked.examples is not None and not asked.examples.is_file():
        raise InputError("ExamplesMissing", f"--examples: {asked.examples} isn't a file")
    if Precision.INT8 in asked.precision and asked.examples is None:
        message = "--precision int8 needs --examples, on which its answers are held to those of fp32: name a file"
        raise InputError("ExamplesMissing", message)
    if not 0 <= asked.max_accuracy_loss <= 1:
        raise InputError("LossInvalid", f"--max-accuracy-loss is {asked.max_accuracy_loss}: give a share from 0 to 1")


def _check_source(asked: Asked) -> None:
    try:
        PretrainedFolder(uri=asked.uri)
    except ValidationError as error:
        # Not shown: an address may have a password in it.
        message = (
            f"FOLDER is no URI of a folder: give a path, or {_URIS}, without * or `..`; web servers list no folders"
        )
        raise InputError("SourceInvalid", message) from error
    example_options.check_revision(asked.source, asked.revision)
