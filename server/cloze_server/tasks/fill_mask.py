"""Fill-mask: the most likely tokens at each mask."""

from itertools import chain
from typing import Annotated

from pydantic import BaseModel, Field

from cloze_api.task import Task
from cloze_server.backend import Logits
from cloze_server.bounds import PREDICTIONS_MAX
from cloze_server.model import LoadedModel
from cloze_server.problems import ProblemError, ProblemType
from cloze_server.tasks.handler import (
    Handler,
    InputResult,
    Item,
    Prediction,
    Ranking,
    TaskReply,
    TaskRequest,
    Texts,
    rank,
)
from cloze_server.tokenization import Inputs
from cloze_server.windows import Window


class FillMaskRequest(TaskRequest):
    """Texts with at least one mask token each."""

    inputs: Texts = Field(examples=["The capital of France is [MASK]."])
    top_k: Annotated[int, Field(ge=1, le=1000)] = 5


class TokenPrediction(BaseModel):
    """One token for a mask."""

    token: str
    token_id: int
    score: float
    """Probability over the whole vocabulary."""


class Mask(BaseModel):
    """One mask of an input."""

    position: int
    """Index among all tokens of the input, also of one that was cut; `[CLS]` is 0."""
    predictions: list[TokenPrediction]


class FillMaskResult(InputResult):
    """Predictions for one input."""

    masks: list[Mask]


class FillMaskReply(TaskReply):
    """Results in the order of the inputs."""

    results: list[FillMaskResult]


class FillMask(Handler[FillMaskRequest, FillMaskResult]):
    """The most likely tokens at each mask of each input."""

    task = Task.FILL_MASK
    request = FillMaskRequest
    reply = FillMaskReply

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model)
        self._tokens = {token_id: token for token, token_id in model.vocabulary.items()}
        # Loading refuses a fill-mask model without one.
        assert model.special_tokens.mask is not None
        self._mask: int = model.special_tokens.mask
        self.special_in_text = frozenset({self._mask})
        self.prefix = self._tokens.get(self._mask, "") + " "

    def inputs(self, request: FillMaskRequest) -> Inputs:
        """The texts."""
        return [request.inputs] if isinstance(request.inputs, str) else request.inputs

    def positions(self, request: FillMaskRequest, item: Item) -> list[int]:  # noqa: ARG002 - as in Handler
        """Where the masks are."""
        ids = item.encoded.ids
        found = [position for position in item.covered if ids[position] == self._mask]
        if not found:
            where = " in the part that is left after truncation" if item.truncated else ""
            token = self._tokens.get(self._mask, "[MASK]")
            raise ProblemError(
                ProblemType.MASK_MISSING,
                f"input {item.index} has no {token}{where}: put one in it",
            )
        return found

    def most(self, request: FillMaskRequest, items: list[Item]) -> int:
        """So many for each mask."""
        return sum(len(item.positions or []) for item in items) * request.top_k

    def check(self, request: FillMaskRequest, items: list[Item]) -> None:
        """Raises ProblemError for more predictions than a reply may have."""
        predictions = self.most(request, items)
        if predictions > PREDICTIONS_MAX:
            message = f"{predictions} predictions (masks × top_k): a request may have at most {PREDICTIONS_MAX}"
            raise ProblemError(ProblemType.REQUEST_TOO_LARGE, message, members={"limit": PREDICTIONS_MAX})

    def keep(self, request: FillMaskRequest, item: Item, window: Window, logits: Logits) -> list[Ranking]:
        """The best tokens for each mask. One mask after the other: each has a score for the whole vocabulary."""
        return [rank(logits[row], request.top_k) for row in item.rows(window)]

    def result(self, request: FillMaskRequest, item: Item, kept: list[list[Ranking]]) -> FillMaskResult:  # noqa: ARG002 - as in Handler
        """The `top_k` tokens for each mask, from the window where it has most context."""
        masks = []
        for position, ranking in zip(item.positions or [], chain.from_iterable(kept), strict=True):
            predictions = [
                TokenPrediction(token=self._tokens.get(token_id, ""), token_id=token_id, score=score)
                for token_id, score in zip(ranking.classes, ranking.scores, strict=True)
            ]
            masks.append(Mask(position=position + len(item.lead), predictions=predictions))
        return FillMaskResult(**item.facts(), masks=masks)

    def predictions(self, result: FillMaskResult) -> list[Prediction]:
        """The likeliest token of each mask, unnamed: it is text."""
        return [Prediction(None, mask.predictions[0].score) for mask in result.masks]
