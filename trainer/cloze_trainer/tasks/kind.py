"""What a task's module gives: lines, tokens, loss and figures. Preparation, training and judgement know no more.

Dimensions: R rows (sequences) of E examples, T tokens, N items (what outputs are kept of: rows, or tokens), K outputs
of an item.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from torch import Tensor

from cloze_api.evaluation import Evaluation
from cloze_api.manifest import Calibration, SpecialTokens
from cloze_api.task import Problem, Task
from cloze_trainer.data import likeness, records
from cloze_trainer.data.labelled import IGNORED, Labelled
from cloze_trainer.data.lines import BrokenLines
from cloze_trainer.data.records import JSON_LINES, Form
from cloze_trainer.quality.scores import Statistic
from cloze_trainer.tasks.rows import Batch, Rows
from cloze_trainer.workload import Chunk

Outputs = npt.NDArray[np.float32]


class Line(likeness.Example, Protocol):
    """One example. slices: what it says of itself, as `key=value`."""

    @property
    def slices(self) -> tuple[str, ...]:
        """See the class."""


class Scored(Protocol):
    """A model's answers to E examples. slices: of each of them; empty where none was asked for."""

    @property
    def examples(self) -> int:
        """E."""

    @property
    def slices(self) -> Sequence[Sequence[str]]:
        """See the class."""


@dataclass(frozen=True, slots=True)
class Reader:
    """How texts become tokens, at most `max_length` of them in a row. whole: all of longer ones, in windows."""

    tokenizer: Tokenizer
    special: SpecialTokens
    max_length: int
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Further:
    """What is said of a model besides figures with intervals. report: what isn't one number."""

    figures: Mapping[str, float] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """Scored answers of a task without classes. found: figures with an interval."""

    found: Mapping[str, Statistic]
    examples: int
    slices: Sequence[Sequence[str]] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """What a model predicts over all examples, as a server counts it.

    labels: how often each. confidences: calibrated probabilities of these predictions, in any order.
    """

    labels: Mapping[str, int] = field(default_factory=dict)
    confidences: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


LineT = TypeVar("LineT", bound=Line)
ScoredT = TypeVar("ScoredT", bound=Scored)


class Kind(ABC, Generic[LineT, ScoredT]):
    """One task.

    problem: which one of sequence classification. main: the figure that stands for it, of the champion and of slices;
    of several, the first that the examples give. per_token: whether targets and outputs are of tokens, and not of rows.
    block: how many examples are always trained together, on one rank; None where each counts for itself.
    """

    task: ClassVar[Task]
    problem: ClassVar[Problem] = Problem.SINGLE_LABEL
    main: ClassVar[tuple[str, ...]]
    per_token: ClassVar[bool] = False
    block: ClassVar[int | None] = None

    #: How a file's rows are found, where the format alone doesn't say.
    rows: ClassVar[records.Rows | None] = None

    def read(self, paths: Sequence[Path], form: Form = JSON_LINES, broken: BrokenLines | None = None) -> list[LineT]:
        """Examples of files, at least one. Raises InputError with file and line, as `records.read` does."""
        return records.read(paths, self.line, form, broken, type(self).rows)

    @abstractmethod
    def line(self, place: str, row: records.Record) -> LineT:
        """What a record says. Raises InputError that begins with the place."""

    def labels(self, train: Sequence[LineT], test: Sequence[LineT], declared: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002 - for tasks with labels
        """The labels in the order of their classes; none for a task without. Raises InputError."""
        return ()

    def check(self, lines: Sequence[LineT], labels: Sequence[str]) -> None:
        """Whether a model with these labels can be judged by the examples. Raises InputError with file and line."""

    def needed(self, line: LineT) -> Collection[str]:  # noqa: ARG002 - for tasks with labels
        """What must be trained on at least once if it is to be known: a line's labels."""
        return ()

    @abstractmethod
    def tokenize(self, lines: Sequence[LineT], labels: Sequence[str], reader: Reader) -> Labelled:
        """Rows and targets."""

    def key(self, lines: Sequence[LineT]) -> Any:  # noqa: ARG002 - for tasks that need one
        """What answers are scored by besides targets; of JSON's types."""
        return None

    @abstractmethod
    def width(self, labels: Sequence[str], hidden: int) -> int:
        """K. hidden: width of the encoder."""

    def weight(self, batch: Batch) -> int:
        """How many predictions a batch of rows counts for."""
        return int((batch.targets != IGNORED).sum())

    @abstractmethod
    def loss_sum(self, output: Tensor, chunk: Chunk, weights_C: Tensor | None = None) -> Tensor:
        """Sum of the losses (nats) of what a chunk predicts, from the model's output in fp32; 0 with weight 0.

        weights_C: of the classes, for tasks that have some.
        """

    @abstractmethod
    def scored(self, outputs_NK: Outputs, rows: Rows, key: Any, slices: Sequence[Sequence[str]]) -> ScoredT:
        """The answers that the outputs of all rows' items come to."""

    @abstractmethod
    def statistics(self, scores: ScoredT, labels: Sequence[str]) -> Mapping[str, Statistic]:
        """Figures that come with an interval. Raises ValueError where there is nothing to judge by."""

    def details(self, scores: ScoredT, labels: Sequence[str]) -> dict[str, float]:  # noqa: ARG002 - as `labels`
        """Figures without an interval."""
        return {}

    def further(
        self,
        scores: ScoredT,
        labels: Sequence[str],
        asked: Evaluation,  # noqa: ARG002 - of classifiers, as `known`
        known: Calibration | None = None,  # noqa: ARG002
    ) -> Further:
        """What else the evaluation says. known: a calibration that the model came with; none is looked for then."""
        return Further(self.details(scores, labels))

    def said(self, scores: ScoredT, labels: Sequence[str], calibration: Calibration | None) -> Said:  # noqa: ARG002
        """What is predicted, for tasks with labels."""
        return Said()

    def inputs(self, rows: Rows) -> Sequence[range]:
        """The rows of each input of a request: all of an example's, for most tasks."""
        return rows.groups()

    @abstractmethod
    def figure_names(self, labels: Sequence[str], key: Any = None) -> tuple[list[str], list[str]]:
        """What figures there may be: those with an interval, and those without.

        key: what the examples are scored by, as `key` gives it; any examples when absent.
        """

    @property
    def thresholded(self) -> Sequence[str]:
        """Figures of what is answered with thresholds, where `evaluation` asks for some or the model has some."""
        return ()

    def mains(self, labels: Sequence[str]) -> Sequence[str]:  # noqa: ARG002 - for tasks with labels
        """Which of `main` may stand for a model with these labels."""
        return self.main

    def main_of(self, found: Container[str]) -> str:
        """The name of the figure that stands for the task."""
        return next(name for name in self.main if name in found)


AnyKind = Kind[Any, Any]
