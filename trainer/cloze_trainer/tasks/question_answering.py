"""Extractive question answering: the part of a context that answers a question, or that there is none.

Contexts that don't fit beside their question are read in windows, as servers read them. In each window every token of
the context may begin or end the answer, and [CLS] stands for no answer (Devlin et al., arXiv:1810.04805, section 4.3).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from cloze_api.dataset import ExampleFormat
from cloze_api.task import Task
from cloze_trainer.data import records
from cloze_trainer.data.labelled import IGNORED, Labelled, as_sent, slices_of, text_of
from cloze_trainer.data.lines import BrokenLines
from cloze_trainer.data.records import Form, Record
from cloze_trainer.data.squad import questions
from cloze_trainer.data.windows import windows
from cloze_trainer.errors import InputError
from cloze_trainer.quality import squad
from cloze_trainer.quality.scores import Statistic, mean
from cloze_trainer.quality.spans import Window, best_span
from cloze_trainer.tasks.kind import Answers, Kind, Outputs, Reader
from cloze_trainer.tasks.rows import FIRST, Batch, Ids, Rows
from cloze_trainer.workload import Chunk

# Targets of the context's tokens and of [CLS], as bits.
_BEGINS, _ENDS = 1, 2
# As servers do: of a row's length, what a question leaves at least.
_ROOM: Final = 4
_TOGETHER = 1000


def _rows(path: Path, form: Form, broken: BrokenLines) -> Iterator[tuple[str, Record]]:
    """As the format has them; of JSON, documents too."""
    if form.format is ExampleFormat.JSONL:
        return questions(path, broken)
    return records.ROWS[form.format](path, form, broken)


@dataclass(frozen=True, slots=True)
class Question:
    """One line. answers: text and first character of each; none for a question that the context doesn't answer."""

    place: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    slices: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The question and its context."""
        return self.question, self.context


class QuestionAnswering(Kind[Question, Answers]):
    """Where answers begin and end."""

    task: ClassVar[Task] = Task.QUESTION_ANSWERING
    main: ClassVar[tuple[str, ...]] = ("f1",)
    per_token: ClassVar[bool] = True
    rows: ClassVar[records.Rows | None] = _rows

    def line(self, place: str, row: Record) -> Question:
        """`{"question": …, "context": …, "answers": {"text": […], "answer_start": […]}}`."""
        return _question(place, row)

    def tokenize(self, lines: Sequence[Question], labels: Sequence[str], reader: Reader) -> Labelled:  # noqa: ARG002 - as in Kind
        """A row for each window. Of several answers the first is trained on; a window that lacks it has none.

        spans: of each token that may be part of an answer, the characters of its word; those of [CLS] are none.
        """
        reader.tokenizer.encode_special_tokens = True
        between = _between(reader.tokenizer)
        ids: list[Ids] = []
        targets: list[Ids] = []
        spans: list[Ids] = []
        places: list[tuple[int, int, int]] = []
        unknown = 0
        for number, (line, question, context) in enumerate(_encoded(lines, reader.tokenizer)):
            lead = [reader.special.cls, *question.ids, *between]
            words_T2, answer = _words(line.context, context), _tokens_of_answer(line, context)
            unknown += sum(piece == reader.special.unk for piece in context.ids)
            for window in _windows(line, len(context.ids), reader.max_length - len(lead) - 1, reader.max_length):
                ids.append(np.array([*lead, *context.ids[window.start : window.stop], reader.special.sep], np.int64))
                target = np.full(len(ids[-1]), IGNORED, np.int64)
                inside = target[len(lead) : -1]
                inside[:] = target[0] = 0
                if answer and answer.start in window and answer.stop - 1 in window:
                    inside[answer.start - window.start] |= _BEGINS
                    inside[answer.stop - 1 - window.start] |= _ENDS
                else:
                    target[0] = _BEGINS | _ENDS
                targets.append(target)
                spans.append(np.concatenate([[[0, 0]], words_T2[window.start : window.stop]]))
                places.append((number, len(lead), window.start))
        lengths = np.array([len(row) for row in ids], np.int64)
        return Labelled(
            tuple(ids),
            tuple(targets),
            lengths,
            truncated=0,
            unknown=unknown,
            places=np.array(places, np.int64),
            spans=tuple(spans),
        )

    def key(self, lines: Sequence[Question]) -> Any:
        """The contexts and the right answers."""
        return [[line.context, [text for text, _ in line.answers]] for line in lines]

    def width(self, labels: Sequence[str], hidden: int) -> int:  # noqa: ARG002 - as in Kind
        """Start and end."""
        return 2

    def weight(self, batch: Batch) -> int:
        """Each row has one answer."""
        return len(batch.targets)

    def loss_sum(self, output: Tensor, chunk: Chunk, weights_C: Tensor | None = None) -> Tensor:  # noqa: ARG002 - as in Kind
        """Mean of the cross-entropies of start and end."""
        if not chunk.weight:
            return output.sum() * 0
        allowed_BT = chunk.targets != IGNORED
        logits_BT2 = output.masked_fill(~allowed_BT.unsqueeze(-1), torch.finfo(output.dtype).min)
        shares_BT2 = torch.log_softmax(logits_BT2, dim=1)
        bits_2 = torch.tensor([_BEGINS, _ENDS], device=output.device)
        right_BT2 = allowed_BT.unsqueeze(-1) & (chunk.targets.unsqueeze(-1) & bits_2 > 0)
        return -shares_BT2[right_BT2].sum() / 2

    def scored(self, outputs_NK: Outputs, rows: Rows, key: Any, slices: Sequence[Sequence[str]]) -> Answers:
        """Exact match and F1 of each question's best answer, over all its windows; it may be that there is none."""
        scores_E2 = np.array(
            [
                (squad.exact_match(answer, right), squad.f1(answer, right))
                for answer, (_, right) in zip(predicted(outputs_NK, rows, key), key, strict=True)
            ]
        )
        there_E = np.array([bool(right) for _, right in key])
        found = {"exact_match": mean(scores_E2[:, 0]), "f1": mean(scores_E2[:, 1])}
        if there_E.any():
            found["answerable_exact_match"] = mean(scores_E2[:, 0], there_E)
            found["answerable_f1"] = mean(scores_E2[:, 1], there_E)
        if not there_E.all():
            found["unanswerable_accuracy"] = mean(scores_E2[:, 0], ~there_E)
        return Answers(found, len(key), slices)

    def statistics(self, scores: Answers, labels: Sequence[str]) -> Mapping[str, Statistic]:  # noqa: ARG002 - as in Kind
        """See `scored`."""
        return scores.found

    def figure_names(self, labels: Sequence[str], key: Any = None) -> tuple[list[str], list[str]]:  # noqa: ARG002 - as in Kind
        """See `scored`."""
        there = [True, False] if key is None else [bool(right) for _, right in key]
        answerable = ["answerable_exact_match", "answerable_f1"] if any(there) else []
        return ["exact_match", "f1", *answerable, *([] if all(there) else ["unanswerable_accuracy"])], []


