"""Options of commands that read labelled examples: how these lie in their file, and of which revision they are."""

import argparse
import re
from typing import Any, Final

from pydantic import ValidationError

from cloze_api.dataset import ExampleFields, ExampleFormat
from cloze_api.source import REVISION_PATTERN
from cloze_trainer.data.lines import COMPRESSIONS
from cloze_trainer.data.records import Form
from cloze_trainer.errors import InputError

_ENDS: Final = {".csv": ExampleFormat.CSV, ".parquet": ExampleFormat.PARQUET}


def add(parser: argparse.ArgumentParser) -> None:
    """`--format` and `--field`."""
    parser.add_argument(
        "--format",
        type=ExampleFormat,
        choices=list(ExampleFormat),
        metavar="FORMAT",
        help=f"of the examples: {', '.join(ExampleFormat)} (default: as the file's name ends, or jsonl)",
    )
    parser.add_argument(
        "--field",
        type=_pair,
        action="append",
        default=[],
        metavar="FIELD=NAME",
        help="what a field of the examples is called in the file, such as text=body; may be given several times",
    )


def form(given: argparse.Namespace, examples: object) -> Form:
    """As the options have it; examples: a path or a URI. Raises ArgumentTypeError for a field that no task has."""
    ending = str(examples).lower()
    for packed in COMPRESSIONS:
        ending = ending.removesuffix(packed)
    named = next((each for end, each in _ENDS.items() if ending.endswith(end)), ExampleFormat.JSONL)
    names: dict[str, Any] = dict(given.field)
    if metadata := [name for field, name in given.field if field == "metadata"]:
        names["metadata"] = metadata
    try:
        fields = ExampleFields.model_validate(names)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(f"--field: {_what(error)}; there are {_known()}") from None
    return Form(given.format or named, fields)


def check_revision(source: str, revision: str | None) -> None:
    """Raise InputError for `--revision` where it is for nothing, or can't be one."""
    if revision is None:
        return
    if not source.startswith("hf://"):
        raise InputError("RevisionUnsuitable", "--revision is of a repository at hf:// alone: leave it out")
    if not re.fullmatch(REVISION_PATTERN, revision):
        raise InputError("RevisionInvalid", "--revision is no name of a branch, tag or commit: correct it")


def _what(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _known() -> str:
    return ", ".join(ExampleFields.model_fields)


def _pair(text: str) -> tuple[str, str]:
    field, between, name = text.partition("=")
    if not between or field not in ExampleFields.model_fields or not name:
        raise argparse.ArgumentTypeError(f"{text!r} isn't FIELD=NAME, as text=body; fields are {_known()}")
    return field, name
