"""Question answering: the parts of a context that answer a question."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cloze_api.serving import INPUTS_MAX
from cloze_api.task import Task
from cloze_server.backend import Logits
from cloze_server.tasks.entities import trimmed, words_of
from cloze_server.tasks.handler import Handler, InputResult, Item, Prediction, Strict, TaskReply, TaskRequest, finite
from cloze_server.tasks.spans import Evidence, Spans
from cloze_server.tokenization import Encoded, Inputs
from cloze_server.windows import Truncation, Window


class QuestionContext(Strict):
    """A question, and the text that holds its answer."""

    question: Annotated[str, Field(min_length=1)]
    context: Annotated[str, Field(min_length=1)]


class AnswerRequest(TaskRequest):
    """`question` and `context`, or several of them as `inputs`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"question": "Where did Ada live?", "context": "Ada Lovelace lived in London."}],
        }
    )

    question: Annotated[str, Field(min_length=1)] | None = None
    context: Annotated[str, Field(min_length=1)] | None = None
    inputs: (
        QuestionContext
        | Annotated[list[QuestionContext], Field(min_length=1, max_length=INPUTS_MAX, fail_fast=True)]
        | None
    ) = None
    top_k: Annotated[int, Field(ge=1, le=100)] = 1
    """Answers in the reply, best first; fewer when the context has fewer."""
    max_answer_tokens: Annotated[int, Field(ge=1, le=512)] = 15
    """Longest answer, in tokens."""
    no_answer: bool = False
    """Whether the empty answer may be among the answers. Its score is in the reply anyway."""
    truncate: Truncation = "window"
    """A context that doesn't fit beside its question: `window` reads all of it in overlapping windows, `left` drops its
    beginning, `right` its end, `error` refuses the request. A question is never cut."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        pair = (self.question is not None, self.context is not None)
        if pair not in ((True, True), (False, False)) or pair[0] == (self.inputs is not None):
            raise ValueError("give either question and context, or inputs")
        return self

    def pairs(self) -> list[QuestionContext]:
        """All of them, in order."""
        if self.inputs is None:
            return [QuestionContext(question=self.question or "", context=self.context or "")]
        return self.inputs if isinstance(self.inputs, list) else [self.inputs]


class Answer(BaseModel):
    """A part of the context: characters `start` to `end` (exclusive). The empty one is that there is no answer."""

    answer: str
    score: float
    """Probability that the answer starts in its first word and ends in its last one; over all tokens of the context and
    the place that stands for no answer."""
    start: int
    end: int


class AnswerResult(InputResult):
    """Answers to one question, best first."""

    answers: list[Answer]
    no_answer_score: float
    """Score of the empty answer."""


class AnswerReply(TaskReply):
    """Results in the order of the inputs."""

    results: list[AnswerResult]


class AnswerQuestion(Handler[AnswerRequest, AnswerResult]):
    """The parts of a context that answer a question."""

    task = Task.QUESTION_ANSWERING
    request = AnswerRequest
    reply = AnswerReply
    needs_offsets = True
    texts_per_input = 2

    def inputs(self, request: AnswerRequest) -> Inputs:
        """Question, context, question, context…"""
        return [text for pair in request.pairs() for text in (pair.question, pair.context)]

    def sample(self, lengths: list[int]) -> AnswerRequest:
        """Contexts that fill up to each length beside a question of one token."""
        frame = self.model.frame
        framing = len(frame.before) + len(frame.between or []) + len(frame.after) + 1
        inputs = [{"question": "a", "context": "a " * max(1, length - framing)} for length in lengths]
        return AnswerRequest.model_validate({"inputs": inputs, "truncate": "right"})

    def items(self, request: AnswerRequest, encoded: list[Encoded]) -> list[Item]:  # noqa: ARG002 - as in Handler
        """Contexts, each read behind its question."""
        frame = self.model.frame
        return [
            Item(
                index,
                context,
                lead=[*frame.before, *question.ids, *(frame.between or [])],
                tail=frame.after,
                paired=True,
            )
            for index, (question, context) in enumerate(zip(encoded[::2], encoded[1::2], strict=True))
        ]

    def positions(self, request: AnswerRequest, item: Item) -> None:
        """All windows are read: any may hold the answer."""

    def keep(self, request: AnswerRequest, item: Item, window: Window, logits: Logits) -> Evidence:  # noqa: ARG002 - as in Handler
        """How well each token of the window starts and ends an answer."""
        finite(logits)
        first = len(item.lead)
        inside = logits[first : first + window.stop - window.start]
        # The first token, [CLS], is where models that know unanswerable questions point to.
        return Evidence(inside[:, 0].copy(), inside[:, 1].copy(), float(logits[0, 0]), float(logits[0, 1]))

    def result(self, request: AnswerRequest, item: Item, kept: list[Evidence]) -> AnswerResult:
        """The best answers over all windows, from whole words."""
        context = request.pairs()[item.index].context
        spans = Spans(item.windows, kept)
        offsets = item.encoded.offsets or []
        words = words_of((item.encoded.words or [])[item.covered.start : item.covered.stop])
        word_of = [number for number, word in enumerate(words) for _ in word]
        start = item.covered.start
        answers = []
        for first, last, score in spans.best(request.top_k, request.max_answer_tokens, word_of):
            begins, ends = words[first], words[last]
            at = trimmed(context, offsets[start + begins[0]][0], offsets[start + ends[-1]][1])
            answers.append(Answer(answer=context[slice(*at)], score=score, start=at[0], end=at[1]))
        if request.no_answer:
            answers.append(Answer(answer="", score=spans.no_answer, start=0, end=0))
            answers.sort(key=lambda answer: -answer.score)
        return AnswerResult(**item.facts(), answers=answers[: request.top_k], no_answer_score=spans.no_answer)

    def predictions(self, result: AnswerResult) -> list[Prediction]:
        """The best answer, unnamed: it is text."""
        return [Prediction(None, answer.score) for answer in result.answers[:1]]
