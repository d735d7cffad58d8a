"""What a task's module provides, and the parts of requests and replies that all tasks share."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Generic, TypeVar, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from cloze_api.serving import INPUTS_MAX
from cloze_api.task import Task
from cloze_server.backend import Logits
from cloze_server.model import LoadedModel
from cloze_server.segments import Metadata
from cloze_server.tokenization import Encoded, Inputs
from cloze_server.windows import Truncation, Window

_NOT_FINITE = "the model gave a logit that is not finite"
_FEW_CLASSES = 64
# Checking stops at the first wrong item: a body of wrong items must not make an error for each.
Texts = str | Annotated[list[str], Field(min_length=1, max_length=INPUTS_MAX, fail_fast=True)]


class Strict(BaseModel):
    """What a client sends.

    Unknown fields are refused: a misspelt option must not be ignored. So are values of another type, such as `true` for
    a number: what they are meant to be is a guess.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        """One error for all unknown fields, which doesn't repeat their names: a client may have put text there."""
        if isinstance(data, dict) and not data.keys() <= cls.model_fields.keys():
            fields = ", ".join(cls.model_fields)
            raise PydanticCustomError("unknown_field", "unknown field; the fields are {fields}", {"fields": fields})
        return data


class TaskRequest(Strict):
    """Fields of every request."""

    truncate: Truncation = "error"
    """An input with more tokens than the model takes: `error` refuses the request, `left` drops the beginning, `right`
    the end, `window` reads all of it in overlapping windows whose answers are put together."""
    stride: Annotated[int, Field(ge=0)] | None = None
    """With `window`: tokens that a window shares with the one before it, which is the overlap and not the step. At most
    half of a window, and a quarter when absent."""
    model: Annotated[str, Field(max_length=128)] | None = None
    """`name` or `name/version` of the model that is to answer, where the server has several of this task; also the
    header `x-cloze-model`."""
    timeout_ms: Annotated[int, Field(ge=1)] | None = None
    """Milliseconds from the request's arrival after which its answer is of no use, at most the server's own limit; also
    the header `x-cloze-timeout-ms`."""
    metadata: Metadata | None = Field(default=None, examples=[None])
    """What the request is of, as `{"language": "de"}`, of keys and values that the server declares: metrics are kept
    for each."""


class InputResult(BaseModel):
    """Fields of the result of every input."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    tokens: int
    """Tokens that the model read: special tokens are among them, and what two windows share counts for both."""
    truncated: bool
    """Whether a part of the input was dropped."""
    windows: int
    """Parts that the model read the input in."""


class ClassifierResult(InputResult):
    """Fields of the result of an input that another model may have answered."""

    model: str | None = Field(default=None, exclude_if=lambda model: model is None)
    """`name/version` of the model that answered; absent where the request's model has no fallback."""
    fallback: bool = Field(default=False, exclude_if=lambda fallback: not fallback)
    """Whether that is the fallback; absent where it isn't."""


class TaskReply(BaseModel):
    """Fields of every reply."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str
    version: str
    digest: str
    tokens: int
    """Tokens that the model read, over all inputs."""
    truncated: int
    """Inputs of which a part was dropped."""
    windows: int
    """Parts that the model read, over all inputs."""


@dataclass(frozen=True, slots=True)
class Item:
    """One input of a request.

    index: its place. encoded: the text that may be cut into windows. lead, tail: what the model reads before and after
    every window: special tokens, and the question of a context. paired: whether the windows are the second text of a
    pair. covered: the tokens of the text that truncation has left. windows: the parts of them that are read. positions:
    tokens that need an answer, in their order; None for a model that answers for the whole sequence.
    """

    index: int
    encoded: Encoded
    lead: list[int]
    tail: list[int]
    paired: bool = False
    covered: range = range(0)
    windows: list[Window] = field(default_factory=list)
    positions: list[int] | None = None

    @property
    def truncated(self) -> bool:
        """Whether a part of the text is dropped."""
        return len(self.covered) < len(self.encoded.ids)

    @property
    def tokens(self) -> int:
        """Tokens that the model reads, over all windows."""
        around = len(self.lead) + len(self.tail)
        return sum(window.stop - window.start + around for window in self.windows)

    def count(self, token_id: int) -> int:
        """How often a token is in the text, as far as it is covered."""
        return self.encoded.ids[self.covered.start : self.covered.stop].count(token_id)

    def ids(self, window: Window) -> list[int]:
        """What the model reads of one window."""
        return [*self.lead, *self.encoded.ids[window.start : window.stop], *self.tail]

    def owned(self, window: Window) -> list[int]:
        """The positions that this window answers for."""
        positions = self.positions or []
        return positions[bisect_left(positions, window.first) : bisect_left(positions, window.last)]

    def rows(self, window: Window) -> list[int]:
        """Where the answers to `owned` are in the window's logits."""
        return [position - window.start + len(self.lead) for position in self.owned(window)]

    def answering(self, positions: list[int] | None) -> "Item":
        """The same with these positions; windows without any are left out."""
        if positions is None:
            return self
        item = replace(self, positions=positions)
        # The first stays where there is nothing to answer, so that every input goes the same way.
        return replace(item, windows=[window for window in self.windows if item.owned(window)] or self.windows[:1])

    def facts(self) -> dict[str, Any]:
        """The fields that every result has."""
        return {"tokens": self.tokens, "truncated": self.truncated, "windows": len(self.windows)}


