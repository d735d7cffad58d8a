"""Embeddings: texts that belong together get vectors that lie together.

Trained on pairs by contrast: of a block's texts, each has to find its own partner among all partners of the block and
what the lines name as negatives (Henderson et al., arXiv:1705.00652). A block is a part of the global batch of at most
64 lines, whole on one rank, so that what a text is told apart from doesn't depend on the number of ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from cloze_api.task import Task
from cloze_trainer.data.cleaning import normalise
from cloze_trainer.data.labelled import Labelled, slices_of, text_of
from cloze_trainer.data.numbers import score_of
from cloze_trainer.data.records import Record
from cloze_trainer.errors import InputError
from cloze_trainer.quality.scores import Floats, Statistic, mean, rank_correlation
from cloze_trainer.tasks.kind import Answers, Kind, Outputs, Reader
from cloze_trainer.tasks.rows import Ids, Rows
from cloze_trainer.workload import Chunk

_SCALE: Final = 20.0
"""What cosines are multiplied by to be logits, a temperature of 0.05."""
_QUERIES = 1024


@dataclass(frozen=True, slots=True)
class Pair:
    """One line. other: a text that belongs to the first, or one that is as alike as the score says. negative: one that
    doesn't belong to it.
    """

    place: str
    first: str
    other: str
    negative: str | None
    score: float | None
    slices: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Both of the pair."""
        return self.first, self.other


