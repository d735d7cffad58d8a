"""Token classification: labels of words, and entities made of them.

Words of a text are what the tokenizer's pre-tokenizer splits it into (white space and punctuation); a request may also
bring its own words. In a text that is read in windows each token's scores are those of the window that owns it.
"""

from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from cloze_api.entities import Scheme
from cloze_api.serving import INPUTS_MAX
from cloze_api.task import Task
from cloze_server.backend import Logits
from cloze_server.bounds import WORDS_MAX
from cloze_server.model import LoadedModel
from cloze_server.tasks.entities import Aggregation, Labelled, join, labels_of, trimmed, words_of
from cloze_server.tasks.handler import (
    ClassifierResult,
    Handler,
    Item,
    Prediction,
    TaskReply,
    TaskRequest,
    Texts,
    softmax,
)
from cloze_server.tokenization import Inputs
from cloze_server.windows import Window

Words = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=WORDS_MAX, fail_fast=True)]
"""One input that is split into words."""


class TokenClassifyRequest(TaskRequest):
    """Texts, or texts already split into words: exactly one of `inputs` and `words`."""

    inputs: Texts | None = Field(default=None, examples=["Ada Lovelace lived in London."])
    words: Annotated[list[Words], Field(min_length=1, max_length=INPUTS_MAX, fail_fast=True)] | None = None
    """One list of words for each input; the reply has one tag for each word."""
    aggregation: Aggregation = "first"
    """For `inputs`: `none` gives a tag for each sub-word. `simple` joins sub-words to entities. The others join words,
    whose label is that of their first sub-word (`first`), of their sub-words' mean probabilities (`average`) or of the
    sub-word that is surest (`max`). Entities are joined when the model's labels mark some (`O` beside names, `B-…` and
    `I-…`, also with `E-…` and `S-…`, or `L-…` and `U-…`), leaving out `O`; other labels give a tag for each word, or
    with `simple` for each sub-word. `words` have a tag each, by the first sub-word unless it is `average` or `max`."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.inputs is None) == (self.words is None):
            raise ValueError("give exactly one of inputs and words")
        return self


class Tag(BaseModel):
    """A label of a sub-word, a word or an entity; `start` and `end` are characters of the input.

    For words that the request brought there are no characters, and no label where truncation dropped the word or the
    tokenizer found nothing in it.
    """

    word: str
    label: str | None
    score: float | None
    start: int | None = None
    end: int | None = None
    abstained: bool = False
    """Whether the score is below the threshold that the model came with."""


class TokenClassifyResult(ClassifierResult):
    """Tags of one input, in order."""

    tags: list[Tag]


class TokenClassifyReply(TaskReply):
    """Results in the order of the inputs."""

    results: list[TokenClassifyResult]


class TokenClassify(Handler[TokenClassifyRequest, TokenClassifyResult]):
    """Labels of words, or the entities that they make up."""

    task = Task.TOKEN_CLASSIFICATION
    request = TokenClassifyRequest
    reply = TokenClassifyReply
    needs_offsets = True

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model)
        self._scheme = Scheme(model.labels)

    def inputs(self, request: TokenClassifyRequest) -> Inputs:
        """The texts or the words."""
        if request.words is not None:
            return request.words
        return [request.inputs] if isinstance(request.inputs, str) else request.inputs or []

    def positions(self, request: TokenClassifyRequest, item: Item) -> list[int]:  # noqa: ARG002 - as in Handler
        """All tokens."""
        return list(item.covered)

    def keep(self, request: TokenClassifyRequest, item: Item, window: Window, logits: Logits) -> Logits:  # noqa: ARG002 - as in Handler
        """The probabilities of the labels of each token that the window owns."""
        return softmax(logits[item.rows(window)] / np.float32(self.model.calibration.temperature))

    def result(self, request: TokenClassifyRequest, item: Item, kept: list[Logits]) -> TokenClassifyResult:
        """Tags in the order of the text."""
        scores = np.concatenate(kept)
        words = (item.encoded.words or [])[item.covered.start : item.covered.stop]
        if request.words is not None:
            tags = self._given_words(request.words[item.index], words, scores, request.aggregation)
        else:
            text = self.inputs(request)[item.index]
            assert isinstance(text, str)
            offsets = (item.encoded.offsets or [])[item.covered.start : item.covered.stop]
            tags = self._found_words(text, words, offsets, scores, request.aggregation)
        return TokenClassifyResult(**item.facts(), tags=tags)

    def _given_words(
        self, given: list[str], words: list[int | None], scores: Logits, aggregation: Aggregation
    ) -> list[Tag]:
        tags = [Tag(word=word, label=None, score=None) for word in given]
        spans = words_of(words)
        for span, (label, score) in zip(spans, labels_of(scores, spans, aggregation), strict=True):
            word = words[span.start]
            assert word is not None
            name = self.model.labels[label]
            tags[word] = Tag(word=given[word], label=name, score=score, abstained=self.abstains(name, score))
        return tags

    def _found_words(
        self,
        text: str,
        words: list[int | None],
        offsets: list[tuple[int, int]],
        scores: Logits,
        aggregation: Aggregation,
    ) -> list[Tag]:
        each = aggregation in ("none", "simple")
        spans = [range(index, index + 1) for index in range(len(words))] if each else words_of(words)
        parts = [
            Labelled(self.model.labels[label], score, *trimmed(text, offsets[span[0]][0], offsets[span[-1]][1]))
            for span, (label, score) in zip(spans, labels_of(scores, spans, aggregation), strict=True)
        ]
        if aggregation != "none" and self._scheme.joins:
            parts = join(self._scheme, parts)
        return [
            Tag(
                word=text[part.start : part.end],
                label=part.label,
                score=part.score,
                start=part.start,
                end=part.end,
                abstained=self.abstains(part.label, part.score),
            )
            for part in parts
        ]

    def narrowed(self, request: TokenClassifyRequest, places: list[int]) -> TokenClassifyRequest:
        """Some of the texts, or of the lists of words."""
        inputs = self.inputs(request)
        name = "inputs" if request.words is None else "words"
        return request.model_copy(update={name: [inputs[place] for place in places]})

    def answers(self) -> list[str]:
        """The model's labels, and the names of the entities that they make up."""
        return list(dict.fromkeys([*self.model.labels, *self._scheme.names]))

    def predictions(self, result: TokenClassifyResult) -> list[Prediction]:
        """The labels as answered: of words, sub-words or entities. A word without a label has no score."""
        return [Prediction(tag.label, tag.score, tag.abstained) for tag in result.tags if tag.score is not None]
