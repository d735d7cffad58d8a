"""Echo: a hash of each text, so that a reply that belongs to another request shows."""

import hashlib

from pydantic import Field

from cloze_api.task import Task
from cloze_server.backend import Logits
from cloze_server.tasks.handler import Handler, InputResult, Item, Prediction, TaskReply, TaskRequest, Texts
from cloze_server.tokenization import Inputs
from cloze_server.windows import Window


class EchoRequest(TaskRequest):
    """Texts to hash."""

    inputs: Texts = Field(examples=[["a text"]])


class EchoResult(InputResult):
    """The hash of one input."""

    sha256: str
    """SHA-256 of the whole text in UTF-8, as hex; also of one that was longer than the model takes."""


class EchoReply(TaskReply):
    """Results in the order of the inputs."""

    results: list[EchoResult]


class Echo(Handler[EchoRequest, EchoResult]):
    """A hash of each input."""

    task = Task.ECHO
    request = EchoRequest
    reply = EchoReply

    def inputs(self, request: EchoRequest) -> Inputs:
        """The texts."""
        return [request.inputs] if isinstance(request.inputs, str) else request.inputs

    def positions(self, request: EchoRequest, item: Item) -> None:
        """The model answers for the whole sequence."""

    def keep(self, request: EchoRequest, item: Item, window: Window, logits: Logits) -> None:
        """Nothing: the answer is in the request."""

    def result(self, request: EchoRequest, item: Item, kept: list[None]) -> EchoResult:  # noqa: ARG002 - as in Handler
        """The hash."""
        text = self.inputs(request)[item.index]
        assert isinstance(text, str)
        return EchoResult(**item.facts(), sha256=hashlib.sha256(text.encode()).hexdigest())

    def predictions(self, result: EchoResult) -> list[Prediction]:  # noqa: ARG002 - as in Handler
        """None: a hash isn't more or less likely."""
        return []