class Embeddings(Kind[Pair, Answers]):
    """Vectors of length 1, whose cosine says how alike texts are."""

    task: ClassVar[Task] = Task.EMBEDDING
    main: ClassVar[tuple[str, ...]] = ("spearman", "mrr")
    block: ClassVar[int | None] = 64

    def line(self, place: str, row: Record) -> Pair:
        """`{"text": …, "positive": …}` with or without `"negative"`, or `{"text": …, "other": …, "score": …}`."""
        return _pair(place, row)

    def labels(self, train: Sequence[Pair], test: Sequence[Pair], declared: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002 - as in Kind
        """None. Trained is on lines with a positive alone."""
        for pair in train:
            if pair.score is not None:
                raise InputError(
                    "PositiveMissing",
                    f"{pair.place} has a score, and it is texts that belong together which are trained on: give it as "
                    '{"text": …, "positive": …}, or use it for the test',
                )
        self.check(test, ())
        return ()

    def check(self, lines: Sequence[Pair], labels: Sequence[str]) -> None:  # noqa: ARG002 - as in Kind
        """All have a score, or none has."""
        for pair in lines:
            if (pair.score is None) != (lines[0].score is None):
                raise InputError(
                    "PairsMixed",
                    f"{pair.place} has another form than {lines[0].place}: give all test examples a score, or none",
                )

    def tokenize(self, lines: Sequence[Pair], labels: Sequence[str], reader: Reader) -> Labelled:  # noqa: ARG002
        """Two or three rows for a line; the target of each is its text's number, the same for texts that are equal once
        they are normalised.
        """
        reader.tokenizer.encode_special_tokens = True
        flat = [
            (number, text)
            for number, pair in enumerate(lines)
            for text in (pair.first, pair.other, pair.negative)
            if text is not None
        ]
        numbers: dict[str, int] = {}
        ids: list[Ids] = []
        targets: list[Ids] = []
        truncated, unknown = set(), 0
        room = reader.max_length - 2
        encodings = reader.tokenizer.encode_batch_fast([text for _, text in flat], add_special_tokens=False)
        for (number, text), encoding in zip(flat, encodings, strict=True):
            pieces = encoding.ids[:room]
            if len(encoding.ids) > room:
                truncated.add(number)
            unknown += sum(piece == reader.special.unk for piece in pieces)
            ids.append(np.array([reader.special.cls, *pieces, reader.special.sep], np.int64))
            targets.append(np.array([numbers.setdefault(normalise(text), len(numbers))]))
        return Labelled(
            tuple(ids),
            tuple(targets),
            np.array([len(row) for row in ids], np.int64),
            len(truncated),
            unknown,
            places=np.array([(number, 0, 0) for number, _ in flat], np.int64),
        )

    def key(self, lines: Sequence[Pair]) -> Any:
        """The scores."""
        return [pair.score for pair in lines]

    def width(self, labels: Sequence[str], hidden: int) -> int:  # noqa: ARG002 - as in Kind
        """The vector's."""
        return hidden

    def loss_sum(self, output: Tensor, chunk: Chunk, weights_C: Tensor | None = None) -> Tensor:  # noqa: ARG002 - as in Kind
        """Cross-entropy of each first text's partner among the block's partners and negatives.

        The rows are a block's first texts, then their partners, then negatives. Texts that are equal to the first or to
        its partner, or that are partners of an equal first text, are no wrong answers, and are left out.
        """
        count = chunk.weight
        if not count:
            return output.sum() * 0
        texts_B, others_C = chunk.targets[:count], chunk.targets[count:]
        right_B = others_C[:count]
        same_BB = texts_B[:, None] == texts_B[None, :]
        # (B, C): whether a candidate is the text of a partner of an equal first text.
        partner_BC = (same_BB[:, :, None] & (right_B[None, :, None] == others_C[None, None, :])).any(1)
        left_out_BC = partner_BC | (texts_B[:, None] == others_C[None, :])
        own_B = torch.arange(count, device=output.device)
        left_out_BC[own_B, own_B] = False
        logits_BC = _SCALE * output[:count] @ output[count:].T
        logits_BC = logits_BC.masked_fill(left_out_BC, torch.finfo(logits_BC.dtype).min)
        return functional.cross_entropy(logits_BC, own_B, reduction="sum")

    def scored(self, outputs_NK: Outputs, rows: Rows, key: Any, slices: Sequence[Sequence[str]]) -> Answers:
        """Of scored pairs, how cosines are ordered; of others, where each text finds its partner."""
        lengths_N1 = np.linalg.norm(outputs_NK, axis=-1, keepdims=True)
        vectors_NK = outputs_NK / np.maximum(lengths_N1, np.finfo(np.float32).tiny)
        groups = rows.groups()
        first_E, other_E = (np.array([own[place] for own in groups]) for place in (0, 1))
        if key[0] is not None:
            cosines_E = (vectors_NK[first_E] * vectors_NK[other_E]).sum(-1).astype(np.float64)
            return Answers({"spearman": rank_correlation(cosines_E, np.array(key, np.float64))}, len(groups), slices)
        _, texts_N = rows.items()
        rank_E = ranks(vectors_NK, texts_N, first_E, other_E)
        found = {"recall_at_1": mean((rank_E == 1).astype(np.float64)), "mrr": mean(1 / rank_E)}
        return Answers(found, len(groups), slices)

    def statistics(self, scores: Answers, labels: Sequence[str]) -> Mapping[str, Statistic]:  # noqa: ARG002 - as in Kind
        """See `scored`."""
        return scores.found

    def inputs(self, rows: Rows) -> Sequence[range]:
        """Each text, of which a request has one."""
        return [range(row, row + 1) for row in range(len(rows))]

    def figure_names(self, labels: Sequence[str], key: Any = None) -> tuple[list[str], list[str]]:  # noqa: ARG002 - as in Kind
        """See `scored`."""
        of_scores, of_partners = ["spearman"], ["recall_at_1", "mrr"]
        if key is None:
            return [*of_scores, *of_partners], []
        return (of_partners if key[0] is None else of_scores), []


def ranks(vectors_NK: npt.NDArray[Any], texts_N: Ids, first_E: Ids, other_E: Ids) -> Floats:
    """The place of each first text's partner among all different partners and negatives, by cosine, from 1.

    Of equally alike texts the partner comes last. A text's other partners, and the text itself, don't count.
    """
    candidates = np.setdiff1d(np.arange(len(texts_N)), first_E)
    _, kept = np.unique(texts_N[candidates], return_index=True)
    candidates = candidates[kept]
    partners: dict[int, set[int]] = {}
    for first, other in zip(texts_N[first_E].tolist(), texts_N[other_E].tolist(), strict=True):
        partners.setdefault(first, {first}).add(other)
    place_of = {text: place for place, text in enumerate(texts_N[candidates].tolist())}
    found = []
    for start in range(0, len(first_E), _QUERIES):
        chosen = slice(start, start + _QUERIES)
        cosines_QC = vectors_NK[first_E[chosen]] @ vectors_NK[candidates].T
        for cosines_C, first, other in zip(cosines_QC, texts_N[first_E[chosen]], texts_N[other_E[chosen]], strict=True):
            own = cosines_C[place_of[int(other)]]
            aside = [place_of[text] for text in partners[int(first)] if text in place_of]
            found.append(1 + int((cosines_C >= own).sum()) - int((cosines_C[aside] >= own).sum()))
    return np.array(found, np.float64)


def _pair(place: str, row: dict[str, Any]) -> Pair:
    scored = "score" in row or "other" in row
    names = ("text", "other") if scored else ("text", "positive")
    texts = []
    for name in (*names, *(["negative"] if "negative" in row and not scored else [])):
        texts.append(text_of(place, row, name))
        if not normalise(texts[-1]):
            raise InputError("TextFieldMissing", f"{place} has no field {name!r} with a text")
    first, other, *negative = texts
    if not scored:
        return Pair(place, first, other, negative[0] if negative else None, None, slices_of(place, row))
    return Pair(place, first, other, None, score_of(place, row), slices_of(place, row))