def predicted(outputs_NK: Outputs, rows: Rows, key: Any) -> list[str]:
    """The best answer to each question; empty where there is none."""
    starts, _ = rows.items()
    answers = []
    for own, (context, _) in zip(rows.groups(), key, strict=True):
        windows: list[Window] = []
        chars: dict[int, tuple[int, int]] = {}
        for row in own:
            (start, end), *logits = outputs_NK[starts[row] : starts[row + 1]]
            first = int(rows.places[row, FIRST])
            windows.append(Window(first, np.reshape(logits, (-1, 2)), (float(start), float(end))))
            spans = rows.spans[starts[row] + 1 : starts[row + 1]].tolist()
            chars |= {first + token: (begin, stop) for token, (begin, stop) in enumerate(spans)}
        words: list[tuple[int, int]] = []
        word_of: list[int] = []
        for number, (span, tokens) in enumerate(groupby(chars[token] for token in sorted(chars))):
            words.append(span)
            word_of += [number] * len(list(tokens))
        best = best_span(windows, word_of)
        answers.append("" if best is None else context[words[best[0]][0] : words[best[1]][1]])
    return answers


def _question(place: str, row: dict[str, Any]) -> Question:
    texts = []
    for name in ("question", "context"):
        texts.append(text_of(place, row, name))
        if not texts[-1].strip():
            raise InputError("TextFieldMissing", f"{place} has no field {name!r} with a text")
    question, context = texts
    answers = row.get("answers")
    found, starts = (answers.get("text"), answers.get("answer_start")) if isinstance(answers, dict) else (None, None)
    if (
        not isinstance(found, list)
        or not isinstance(starts, list)
        or len(found) != len(starts)
        or not all(isinstance(text, str) and text.strip() for text in found)
        or not all(isinstance(start, int) and not isinstance(start, bool) for start in starts)
    ):
        raise InputError(
            "AnswersInvalid",
            f"{place} has no field 'answers' with as many texts as places: give it as "
            '{"text": ["London"], "answer_start": [21]}, with empty lists where there is no answer',
        )
    pairs = tuple((as_sent(text), start) for text, start in zip(found, starts, strict=True))
    for number, (text, start) in enumerate(pairs):
        if start < 0 or context[start : start + len(text)] != text:
            raise InputError(
                "AnswerNotInContext",
                f"{place} has an answer (number {number + 1}) that isn't in the context at answer_start, which counts "
                "characters from 0: correct one of them",
            )
    return Question(place, question, context, pairs, slices_of(place, row))


