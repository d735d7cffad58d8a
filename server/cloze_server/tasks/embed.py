"""Embeddings: a vector for a text, and how alike texts are by them.

The graph pools and normalises. The windows of a long text are put together as the mean of their vectors, weighted by
tokens: that is what pooling over the whole text would give, but for the context that a window lacks.
"""

import base64
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cloze_api.manifest import Embedding
from cloze_api.serving import INPUTS_MAX
from cloze_api.task import Task
from cloze_server.backend import Logits
from cloze_server.model import LoadedModel
from cloze_server.problems import ProblemError, ProblemType
from cloze_server.tasks.handler import (
    Handler,
    InputResult,
    Item,
    Prediction,
    TaskReply,
    TaskRequest,
    Texts,
    finite,
    pooled,
)
from cloze_server.tokenization import Inputs
from cloze_server.windows import Window

Pair = Annotated[list[str], Field(min_length=2, max_length=2)]


class EmbeddingsRequest(TaskRequest):
    """Texts to embed, as OpenAI's clients send them."""

    input: Texts = Field(examples=[["The parcel arrived late."]])
    encoding_format: Literal["float", "base64"] = "float"
    """`base64` holds 32-bit floats, the least significant byte first: a third of the size, and no digits to parse."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Leading dimensions in the reply, of those that the model was trained to be cut to; all when absent."""
    user: str | None = None
    """Taken because clients send it; neither used nor kept."""


class EmbeddingData(BaseModel):
    """The vector of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    tokens: int
    """Tokens that the model read: special tokens are among them, and what two windows share counts for both."""
    truncated: bool
    """Whether a part of the input was dropped."""
    windows: int
    """Parts that the model read the input in."""


class Usage(BaseModel):
    """Tokens that the model read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(TaskReply):
    """Vectors in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[EmbeddingData]
    usage: Usage


class SimilarityRequest(TaskRequest):
    """`source` and `sentences` to compare it with, or `pairs` of texts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"source": "Where is my parcel?", "sentences": ["It is late.", "The sun shines."]}]
        }
    )

    source: str | None = None
    sentences: Annotated[list[str], Field(min_length=1, max_length=INPUTS_MAX, fail_fast=True)] | None = None
    pairs: Annotated[list[Pair], Field(min_length=1, max_length=INPUTS_MAX, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        compared = (self.source is not None, self.sentences is not None)
        if compared not in ((True, True), (False, False)) or compared[0] == (self.pairs is not None):
            raise ValueError("give either source and sentences, or pairs")
        return self


class SimilarityReply(TaskReply):
    """The cosine of the angle between two vectors, -1 to 1, for each sentence or pair."""

    scores: list[float]


class VectorResult(InputResult):
    """The vector of one text."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    vector: Logits


RequestT = TypeVar("RequestT", bound=TaskRequest)


class _Vectors(Handler[RequestT, VectorResult], Generic[RequestT]):
    """What all that needs vectors has in common."""

    task = Task.EMBEDDING

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model)
        # Loading refuses an embedding model without.
        assert model.embedding is not None
        self._embedding: Embedding = model.embedding

    def positions(self, request: RequestT, item: Item) -> None:
        """The model answers for the whole sequence."""

    def keep(self, request: RequestT, item: Item, window: Window, logits: Logits) -> Logits:  # noqa: ARG002 - as in Handler
        """The vector."""
        return finite(logits).copy()

    def result(self, request: RequestT, item: Item, kept: list[Logits]) -> VectorResult:  # noqa: ARG002 - as in Handler
        """The vector of the whole text."""
        vector = pooled(item.windows, kept)
        if len(kept) > 1 and self._embedding.normalized:
            vector = unit(vector)
        return VectorResult(**item.facts(), vector=vector)

    def predictions(self, result: VectorResult) -> list[Prediction]:  # noqa: ARG002 - as in Handler
        """None: a vector isn't more or less likely."""
        return []


class Embed(_Vectors[EmbeddingsRequest]):
    """A vector for each input, in the format of OpenAI's embeddings."""

    request = EmbeddingsRequest
    reply = EmbeddingsReply

    def inputs(self, request: EmbeddingsRequest) -> Inputs:
        """The texts. Raises ProblemError for dimensions that the model doesn't have."""
        allowed = dimensions(self._embedding)
        if request.dimensions is not None and request.dimensions not in allowed:
            message = (
                f"the model's vectors can have {', '.join(map(str, allowed))} dimensions: it wasn't trained to be cut "
                "to other numbers"
            )
            raise ProblemError(ProblemType.INPUT_INVALID, message, members={"dimensions": allowed})
        return [request.input] if isinstance(request.input, str) else request.input

    def sample(self, lengths: list[int]) -> EmbeddingsRequest:
        """Texts of about each length."""
        return EmbeddingsRequest(input=self.fillers(lengths), truncate="right")

    def compose(self, request: EmbeddingsRequest, results: list[VectorResult], facts: dict[str, Any]) -> TaskReply:
        """The vectors as asked."""
        data = []
        for index, result in enumerate(results):
            vector = result.vector[: request.dimensions]
            if len(vector) < len(result.vector) and self._embedding.normalized:
                vector = unit(vector)
            coded = base64.b64encode(vector.astype("<f4").tobytes()).decode()
            data.append(
                EmbeddingData(
                    index=index,
                    embedding=coded if request.encoding_format == "base64" else vector.tolist(),
                    tokens=result.tokens,
                    truncated=result.truncated,
                    windows=result.windows,
                )
            )
        tokens = facts["tokens"]
        return EmbeddingsReply(**facts, data=data, usage=Usage(prompt_tokens=tokens, total_tokens=tokens))


class Similarity(_Vectors[SimilarityRequest]):
    """How alike texts are: the cosine between their vectors."""

    request = SimilarityRequest
    reply = SimilarityReply

    def inputs(self, request: SimilarityRequest) -> Inputs:
        """The source and the sentences, or the texts of all pairs."""
        if request.pairs is not None:
            return [text for pair in request.pairs for text in pair]
        return [request.source or "", *(request.sentences or [])]

    def sample(self, lengths: list[int]) -> SimilarityRequest:
        """Pairs of equal texts of about each length."""
        return SimilarityRequest(pairs=[[text, text] for text in self.fillers(lengths)], truncate="right")

    def compose(self, request: SimilarityRequest, results: list[VectorResult], facts: dict[str, Any]) -> TaskReply:
        """One number for each sentence or pair."""
        vectors = [unit(result.vector) for result in results]
        left = vectors[::2] if request.pairs is not None else vectors[:1] * (len(vectors) - 1)
        right = vectors[1::2] if request.pairs is not None else vectors[1:]
        scores = [float(np.clip(one @ other, -1.0, 1.0)) for one, other in zip(left, right, strict=True)]
        return SimilarityReply(**facts, scores=scores)


def dimensions(embedding: Embedding) -> list[int]:
    """How many a request may ask for, in ascending order; the last is what the model gives."""
    return sorted({*embedding.matryoshka, embedding.dimensions})


def unit(vector: Logits) -> Logits:
    """The vector with length 1; one without a length stays as it is."""
    length = float(np.linalg.norm(vector))
    return vector if length == 0 else vector / np.float32(length)
