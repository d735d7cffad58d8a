"""Classes: one for a text, or one for each word."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

from cloze_api.entities import OUTSIDE, Scheme
from cloze_api.evaluation import Evaluation
from cloze_api.manifest import Calibration
from cloze_api.task import Task
from cloze_trainer.data import labelled
from cloze_trainer.data.labelled import IGNORED, Example, Labelled
from cloze_trainer.data.records import Record
from cloze_trainer.errors import InputError
from cloze_trainer.quality import calibration
from cloze_trainer.quality.scores import Scores, Statistic, class_f1, confusion, probabilities, statistics
from cloze_trainer.tasks.kind import Further, Kind, Outputs, Reader, Said
from cloze_trainer.tasks.pooling import pooled
from cloze_trainer.tasks.rows import EXAMPLE, Rows
from cloze_trainer.workload import Chunk


def balanced(truth_N: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float32]:
    """Weights of classes in inverse proportion to how often they occur, 1 on average over the items."""
    counts_C = np.bincount(truth_N, minlength=classes)
    return (len(truth_N) / (classes * np.maximum(counts_C, 1))).astype(np.float32)


class _Classification(Kind[Example, Scores]):
    """abstains: whether servers do, below thresholds of probability; entities, of several words, have none."""

    abstains: ClassVar[bool] = False

    def line(self, place: str, row: Record) -> Example:
        """As `labelled.example`."""
        return labelled.example(place, row, self.task)

    def labels(self, train: Sequence[Example], test: Sequence[Example], declared: Sequence[str]) -> tuple[str, ...]:
        """As `labelled.schema`."""
        return labelled.schema(train, test, declared)

    def needed(self, line: Example) -> Collection[str]:
        """Its labels."""
        return line.labels

    def check(self, lines: Sequence[Example], labels: Sequence[str]) -> None:
        """As `labelled.check`."""
        labelled.check(lines, labels)

    def tokenize(self, lines: Sequence[Example], labels: Sequence[str], reader: Reader) -> Labelled:
        """As `labelled.tokenize`."""
        return labelled.tokenize(
            lines,
            labels,
            reader.tokenizer,
            task=self.task,
            max_length=reader.max_length,
            special=reader.special,
            whole=reader.whole,
        )

    def width(self, labels: Sequence[str], hidden: int) -> int:  # noqa: ARG002 - as in Kind
        """A logit for each class."""
        return len(labels)

    def loss_sum(self, output: Tensor, chunk: Chunk, weights_C: Tensor | None = None) -> Tensor:
        """Cross-entropy of the texts' or the words' classes."""
        return functional.cross_entropy(
            output.reshape(-1, output.shape[-1]),
            chunk.targets.reshape(-1),
            weight=weights_C,
            reduction="sum",
            ignore_index=IGNORED,
        )

    def scored(
        self,
        outputs_NK: Outputs,
        rows: Rows,
        key: Any,  # noqa: ARG002 - as in Kind
        slices: Sequence[Sequence[str]],
    ) -> Scores:
        """Logits beside the true classes. A word beyond the length limit isn't predicted, and is none that is right."""
        if not self.per_token:
            logits_EK, truth_E = pooled(outputs_NK, rows)
            return Scores(logits_EK, truth_E, np.arange(len(truth_E)), len(truth_E), slices)
        starts, truth_N = rows.items()
        examples_R = rows.places[:, EXAMPLE]
        example_N = np.repeat(examples_R, np.diff(starts))
        return Scores(outputs_NK, truth_N, example_N, int(examples_R[-1]) + 1, slices, rows.unread)

    def statistics(self, scores: Scores, labels: Sequence[str]) -> Mapping[str, Statistic]:
        """As `scores.statistics`."""
        return statistics(scores, labels, per_token=self.per_token)

    def details(self, scores: Scores, labels: Sequence[str]) -> dict[str, float]:
        """`f1_<label>` of each label."""
        return class_f1(scores, labels)

    def further(
        self, scores: Scores, labels: Sequence[str], asked: Evaluation, known: Calibration | None = None
    ) -> Further:
        """How sure the model is, of the classes, and of two classes the second."""
        chosen = known or self._calibration(scores, labels, asked)
        temperature = chosen.temperature if chosen else 1.0
        scaled = known is None and asked.calibrate
        figures = {
            **self.whole(scores, labels),
            **_certainty(scores, labels, temperature, held_out=scaled),
            **self._answered(scores, labels, asked, known),
            **self.details(scores, labels),
        }
        report = {
            "labels": list(labels),
            "confusion": confusion(scores.truth_N, scores.predicted, len(labels)).tolist(),
            **calibration.diagrams(scores, temperature, scaled=scaled),
        }
        return Further(figures, report, chosen)

    def said(self, scores: Scores, labels: Sequence[str], calibration: Calibration | None) -> Said:
        """The likeliest class of each item."""
        shares_NC = probabilities(scores.logits_NC, calibration.temperature if calibration else 1.0)
        counts_C = np.bincount(scores.predicted, minlength=len(labels))
        return Said(dict(zip(labels, counts_C.tolist(), strict=True)), shares_NC.max(-1))

    def whole(self, scores: Scores, labels: Sequence[str]) -> dict[str, float]:  # noqa: ARG002 - for words
        """Figures of what several words make up."""
        return {}

    def _answered(
        self, scores: Scores, labels: Sequence[str], asked: Evaluation, known: Calibration | None
    ) -> dict[str, float]:
        """How many items are sure enough to be answered, and their accuracy; the latter missing where none is."""
        if not (self.abstains and (known.thresholds != {} if known else asked.thresholds)):
            return {}
        if known:
            answered_N = _is_answered(scores, labels, known)
        else:
            answered_N = calibration.decided(
                scores.example_N,
                lambda other_N: self._calibration(scores.only(other_N), labels, asked),
                lambda own_N, chosen: _is_answered(scores.only(own_N), labels, chosen),
            )
        found = {"answered_share": float(answered_N.mean())}
        if answered_N.any():
            found["answered_accuracy"] = float((scores.predicted == scores.truth_N)[answered_N].mean())
        return found

    def _calibration(self, scores: Scores, labels: Sequence[str], asked: Evaluation) -> Calibration | None:
        """What goes into the manifest."""
        temperature = calibration.temperature(scores.logits_NC, scores.truth_N) if asked.calibrate else 1.0
        bounds: dict[str, float] = {}
        if self.abstains:
            shares_NC = probabilities(scores.logits_NC, temperature)
            bounds = calibration.chosen_thresholds(shares_NC, scores.truth_N, labels, asked)
        if not (asked.calibrate or (self.abstains and asked.thresholds)):
            return None
        return Calibration(temperature=temperature, thresholds=bounds)

    @property
    def thresholded(self) -> Sequence[str]:
        """Of those that abstain."""
        return ("answered_share", "answered_accuracy") if self.abstains else ()

    def figure_names(self, labels: Sequence[str], key: Any = None) -> tuple[list[str], list[str]]:  # noqa: ARG002 - as in Kind
        """See the methods above."""
        told, others = ["accuracy", "macro_f1"], ["log_loss", "calibration_error"]
        if len(labels) == 2:
            told.append("f1")
            others += ["average_precision", "false_positive_rate"]
        return told, [*others, *(f"f1_{label}" for label in labels)]


