"""Token classification: labels of words, and entities made of them.

A word's label is that of its first sub-word, as in training. Words of a text are what the tokenizer's pre-tokenizer
splits it into (white space and punctuation); a request may also bring its own words.
"""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from cloze_api.task import Task
from cloze_server.backend import Logits
from cloze_server.bounds import INPUTS_MAX, WORDS_MAX
from cloze_server.model import LoadedModel
from cloze_server.tasks.handler import (
    Handler,
    InputResult,
    Item,
    Prediction,
    TaskReply,
    TaskRequest,
    Texts,
    softmax,
)
from cloze_server.tokenization import Encoded, Inputs

OUTSIDE = "O"

Words = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=WORDS_MAX, fail_fast=True)]
"""One input that is split into words."""


class TokenClassifyRequest(TaskRequest):
    """Texts, or texts already split into words: exactly one of `inputs` and `words`."""

    inputs: Texts | None = Field(default=None, examples=["Ada Lovelace lived in London."])
    words: Annotated[list[Words], Field(min_length=1, max_length=INPUTS_MAX, fail_fast=True)] | None = None
    """One list of words for each input; the reply has one tag for each word."""
    aggregation: Literal["none", "first"] = "first"
    """For `inputs`: `none` gives a tag for each sub-word; `first` one for each word, by its first sub-word, and joins
    words to entities when all of the model's labels are O, B-… or I-…, leaving out O."""

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


class TokenClassifyResult(InputResult):
    """Tags of one input, in order."""

    tags: list[Tag]


class TokenClassifyReply(TaskReply):
    """Results in the order of the inputs."""

    results: list[TokenClassifyResult]


def first_subwords(words: list[int | None]) -> list[int]:
    """Positions of tokens that begin a word. words: each token's word index, None for special tokens."""
    return [
        position
        for position, word in enumerate(words)
        if word is not None and (position == 0 or words[position - 1] != word)
    ]


def split_label(label: str) -> tuple[str, str]:
    """`B-PER` as ("B", "PER"); a label without a prefix has the prefix ""."""
    prefix, dash, name = label.partition("-")
    return (prefix, name) if dash and prefix in ("B", "I") else ("", label)


def joinable(labels: list[str]) -> bool:
    """Whether labels are those of IOB2: O, B-… and I-…. With any other, joining would drop words."""
    prefixes = [split_label(label)[0] for label in labels if label != OUTSIDE]
    return bool(prefixes) and all(prefixes)


def join_entities(tags: list[Tag], text: str) -> list[Tag]:
    """Entities from the tags of consecutive words (IOB2; an I- without its beginning starts one, as conlleval has it).

    The score is the mean over the entity's words.
    """
    entities: list[Tag] = []
    scores: list[list[float]] = []
    previous = ""
    for tag in tags:
        prefix, name = split_label(tag.label or OUTSIDE)
        if prefix == "I" and previous == name:
            entities[-1].end = tag.end
            scores[-1].append(tag.score or 0.0)
        elif prefix:
            entities.append(Tag(word="", label=name, score=None, start=tag.start, end=tag.end))
            scores.append([tag.score or 0.0])
        previous = name if prefix else ""
    for entity, found in zip(entities, scores, strict=True):
        entity.word = text[entity.start : entity.end]
        entity.score = sum(found) / len(found)
    return entities


class TokenClassify(Handler[TokenClassifyRequest, TokenClassifyResult]):
    """Labels of words, or the entities that they make up."""

    task = Task.TOKEN_CLASSIFICATION
    request = TokenClassifyRequest
    reply = TokenClassifyReply
    needs_offsets = True

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model)
        self._has_entities = joinable(model.labels)

    def inputs(self, request: TokenClassifyRequest) -> Inputs:
        """The texts or the words."""
        if request.words is not None:
            return request.words
        return [request.inputs] if isinstance(request.inputs, str) else request.inputs or []

    def positions(self, request: TokenClassifyRequest, item: Item) -> list[int]:
        """First sub-words, or all but the special tokens."""
        words = item.encoded.words or []
        if request.words is None and request.aggregation == "none":
            return [position for position, word in enumerate(words) if word is not None]
        return first_subwords(words)

    def keep(self, request: TokenClassifyRequest, item: Item, logits: Logits) -> list[tuple[int, float]]:  # noqa: ARG002 - as in Handler
        """The most likely label at each position, and its probability."""
        if not item.positions:
            return []
        scores = softmax(logits[item.positions])
        labels = scores.argmax(axis=-1)
        return list(zip(labels.tolist(), scores[np.arange(len(labels)), labels].tolist(), strict=True))

    def result(self, request: TokenClassifyRequest, item: Item, kept: list[tuple[int, float]]) -> TokenClassifyResult:
        """Tags in the order of the text."""
        encoded, positions = item.encoded, item.positions or []
        predictions = [(self.model.labels[label], score) for label, score in kept]
        if request.words is not None:
            tags = self._given_words(request.words[item.index], encoded, positions, predictions)
        else:
            text = self.inputs(request)[item.index]
            assert isinstance(text, str)
            tags = self._found_words(text, encoded, positions, predictions, request.aggregation)
        return TokenClassifyResult(tokens=len(encoded.ids), truncated=encoded.truncated, tags=tags)

    @staticmethod
    def _given_words(
        words: list[str], encoded: Encoded, positions: list[int], predictions: list[tuple[str, float]]
    ) -> list[Tag]:
        tags = [Tag(word=word, label=None, score=None) for word in words]
        for position, (label, score) in zip(positions, predictions, strict=True):
            word = (encoded.words or [])[position]
            assert word is not None
            tags[word] = Tag(word=words[word], label=label, score=score)
        return tags

    def _found_words(
        self,
        text: str,
        encoded: Encoded,
        positions: list[int],
        predictions: list[tuple[str, float]],
        aggregation: Literal["none", "first"],
    ) -> list[Tag]:
        offsets = encoded.offsets or []
        words = encoded.words or []
        tags = []
        for position, (label, score) in zip(positions, predictions, strict=True):
            start, end = offsets[position]
            if aggregation == "first":
                last = position
                while last + 1 < len(words) and words[last + 1] == words[position]:
                    last += 1
                end = offsets[last][1]
            tags.append(Tag(word=text[start:end], label=label, score=score, start=start, end=end))
        return join_entities(tags, text) if aggregation == "first" and self._has_entities else tags

    def answers(self) -> list[str]:
        """The model's labels, and the names of the entities that they make up."""
        names = [split_label(label)[1] for label in self.model.labels if label != OUTSIDE] if self._has_entities else []
        return list(dict.fromkeys([*self.model.labels, *names]))

    def predictions(self, result: TokenClassifyResult) -> list[Prediction]:
        """The labels as answered: of words, sub-words or entities. A word without a label has no score."""
        return [Prediction(tag.label, tag.score) for tag in result.tags if tag.score is not None]