def _encoded(lines: Sequence[Question], tokenizer: Tokenizer) -> Iterator[tuple[Question, Encoding, Encoding]]:
    for start in range(0, len(lines), _TOGETHER):
        chunk = lines[start : start + _TOGETHER]
        texts = [text for line in chunk for text in (line.question, line.context)]
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        yield from zip(chunk, encodings[::2], encodings[1::2], strict=True)


def _between(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts between the texts of a pair."""
    inner = len(tokenizer.encode("a", add_special_tokens=False).ids) + 1
    pair: list[int] = tokenizer.encode("a", "a").ids
    return pair[inner : len(pair) - inner]


def _words(text: str, context: Encoding) -> Ids:
    """The characters of each token's word (T, 2), without the white space at its edges that some tokenizers count."""
    spans: list[tuple[int, int]] = []
    for _, group in groupby(zip(context.word_ids, context.offsets, strict=True), key=lambda each: each[0]):
        offsets = [offset for _, offset in group]
        start, end = offsets[0][0], offsets[-1][1]
        word = text[start:end]
        if word.strip():
            start, end = start + len(word) - len(word.lstrip()), start + len(word.rstrip())
        spans += [(start, end)] * len(offsets)
    return np.array(spans, np.int64).reshape(-1, 2)


def _tokens_of_answer(line: Question, context: Encoding) -> range | None:
    """The tokens of the first answer. Raises InputError where the tokenizer has none for it."""
    if not line.answers:
        return None
    text, start = line.answers[0]
    inside = [token for token, (begin, end) in enumerate(context.offsets) if begin < start + len(text) and end > start]
    if not inside:
        raise InputError(
            "AnswerNotInContext",
            f"{line.place} has an answer of which the tokenizer leaves nothing: remove the line or give another",
        )
    return range(inside[0], inside[-1] + 1)


def _windows(line: Question, length: int, room: int, max_length: int) -> list[range]:
    """The context's tokens of each row. Raises InputError where the question leaves no room for parts that say much."""
    if room < min(length, max_length // _ROOM):
        raise InputError(
            "QuestionTooLong",
            f"{line.place} has a question that leaves {max(0, room)} of {max_length} tokens for its context: "
            "shorten it, or raise spec.maxLength",
        )
    return windows(length, room)
