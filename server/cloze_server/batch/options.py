"""The command line of `cloze-server batch`."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from cloze_server.batch.rows import Columns, parse_parameters
from cloze_server.exits import ExitCode, FatalError
from cloze_server.flags import FLAGS
from cloze_server.settings import Parser, Settings, add_flags, from_flags

Format = Literal["jsonl", "parquet"]

_FORMATS: Mapping[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
# What a server has and a run doesn't: addresses, clients, draining.
_SETTINGS = frozenset(
    {
        "model",
        "digest",
        "verify_key",
        "mlflow_uri",
        "cache",
        "precision",
        "threads",
        "parallel_batches",
        "provider",
        "device_memory_bytes",
        "max_batch_tokens",
        "max_characters",
    }
    | {"log_level", "termination_log"}
)
_FLAGS = tuple(flag for flag in FLAGS if flag.field in _SETTINGS)
# Rows wait outside the engine's queue, which is bounded by how many are read ahead.
_QUEUE_TOKENS = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What one run reads, writes and asks.

    max_errors: rows that may fail before the run ends; None: all of them. save_seconds: how much work a run that is
    killed loses at most.
    """

    input: str
    output: str
    format: Format
    columns: Columns
    parameters: dict[str, Any]
    max_errors: int | None
    save_seconds: float
    overwrite: bool
    settings: Settings


def parser() -> Parser:
    """The command line."""
    result = Parser(
        prog="cloze-server batch",
        description="Answer for each row of a JSONL or Parquet file as the server would, one row out for each row in, "
        "in the same order. A run that ended before it was done goes on where it was when it is started again with the "
        "same arguments.",
        epilog="Exit codes: " + ", ".join(f"{each.value} {each.name.lower().replace('_', ' ')}" for each in ExitCode),
    )
    add = result.add_argument
    add("--input", required=True, metavar="URI", help=".jsonl, .ndjson or .parquet: a path, or what fsspec reaches")
    add("--output", required=True, metavar="URI", help="of the same format; it appears when it is complete")
    names = Columns()
    add("--field", default=names.text, metavar="NAME", help=f"field of the text; default {names.text}")
    add("--question-field", default=names.question, metavar="NAME", help=f"default {names.question}")
    add("--context-field", default=names.context, metavar="NAME", help=f"default {names.context}")
    add("--id-field", metavar="NAME", help="keep this field alone of each row; the whole row when absent")
    add("--result-field", default=names.result, metavar="NAME", help=f"added to a row; default {names.result}")
    add("--error-field", default=names.error, metavar="NAME", help=f"added to a row that failed; default {names.error}")
    add("--parameters", default="{}", metavar="JSON", help='fields of each request, as {"top_k": 3}; see docs/http.md')
    add("--max-errors", metavar="N", help="end the run when more rows than this have failed; never when absent")
    add("--save-seconds", default="10", metavar="S", help="save what is done at least this often; default 10")
    add("--overwrite", action="store_true", help="replace an output, or an unfinished run, that is made from else")
    add_flags(result, _FLAGS)
    return result


def read(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Options:
    """Options from the command line; the model's also from the environment.

    Raises FatalError (CONFIGURATION) that says what to give.
    """
    given = vars(parser().parse_args(arguments))
    columns = Columns(
        text=given["field"],
        question=given["question_field"],
        context=given["context_field"],
        id=given["id_field"],
        result=given["result_field"],
        error=given["error_field"],
    )
    if len({*columns.added, columns.id}) < 3:
        raise _wrong("--id-field, --result-field and --error-field are three different fields")
    settings = from_flags(given, _FLAGS, environment, max_queue_tokens=_QUEUE_TOKENS, max_wait_seconds=math.inf)
    if len(settings.model) > 1:
        raise _wrong("give one --model: a run scores with one")
    most, save = given["max_errors"], given["save_seconds"]
    if most is not None and not (most.isascii() and most.isdecimal()):
        raise _wrong(f"--max-errors is {most!r}: give a whole number")
    if not _SECONDS.fullmatch(save):
        raise _wrong(f"--save-seconds is {save!r}: give a number of seconds")
    return Options(
        input=given["input"],
        output=given["output"],
        format=_format(given["input"], given["output"]),
        columns=columns,
        parameters=parse_parameters(given["parameters"]),
        max_errors=None if most is None else int(most),
        save_seconds=float(save),
        overwrite=given["overwrite"],
        settings=settings,
    )


def _format(source: str, target: str) -> Format:
    """The format of both. Raises FatalError (CONFIGURATION)."""
    found = []
    for option, uri in (("--input", source), ("--output", target)):
        suffix = PurePosixPath(uri).suffix
        if suffix not in _FORMATS:
            raise _wrong(f"{option} is {uri!r}: give a name that ends with {', '.join(_FORMATS)}")
        found.append(_FORMATS[suffix])
    if source == target:
        raise _wrong("--input and --output are one: a run doesn't change its input")
    if found[0] != found[1]:
        raise _wrong(f"--input is {found[0]} and --output {found[1]}: give both the same format")
    return found[0]


def _wrong(message: str) -> FatalError:
    return FatalError(ExitCode.CONFIGURATION, "ConfigurationInvalid", message)
