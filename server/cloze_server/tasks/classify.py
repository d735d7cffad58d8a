"""Sequence classification: a probability for each label of a text.

The windows of a long text are put together as the mean of their logits, weighted by tokens, so that a short last window
has a short say. Logits, because a window that can't tell has about equal ones and leaves the decision to the others,
where its even probabilities would water down theirs.
"""

from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field

from cloze_api.task import Problem, Task
from cloze_server.backend import Logits
from cloze_server.tasks.handler import (
    ClassifierResult,
    Handler,
    Item,
    Prediction,
    TaskReply,
    TaskRequest,
    Texts,
    finite,
    pooled,
    rank,
)
from cloze_server.tokenization import Inputs
from cloze_server.windows import Window

_HALF = 0.5


class ClassifyRequest(TaskRequest):
    """Texts to classify."""

    inputs: Texts = Field(examples=[["My card was charged twice."]])
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Labels in the reply, best first; all when absent."""


class LabelPrediction(BaseModel):
    """One label."""

    label: str
    score: float
    """Probability over all labels; of a multi-label model, of this label by itself; of a regression, the number."""
    applies: bool | None = Field(default=None, exclude_if=lambda applies: applies is None)
    """Of a multi-label model: whether the probability reaches the label's threshold, by default a half."""


class ClassifyResult(ClassifierResult):
    """Labels of one input, best first."""

    predictions: list[LabelPrediction]
    abstained: bool
    """Whether the best label's probability is below the threshold that the model came with."""


class ClassifyReply(TaskReply):
    """Results in the order of the inputs."""

    results: list[ClassifyResult]


class Classify(Handler[ClassifyRequest, ClassifyResult]):
    """Probabilities of labels for each input."""

    task = Task.SEQUENCE_CLASSIFICATION
    request = ClassifyRequest
    reply = ClassifyReply

    def inputs(self, request: ClassifyRequest) -> Inputs:
        """The texts."""
        return [request.inputs] if isinstance(request.inputs, str) else request.inputs

    def positions(self, request: ClassifyRequest, item: Item) -> None:
        """The model answers for the whole sequence."""

    def keep(self, request: ClassifyRequest, item: Item, window: Window, logits: Logits) -> Logits:  # noqa: ARG002 - as in Handler
        """The logits, as long as they are all finite."""
        return finite(logits).copy()

    def result(self, request: ClassifyRequest, item: Item, kept: list[Logits]) -> ClassifyResult:
        """The best labels by name."""
        logits = pooled(item.windows, kept) / np.float32(self.model.calibration.temperature)
        if self.model.problem is not Problem.SINGLE_LABEL:
            predictions = self._by_itself(logits)[: request.top_k]
            return ClassifyResult(**item.facts(), predictions=predictions, abstained=False)
        ranking = rank(logits, request.top_k or len(self.model.labels))
        predictions = [
            LabelPrediction(label=self.model.labels[label], score=score)
            for label, score in zip(ranking.classes, ranking.scores, strict=True)
        ]
        best = predictions[0]
        return ClassifyResult(**item.facts(), predictions=predictions, abstained=self.abstains(best.label, best.score))

    def _by_itself(self, logits: Logits) -> list[LabelPrediction]:
        """Labels that don't exclude each other, likeliest first; or the number of a regression."""
        if self.model.problem is Problem.REGRESSION:
            return [LabelPrediction(label=self.model.labels[0], score=float(logits[0]))]
        # tanh doesn't overflow.
        shares = 0.5 * (1 + np.tanh(logits.astype(np.float64) / 2))
        found = []
        for place in np.argsort(-shares, kind="stable"):
            label, score = self.model.labels[place], float(shares[place])
            bound = self.model.calibration.threshold(label, _HALF)
            found.append(LabelPrediction(label=label, score=score, applies=score >= bound))
        return found

    def narrowed(self, request: ClassifyRequest, places: list[int]) -> ClassifyRequest:
        """Some of the texts."""
        texts = self.inputs(request)
        return request.model_copy(update={"inputs": [texts[place] for place in places]})

    def answers(self) -> list[str]:
        """The model's labels."""
        return self.model.labels

    def predictions(self, result: ClassifyResult) -> list[Prediction]:
        """The best label; of labels that don't exclude each other those that apply, and none of a number."""
        if self.model.problem is not Problem.SINGLE_LABEL:
            return [Prediction(each.label, each.score) for each in result.predictions if each.applies]
        best = result.predictions[0]
        return [Prediction(best.label, best.score, result.abstained)]
