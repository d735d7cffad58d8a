"""Sequence classification: a probability for each label of a text."""

from typing import Annotated

from pydantic import BaseModel, Field

from cloze_api.task import Task
from cloze_server.backend import Logits
from cloze_server.tasks.handler import Handler, InputResult, Item, TaskReply, TaskRequest, Texts, best, softmax
from cloze_server.tokenization import Inputs


class ClassifyRequest(TaskRequest):
    """Texts to classify."""

    inputs: Texts = Field(examples=[["My card was charged twice."]])
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Labels in the reply, best first; all when absent."""


class LabelPrediction(BaseModel):
    """One label."""

    label: str
    score: float
    """Probability over all labels."""


class ClassifyResult(InputResult):
    """Labels of one input, best first."""

    predictions: list[LabelPrediction]


class ClassifyReply(TaskReply):
    """Results in the order of the inputs."""

    results: list[ClassifyResult]


class Classify(Handler[ClassifyRequest, ClassifyResult]):
    """Answers `/v1/classify`."""

    task = Task.SEQUENCE_CLASSIFICATION
    reply = ClassifyReply

    def inputs(self, request: ClassifyRequest) -> Inputs:
        """The texts."""
        return [request.inputs] if isinstance(request.inputs, str) else request.inputs

    def positions(self, request: ClassifyRequest, item: Item) -> None:
        """The model answers for the whole sequence."""

    def result(self, request: ClassifyRequest, item: Item, logits: Logits) -> ClassifyResult:
        """The best labels."""
        scores = softmax(logits)
        labels = self.model.labels
        return ClassifyResult(
            tokens=len(item.encoded.ids),
            truncated=item.encoded.truncated,
            predictions=[
                LabelPrediction(label=labels[label], score=float(scores[label]))
                for label in best(scores, request.top_k or len(labels))
            ],
        )
