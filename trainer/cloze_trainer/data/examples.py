"""Examples of a task, in batches on which graphs are tried."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from cloze_api.manifest import SpecialTokens
from cloze_api.task import LABEL_TASKS, Problem, Task
from cloze_trainer.data import labelled, records
from cloze_trainer.data.labelled import IGNORED, pad, slices_of, text_of
from cloze_trainer.data.records import JSON_LINES, Form
from cloze_trainer.errors import InputError

Ids = npt.NDArray[np.int64]

# All logits of a batch are there at once, for each precision, and a fill-mask model's are as wide as its vocabulary.
_BATCH_TOKENS = 4096
_BATCH_TOKENS_WIDE = 512
# One token in so many is hidden.
_HIDDEN_EVERY = 7


class Row(NamedTuple):
    """One example. ids, segments: (T,). targets: (1,) or (T,); None where examples have no label. slices: what it says
    of itself, as `key=value`.
    """

    ids: Ids
    segments: Ids
    targets: Ids | None = None
    slices: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded examples. truth: classes or ids, (B,) or (B, T) with IGNORED; None where examples have no label. slices:
    of each example.
    """

    ids_BT: Ids
    mask_BT: Ids
    segments_BT: Ids
    truth: Ids | None = None
    slices: Sequence[Sequence[str]] = ()


def read(
    path: Path,
    task: Task,
    problem: Problem,
    tokenizer: Tokenizer,
    *,
    special: SpecialTokens,
    labels: Sequence[str],
    max_length: int,
    form: Form = JSON_LINES,
) -> list[Row]:
    """Examples of a file. Raises InputError with file and line.

    Classification with one label: as `labelled.example` has them. Question answering: `{"question": …, "context": …}`.
    Others: `{"text": …}`; for fill-mask every seventh token is hidden. All may have `metadata`, which makes slices.
    form: how they lie in the file.
    """
    if task in LABEL_TASKS and problem is Problem.SINGLE_LABEL:
        examples = records.read([path], lambda place, row: labelled.example(place, row, task), form)
        for example in examples:
            if not set(labels).issuperset(example.labels):
                # Not shown: what stands in the wrong field may be a text.
                raise InputError("LabelUnknown", f"{example.place} has a label that the model doesn't have: correct it")
        found = labelled.tokenize(examples, labels, tokenizer, task=task, max_length=max_length, special=special)
        told = zip(found.ids, found.targets, examples, strict=True)
        return [Row(ids, np.zeros_like(ids), targets, example.slices) for ids, targets, example in told]
    pairs = task is Task.QUESTION_ANSWERING
    names = ("question", "context") if pairs else ("text",)
    tokenizer.encode_special_tokens = True
    tokenizer.enable_truncation(max_length, strategy="only_second" if pairs else "longest_first")

    def row(place: str, document: dict[str, Any]) -> Row:
        first, *second = [text_of(place, document, name) for name in names]
        try:
            encoding = tokenizer.encode(first, second[0] if second else None)
        except Exception as error:  # the library's errors have no class: nothing of the context would be left
            raise InputError("QuestionTooLong", f"{place} has a question as long as the model reads") from error
        ids = np.array(encoding.ids, dtype=np.int64)
        # As `type_ids`, which tokenizers of models without types of texts leave at 0.
        segments = np.maximum.accumulate(np.array([part == 1 for part in encoding.sequence_ids], dtype=np.int64))
        return Row(ids, segments, slices=slices_of(place, document))

    rows = records.read([path], row, form)
    if task is not Task.FILL_MASK:
        return rows
    return [each._replace(targets=_hide(each.ids, special, start=number)) for number, each in enumerate(rows)]


def _hide(ids: Ids, special: SpecialTokens, start: int) -> Ids:
    """Put the mask token in some places, all but the first and the last; the targets: what was there."""
    targets = np.full_like(ids, IGNORED)
    places = np.arange(1 + start % _HIDDEN_EVERY, len(ids) - 1, _HIDDEN_EVERY)
    targets[places] = ids[places]
    assert special.mask is not None, "a fill-mask model has a mask token"
    ids[places] = special.mask
    return targets


def made_up(vocab_size: int, max_length: int, *, first: int = 5) -> list[Row]:
    """Sequences of random tokens, short and long, for a model that comes without examples."""
    random = np.random.Generator(np.random.PCG64(0))
    lengths = [min(max_length, length) for length in (8, 16, 32, 64, 128)]
    return [
        Row(random.integers(min(first, vocab_size - 1), vocab_size, size=length), np.zeros(length, np.int64))
        for length in lengths
    ]


def batches(rows: Iterable[Row], *, pad_id: int, wide: bool) -> list[Batch]:
    """Rows of like lengths together. wide: whether logits are over the vocabulary."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    budget = _BATCH_TOKENS_WIDE if wide else _BATCH_TOKENS
    found = []
    while ordered:
        # The longest of those that are left decides how many there are.
        count = max(1, budget // len(ordered[-1].ids))
        ordered, chosen = ordered[:-count], ordered[-count:]
        found.append(_batch(chosen, pad_id))
    return found


def _batch(rows: Sequence[Row], pad_id: int) -> Batch:
    truth = None
    if targets := [row.targets for row in rows if row.targets is not None]:
        # A text has one class; a token has one each.
        whole = all(len(target) == 1 < len(row.ids) for target, row in zip(targets, rows, strict=True))
        truth = np.concatenate(targets) if whole else pad(targets, IGNORED)
    return Batch(
        ids_BT=pad([row.ids for row in rows], pad_id),
        mask_BT=pad([np.ones_like(row.ids) for row in rows], 0),
        segments_BT=pad([row.segments for row in rows], 0),
        truth=truth,
        slices=[row.slices for row in rows],
    )