def _is_answered(scores: Scores, labels: Sequence[str], chosen: Calibration) -> calibration.Marks:
    """Whether a server doesn't abstain (N)."""
    shares_NC = probabilities(scores.logits_NC, chosen.temperature)
    bounds_C = np.array([chosen.threshold(label) for label in labels])
    return np.asarray(shares_NC.max(-1) >= bounds_C[shares_NC.argmax(-1)])


def _certainty(scores: Scores, labels: Sequence[str], temperature: float, *, held_out: bool) -> dict[str, float]:
    """How sure the model is. held_out: whether the temperature was found on these items."""
    figures = calibration.certainty(scores, temperature, held_out=held_out)
    if len(labels) == 2:
        negative_N = scores.truth_N == 0
        shares_NC = probabilities(scores.logits_NC, temperature)
        figures["average_precision"] = calibration.average_precision(shares_NC[:, 1], ~negative_N)
        # Of none the rate would be a perfect 0, and pass any gate.
        if negative_N.any():
            figures["false_positive_rate"] = float((scores.predicted[negative_N] == 1).mean())
    return figures


class Texts(_Classification):
    """One class for a text."""

    task: ClassVar[Task] = Task.SEQUENCE_CLASSIFICATION
    main: ClassVar[tuple[str, ...]] = ("accuracy",)
    abstains: ClassVar[bool] = True


class Words(_Classification):
    """One class for each word, from its first piece."""

    task: ClassVar[Task] = Task.TOKEN_CLASSIFICATION
    # Of words O is a class like others: a model may lose entities and gain in macro F1.
    main: ClassVar[tuple[str, ...]] = ("entity_f1", "macro_f1")
    per_token: ClassVar[bool] = True

    def labels(self, train: Sequence[Example], test: Sequence[Example], declared: Sequence[str]) -> tuple[str, ...]:
        """As `labelled.schema`; with prefixes on all but `O`, or on none, where nobody declared them."""
        found = super().labels(train, test, declared)
        if (bare := {*Scheme(found).mixed}) and not declared:
            prefixed = {*found} - bare - {OUTSIDE}
            bare_at, other_at = (
                next(each.place for each in train if not kind.isdisjoint(each.labels)) for kind in (bare, prefixed)
            )
            raise InputError(
                "LabelsMixed",
                f"{bare_at} has a label without a prefix such as B- or I-, and {other_at} one with it: correct it, "
                "or name all labels in spec.labels where that is meant",
            )
        return found

    def whole(self, scores: Scores, labels: Sequence[str]) -> dict[str, float]:
        """`entity_precision` and `entity_recall` where labels mark entities."""
        found = self.statistics(scores, labels).get("entity_f1")
        if found is None:
            return {}
        right, predicted, there = found.sums_EK.sum(0)
        return {"entity_precision": right / max(predicted, 1), "entity_recall": right / max(there, 1)}

    def mains(self, labels: Sequence[str]) -> Sequence[str]:
        """One: whether there are entities is known from the labels."""
        return [self.main_of(self.figure_names(labels)[0])]

    def figure_names(self, labels: Sequence[str], key: Any = None) -> tuple[list[str], list[str]]:
        """With entities' where labels mark some."""
        told, others = super().figure_names(labels, key)
        if Scheme(labels).joins:
            return [*told, "entity_f1"], [*others, "entity_precision", "entity_recall"]
        return told, others
