"""From a row to a request, and from a reply to what is written beside the row. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloze_api.task import Task
from cloze_server.exits import ExitCode, FatalError
from cloze_server.problems import ProblemError, ProblemType, checked
from cloze_server.tasks.handler import AnyHandler, TaskRequest

# What a run decides for all rows, and what only a client of the server needs.
_NOT_PARAMETERS = frozenset(
    {"inputs", "input", "words", "question", "context", "model", "timeout_ms", "metadata", "encoding_format", "user"}
)

NOT_OF_A_ROW = frozenset({"object", "index", "model", "fallback"})
"""Fields of a reply that say where an input's answer is in it, and which of two models gave it: a run has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of fields: of the text, of a question and its context, and of what is added to a row.

    id: the one field that is kept of a row; None keeps all of it.
    """

    text: str = "text"
    question: str = "question"
    context: str = "context"
    id: str | None = None
    result: str = "result"
    error: str = "error"

    def read(self, task: Task) -> list[str]:
        """The fields that a request is made of."""
        return [self.question, self.context] if task is Task.QUESTION_ANSWERING else [self.text]

    @property
    def added(self) -> tuple[str, str]:
        """The fields that a row gets."""
        return self.result, self.error


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input.

    content: its fields; the problem of one that has none. kept: what its format needs to write it out again. size: its
    bytes, about. end: where the next one begins, in the units of its format.
    """

    content: Mapping[str, Any] | ProblemError
    kept: Any
    size: int
    end: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row: the text of a JSON object, or a problem. tokens: that the model read for it."""

    result: str | None = None
    problem: ProblemError | None = None
    tokens: int = 0

    def error(self) -> dict[str, str] | None:
        """The problem as it is written beside the row."""
        return {"type": self.problem.type, "detail": self.problem.detail} if self.problem else None


class Requests:
    """Makes requests of rows."""

    def __init__(self, handler: AnyHandler, columns: Columns, parameters: Mapping[str, Any]) -> None:
        """parameters: fields of every request.

        Raises FatalError (CONFIGURATION) for some that the task doesn't take.
        """
        self._task = handler.task
        self._schema = handler.request
        self._columns = columns
        self._parameters = parameters
        if fixed := sorted(_NOT_PARAMETERS & parameters.keys()):
            raise _wrong(f"{fixed[0]} can't be set for all rows")
        try:
            self._request(dict.fromkeys(columns.read(self._task), "a"))
        except ProblemError as problem:
            raise _wrong(problem.detail) from problem

    def make(self, row: Row) -> TaskRequest:
        """The request of a row. Raises ProblemError for a row that makes none."""
        if isinstance(row.content, ProblemError):
            raise row.content
        return self._request(row.content)

    def _request(self, content: Mapping[str, Any]) -> TaskRequest:
        for name in self._columns.read(self._task):
            if content.get(name) is None:
                raise ProblemError(ProblemType.INPUT_INVALID, f"the row has no field {name}")
        return checked(self._schema, {**self._parameters, **self._inputs(content)})

    def _inputs(self, content: Mapping[str, Any]) -> dict[str, Any]:
        columns = self._columns
        if self._task is Task.QUESTION_ANSWERING:
            return {"question": content[columns.question], "context": content[columns.context]}
        value = content[columns.text]
        if self._task is Task.TOKEN_CLASSIFICATION and isinstance(value, list):
            return {"words": [value]}
        if not isinstance(value, str):
            # A list would be several inputs.
            raise ProblemError(ProblemType.INPUT_INVALID, f"the field {columns.text} isn't text")
        return {"input" if self._task is Task.EMBEDDING else "inputs": value}


def outcome(reply: bytes) -> Outcome:
    """What a reply to a request with one input says of it."""
    document = json.loads(reply)
    if "data" in document:
        (found,) = document["data"]
    else:
        (found,) = document["results"]
    own = {name: value for name, value in found.items() if name not in NOT_OF_A_ROW}
    return Outcome(json.dumps(own, ensure_ascii=False), tokens=document["tokens"])


def parse_parameters(text: str) -> dict[str, Any]:
    """The value of `--parameters`. Raises FatalError (CONFIGURATION)."""
    try:
        parameters = json.loads(text)
    except ValueError as error:
        raise _wrong(f"it isn't JSON: {error}") from error
    if not isinstance(parameters, dict):
        raise _wrong("give a JSON object")
    return parameters


def check_columns(columns: Columns, present: Sequence[str], task: Task) -> None:
    """Whether a table with these columns can be scored. Raises FatalError (CONFIGURATION)."""
    if len(set(present)) < len(present):
        message = "two columns of the input have one name: give each its own"
        raise FatalError(ExitCode.CONFIGURATION, "ConfigurationInvalid", message)
    needed = [*columns.read(task), *([columns.id] if columns.id else [])]
    for name in needed:
        if name not in present:
            message = f"the input has no column {name}, its columns are {', '.join(present)}: name the right one"
            raise FatalError(ExitCode.CONFIGURATION, "ConfigurationInvalid", message)
    kept = [columns.id] if columns.id else present
    for name in columns.added:
        if name in kept:
            message = f"the input has a column {name} already: choose --result-field and --error-field"
            raise FatalError(ExitCode.CONFIGURATION, "ConfigurationInvalid", message)


def _wrong(message: str) -> FatalError:
    return FatalError(ExitCode.CONFIGURATION, "ConfigurationInvalid", f"--parameters: {message}")