@dataclass(frozen=True, slots=True)
class Prediction:
    """One thing that a reply says: a label, and its probability.

    label: None where the classes are the vocabulary. abstained: whether the probability is below the label's threshold.
    """

    label: str | None
    confidence: float
    abstained: bool = False


RequestT = TypeVar("RequestT", bound=TaskRequest)
ResultT = TypeVar("ResultT", bound=InputResult)


class Handler(ABC, Generic[RequestT, ResultT]):
    """One task for one loaded model. Pure: no I/O, and safe to call from several threads."""

    task: Task
    request: type[TaskRequest]
    reply: type[TaskReply]
    needs_offsets: bool = False
    texts_per_input: int = 1
    """Texts that `inputs` gives for each input."""
    special_in_text: frozenset[int] = frozenset()
    """Ids of the special tokens that mean something in a text; others in it are ordinary text."""
    prefix: str = ""
    """The token that a text needs for the task to have something to answer, and a space."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    @abstractmethod
    def inputs(self, request: RequestT) -> Inputs:
        """The texts to tokenize, in order."""

    def sample(self, lengths: list[int]) -> RequestT:
        """A request with one text of about each length in tokens, for warming up."""
        body = {"inputs": self.fillers(lengths), "truncate": "right"}
        return cast(RequestT, self.request.model_validate(body))

    def fillers(self, lengths: list[int]) -> list[str]:
        """One text of about each length in tokens."""
        framing = len(self.model.frame.before) + len(self.model.frame.after) + bool(self.prefix)
        return [self.prefix + "a " * (length - framing) for length in lengths]

    def items(self, request: RequestT, encoded: list[Encoded]) -> list[Item]:  # noqa: ARG002 - for tasks with pairs
        """The inputs, from the tokens of what `inputs` gave; not yet in windows."""
        frame = self.model.frame
        return [Item(index, each, frame.before, frame.after) for index, each in enumerate(encoded)]

    @abstractmethod
    def positions(self, request: RequestT, item: Item) -> list[int] | None:
        """Tokens of an input that need an answer, among those covered; None for a model that answers for the whole
        sequence. Of an input that has some, windows without any are not read.

        Raises ProblemError for an input that has nothing to answer.
        """

    def check(self, request: RequestT, items: list[Item]) -> None:
        """Raises ProblemError when the reply would be too large."""

    def most(self, request: RequestT, items: list[Item]) -> int:  # noqa: ARG002 - for tasks that are asked for a number
        """How many predictions the reply may have, about."""
        return sum(item.tokens for item in items)

    @abstractmethod
    def keep(self, request: RequestT, item: Item, window: Window, logits: Logits) -> Any:
        """What `result` needs of a window's logits, (length, classes) or (classes,); small, and a copy.

        Raises FloatingPointError for logits that are not finite.
        """

    @abstractmethod
    def result(self, request: RequestT, item: Item, kept: list[Any]) -> ResultT:
        """The answer for one input, from what `keep` made of each of its windows."""

    def abstains(self, label: str, score: float) -> bool:
        """Whether a label's probability is below the threshold that the model came with."""
        return score < self.model.calibration.threshold(label)

    def compose(self, request: RequestT, results: list[ResultT], facts: dict[str, Any]) -> TaskReply:  # noqa: ARG002 - for tasks with a reply of another form
        """The reply. facts: the fields that every reply has."""
        return self.reply.model_validate({**facts, "results": results})

    def narrowed(self, request: RequestT, places: list[int]) -> RequestT:
        """The same request for some of its inputs. Of tasks whose models abstain."""
        raise NotImplementedError

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
    if len(logits) <= _FEW_CLASSES:
        return _rank_few(logits.tolist(), count)
    scores = softmax(logits)
    classes = best(logits, count)
    return Ranking(classes, scores[classes].tolist())


def _rank_few(logits: list[float], count: int) -> Ranking:
    """The same in a tenth of the time: what numpy asks for a call is more than the work."""
    if not all(map(math.isfinite, logits)):
        raise FloatingPointError(_NOT_FINITE)
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    total = sum(powers)
    # The lower index wins a tie, as sorting keeps an order.
    classes = sorted(range(len(powers)), key=logits.__getitem__, reverse=True)[:count]
    return Ranking(classes, [powers[index] / total for index in classes])


def pooled(windows: list[Window], vectors: list[Logits]) -> Logits:
    """The mean of one (classes,) vector for each window, weighted by the window's tokens of the text."""
    if len(vectors) == 1:
        return vectors[0]
    mean: Logits = np.average(vectors, axis=0, weights=[window.stop - window.start for window in windows])
    return mean.astype(np.float32)


def finite(logits: Logits) -> Logits:
    """The same logits. Raises FloatingPointError for some that are not finite."""
    if not np.isfinite(logits).all():
        raise FloatingPointError(_NOT_FINITE)
    return logits


def softmax(logits: Logits) -> Logits:
    """Softmax over the last axis. Raises FloatingPointError for logits that are not finite."""
    finite(logits)
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
