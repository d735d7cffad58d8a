"""What a task's module provides, and the parts of requests and replies that all tasks share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from cloze_api.task import Task
from cloze_server.backend import Logits
from cloze_server.bounds import INPUTS_MAX
from cloze_server.model import LoadedModel
from cloze_server.tokenization import Encoded, Inputs

# Checking stops at the first wrong item: a body of wrong items must not make an error for each.
Texts = str | Annotated[list[str], Field(min_length=1, max_length=INPUTS_MAX, fail_fast=True)]


class TaskRequest(BaseModel):
    """Fields of every request. Unknown fields are refused: a misspelt option must not be ignored."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    truncate: Literal["error", "right"] = "error"
    """An input with more tokens than the model takes: `error` refuses the request, `right` drops the end."""
    model: Annotated[str, Field(max_length=128)] | None = None
    """`name` or `name/version` of the model that is to answer, where the server has several of this task; also the
    header `x-cloze-model`."""
    timeout_ms: Annotated[int, Field(ge=1)] | None = None
    """Milliseconds from the request's arrival after which its answer is of no use, at most the server's own limit; also
    the header `x-cloze-timeout-ms`."""

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        """One error for all unknown fields, which doesn't repeat their names: a client may have put text there."""
        if isinstance(data, dict) and not data.keys() <= cls.model_fields.keys():
            fields = ", ".join(cls.model_fields)
            raise PydanticCustomError("unknown_field", "unknown field; the fields are {fields}", {"fields": fields})
        return data


class InputResult(BaseModel):
    """Fields of the result of every input."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    tokens: int
    """Tokens that the model read, special tokens included."""
    truncated: bool
    """Whether the end of the input was dropped."""


class TaskReply(BaseModel):
    """Fields of every reply."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str
    version: str
    digest: str
    tokens: int
    """Tokens that the model read, over all inputs."""


@dataclass(frozen=True, slots=True)
class Item:
    """One input of a request: its place, its tokens, and where the model's answers are (see `Handler.positions`)."""

    index: int
    encoded: Encoded
    positions: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """One thing that a reply says: a label, and its probability. label: None where the classes are the vocabulary."""

    label: str | None
    confidence: float


RequestT = TypeVar("RequestT", bound=TaskRequest)
ResultT = TypeVar("ResultT", bound=InputResult)


class Handler(ABC, Generic[RequestT, ResultT]):
    """One task for one loaded model. Pure: no I/O, and safe to call from several threads."""

    task: Task
    request: type[TaskRequest]
    reply: type[TaskReply]
    needs_offsets: bool = False
    special_in_text: frozenset[int] = frozenset()
    """Ids of the special tokens that mean something in a text; others in it are ordinary text."""
    prefix: str = ""
    """The token that a text needs for the task to have something to answer, and a space."""
    framing: int = 2
    """Special tokens around a text."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    @abstractmethod
    def inputs(self, request: RequestT) -> Inputs:
        """The texts to tokenize, in order."""

    def sample(self, lengths: list[int]) -> RequestT:
        """A request with one text of about each length in tokens, for warming up."""
        framing = self.framing + bool(self.prefix)
        texts = [self.prefix + "a " * (length - framing) for length in lengths]
        return cast(RequestT, self.request.model_validate({"inputs": texts, "truncate": "right"}))

    @abstractmethod
    def positions(self, request: RequestT, item: Item) -> list[int] | None:
        """Tokens that an input needs an answer for; None for a model that answers for the whole sequence.

        Raises ProblemError for an input that has nothing to answer.
        """

    def check(self, request: RequestT, items: list[Item]) -> None:
        """Raises ProblemError when the reply would be too large."""

    @abstractmethod
    def keep(self, request: RequestT, item: Item, logits: Logits) -> Any:
        """What `result` needs of an input's logits, (length, classes) or (classes,); small, and a copy.

        Raises FloatingPointError for logits that are not finite.
        """

    @abstractmethod
    def result(self, request: RequestT, item: Item, kept: Any) -> ResultT:
        """The answer for one input, from what `keep` made."""

    def answers(self) -> list[str]:
        """The labels that predictions may have; none for a task whose answers aren't labels."""
        return []

    @abstractmethod
    def predictions(self, result: ResultT) -> list[Prediction]:
        """What a result says, to be counted."""


# Any: the request and result types go together, and the route has checked the request's.
AnyHandler = Handler[Any, Any]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best classes, best first, with their probabilities over all classes."""

    classes: list[int]
    scores: list[float]


def rank(logits: Logits, count: int) -> Ranking:
    """The `count` most likely of (classes,). Raises FloatingPointError."""
    scores = softmax(logits)
    classes = best(scores, count)
    return Ranking(classes, scores[classes].tolist())


def softmax(logits: Logits) -> Logits:
    """Softmax over the last axis. Raises FloatingPointError for logits that are not finite."""
    if not np.isfinite(logits).all():
        raise FloatingPointError("the model gave a logit that is not finite")
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: Logits = shifted / shifted.sum(axis=-1, keepdims=True)
    return scores


def best(scores: Logits, count: int) -> list[int]:
    """Indexes of the `count` highest of (classes,) scores, best first; the lower index wins a tie."""
    count = min(count, len(scores))
    if count == len(scores):
        return [int(index) for index in np.argsort(-scores, kind="stable")]
    # The count-th highest value decides who may be in; sorting only those keeps ties in order.
    threshold = np.partition(scores, -count)[-count]
    candidates = np.flatnonzero(scores >= threshold)
    return [int(index) for index in candidates[np.argsort(-scores[candidates], kind="stable")][:count]]
