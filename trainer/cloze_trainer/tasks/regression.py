"""A number for a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from cloze_api.task import Problem, Task
from cloze_trainer.data.labelled import Labelled, slices_of, text_of, tokenize_texts
from cloze_trainer.data.numbers import LARGEST_TARGET, score_of
from cloze_trainer.data.records import Record
from cloze_trainer.errors import InputError
from cloze_trainer.quality.scores import Statistic, correlation, rank_correlation, root_mean_square
from cloze_trainer.tasks.kind import Answers, Kind, Outputs, Reader
from cloze_trainer.tasks.pooling import pooled
from cloze_trainer.tasks.rows import Batch, Rows
from cloze_trainer.workload import Chunk

LABEL = "score"
"""What the number is called in the manifest and in replies."""


@dataclass(frozen=True, slots=True)
class Rated:
    """One line."""

    place: str
    text: str
    score: float
    slices: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The one."""
        return (self.text,)


class Regression(Kind[Rated, Answers]):
    """A text's number, on the scale of the examples'."""

    task: ClassVar[Task] = Task.SEQUENCE_CLASSIFICATION
    problem: ClassVar[Problem] = Problem.REGRESSION
    main: ClassVar[tuple[str, ...]] = ("spearman",)

    def line(self, place: str, row: Record) -> Rated:
        """`{"text": …, "score": …}`."""
        return Rated(place, text_of(place, row, "text"), score_of(place, row, LARGEST_TARGET), slices_of(place, row))

    def labels(self, train: Sequence[Rated], test: Sequence[Rated], declared: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """The one that the number has. Raises InputError where all numbers are the same."""
        if len({line.score for line in train}) < 2:
            raise InputError("ScoresAllEqual", "all training examples have the same score: there is nothing to learn")
        return (LABEL,)

    def tokenize(self, lines: Sequence[Rated], labels: Sequence[str], reader: Reader) -> Labelled:  # noqa: ARG002
        """A row for each text; its target is its number."""
        return tokenize_texts(
            [line.text for line in lines],
            [np.array([line.score], np.float32) for line in lines],
            reader.tokenizer,
            max_length=reader.max_length,
            special=reader.special,
            whole=reader.whole,
        )

    def width(self, labels: Sequence[str], hidden: int) -> int:  # noqa: ARG002 - as in Kind
        """The number."""
        return 1

    def weight(self, batch: Batch) -> int:
        """Each text counts once."""
        return len(batch.targets)

    def loss_sum(self, output: Tensor, chunk: Chunk, weights_C: Tensor | None = None) -> Tensor:  # noqa: ARG002 - as in Kind
        """Squared errors."""
        if not chunk.weight:
            return output.sum() * 0
        return (output[:, 0] - chunk.targets).square().sum()

    def scored(self, outputs_NK: Outputs, rows: Rows, key: Any, slices: Sequence[Sequence[str]]) -> Answers:  # noqa: ARG002
        """`spearman` and `pearson`, and `rmse`, the root of the mean squared error."""
        outputs_E1, true_E = pooled(outputs_NK, rows)
        given_E, true_E = outputs_E1[:, 0].astype(np.float64), true_E.astype(np.float64)
        found = {
            "spearman": rank_correlation(given_E, true_E),
            "pearson": correlation(given_E, true_E),
            "rmse": root_mean_square(given_E - true_E),
        }
        return Answers(found, len(true_E), slices)

    def statistics(self, scores: Answers, labels: Sequence[str]) -> Mapping[str, Statistic]:  # noqa: ARG002 - as in Kind
        """See `scored`."""
        return scores.found

    def figure_names(self, labels: Sequence[str], key: Any = None) -> tuple[list[str], list[str]]:  # noqa: ARG002 - as in Kind
        """See `scored`."""
        return ["spearman", "pearson", "rmse"], []
