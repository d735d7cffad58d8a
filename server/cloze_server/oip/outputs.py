"""Which tensors each task's results are."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cloze_api.task import Task
from cloze_server.oip.tensors import Datatype, Tensor

Results = Sequence[Mapping[str, Any]]
"""One for each input, as the task's own route has it."""


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor of a task.

    dimensions: their sizes, the first of which is the number of inputs; -1 where they depend on the request. of: its
    value for one result, in lists as deep as there are further dimensions. filling: stands where an input has fewer
    values than another.
    """

    name: str
    datatype: Datatype
    dimensions: tuple[int, ...]
    of: Callable[[Mapping[str, Any]], Any]
    filling: Any = None

    def tensor(self, results: Results) -> Tensor:
        """The tensor of some results."""
        shape, values = stacked([self.of(result) for result in results], len(self.dimensions), self.filling)
        return Tensor(self.name, self.datatype, shape, values)


def stacked(nested: list[Any], depth: int, filling: Any) -> tuple[tuple[int, ...], list[Any]]:
    """Shape and row-major values of lists in lists, `depth` deep, the short ones of a level filled up."""
    shape, level = [len(nested)], nested
    for _ in range(depth - 1):
        shape.append(max(map(len, level), default=0))
        level = [value for row in level for value in row]

    def filled(rows: list[Any], sizes: list[int]) -> list[Any]:
        if not sizes:
            return rows
        below = math.prod(sizes[1:])
        return [
            value for row in rows for value in (*filled(row, sizes[1:]), *([filling] * ((sizes[0] - len(row)) * below)))
        ]

    return tuple(shape), filled(nested, shape[1:])


def _each(members: str, *names: str) -> Callable[[Mapping[str, Any]], Any]:
    """A member of each entry of a result's list, and of their lists in turn."""

    def of(result: Mapping[str, Any]) -> Any:
        (first, *rest) = names
        values = result[members]
        return [_each(first, *rest)(value) if rest else value[first] for value in values]

    return of


def _compact(result: Mapping[str, Any]) -> str:
    return json.dumps(result, ensure_ascii=False, separators=(",", ":"))


_TEXT: Final = ("text",)


def inputs(task: Task) -> tuple[str, ...]:
    """Names of the BYTES tensors that a model takes, all of one length."""
    return ("question", "context") if task is Task.QUESTION_ANSWERING else _TEXT


def asked(task: Task, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The texts as the request of the task's own route has them."""
    match task:
        case Task.QUESTION_ANSWERING:
            pairs = zip(texts["question"], texts["context"], strict=True)
            return {"inputs": [{"question": question, "context": context} for question, context in pairs]}
        case Task.EMBEDDING:
            return {"input": texts["text"]}
        case _:
            return {"inputs": texts["text"]}


def results(task: Task, reply: Mapping[str, Any]) -> Results:
    """The results in a reply of the task's own route."""
    found: Results = reply["data" if task is Task.EMBEDDING else "results"]
    return found


RESPONSE: Final = Output("response", "BYTES", (-1,), _compact)
"""The whole result of each input as JSON; of every task."""

OUTPUTS: Final[Mapping[Task, tuple[Output, ...]]] = {
    Task.FILL_MASK: (
        Output("tokens", "BYTES", (-1, -1, -1), _each("masks", "predictions", "token"), ""),
        Output("scores", "FP32", (-1, -1, -1), _each("masks", "predictions", "score"), 0.0),
        RESPONSE,
    ),
    Task.SEQUENCE_CLASSIFICATION: (
        Output("labels", "BYTES", (-1, -1), _each("predictions", "label"), ""),
        Output("scores", "FP32", (-1, -1), _each("predictions", "score"), 0.0),
        RESPONSE,
    ),
    Task.TOKEN_CLASSIFICATION: (
        Output("labels", "BYTES", (-1, -1), _each("tags", "label"), ""),
        Output("scores", "FP32", (-1, -1), _each("tags", "score"), 0.0),
        Output("starts", "INT64", (-1, -1), _each("tags", "start"), -1),
        Output("ends", "INT64", (-1, -1), _each("tags", "end"), -1),
        RESPONSE,
    ),
    Task.QUESTION_ANSWERING: (
        Output("answers", "BYTES", (-1, -1), _each("answers", "answer"), ""),
        Output("scores", "FP32", (-1, -1), _each("answers", "score"), 0.0),
        Output("starts", "INT64", (-1, -1), _each("answers", "start"), -1),
        Output("ends", "INT64", (-1, -1), _each("answers", "end"), -1),
        RESPONSE,
    ),
    Task.EMBEDDING: (
        Output("embeddings", "FP32", (-1, -1), lambda result: result["embedding"], 0.0),
        # The vector itself is in the other.
        Output("response", "BYTES", (-1,), lambda result: _compact({**result, "embedding": None})),
    ),
    Task.ECHO: (Output("sha256", "BYTES", (-1,), lambda result: result["sha256"]), RESPONSE),
}
"""Dimensions after the first: of fill-mask, masks and predictions; of the others, labels, tags, answers or numbers."""
