"""Several labels for a text, or none: each is a yes or no of its own."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

from cloze_api.evaluation import Evaluation
from cloze_api.manifest import Calibration
from cloze_api.task import Problem, Task
from cloze_trainer.data import labelled
from cloze_trainer.data.labelled import Example, Labelled, label_of, labels_in, slices_of, text_of
from cloze_trainer.data.records import Record
from cloze_trainer.errors import InputError
from cloze_trainer.quality import calibration
from cloze_trainer.quality.scores import Floats, Scores, Statistic, f1_of, macro_f1_of, mean
from cloze_trainer.tasks.kind import Further, Kind, Outputs, Reader, Said
from cloze_trainer.tasks.pooling import pooled
from cloze_trainer.tasks.rows import Batch, Rows
from cloze_trainer.workload import Chunk

_HALF = 0.5


@dataclass(frozen=True, slots=True)
class Marked:
    """E texts and C labels. logits_EC: of each label. truth_EC: whether the text has it."""

    logits_EC: Outputs
    truth_EC: npt.NDArray[np.bool_]
    slices: Sequence[Sequence[str]] = ()

    @property
    def examples(self) -> int:
        """E."""
        return len(self.truth_EC)

    def probabilities(self, temperature: float = 1.0) -> Floats:
        """Probability of each label."""
        # tanh doesn't overflow.
        return np.asarray(0.5 * (1 + np.tanh(self.logits_EC.astype(np.float64) / temperature / 2)))

    @property
    def answers(self) -> Scores:
        """Each label of each text as an item of two classes: that it applies, and that it doesn't."""
        examples, labels = self.truth_EC.shape
        logits_N = self.logits_EC.reshape(-1)
        logits_N2 = np.stack([logits_N, np.zeros_like(logits_N)], -1)
        return Scores(
            logits_N2, (~self.truth_EC).reshape(-1).astype(np.int64), np.repeat(np.arange(examples), labels), examples
        )

    def only(self, marks_E: npt.NDArray[np.bool_]) -> "Marked":
        """Of some texts."""
        slices = [own for own, mark in zip(self.slices, marks_E, strict=bool(self.slices)) if mark]
        return Marked(self.logits_EC[marks_E], self.truth_EC[marks_E], slices)


class SeveralLabels(Kind[Example, Marked]):
    """Each label of a text by itself; one is predicted from a probability of a half on."""

    task: ClassVar[Task] = Task.SEQUENCE_CLASSIFICATION
    problem: ClassVar[Problem] = Problem.MULTI_LABEL
    main: ClassVar[tuple[str, ...]] = ("micro_f1",)

    def line(self, place: str, row: Record) -> Example:
        """`{"text": …, "labels": […]}`, of which there may be none."""
        text, given = text_of(place, row, "text"), labels_in(row.get("labels"))
        if given is None:
            raise InputError("LabelMissing", f"{place} has no field 'labels' with a list of texts, which may be empty")
        labels = tuple(label_of(place, label) for label in given)
        if len(set(labels)) < len(labels):
            raise InputError("LabelRepeated", f"{place} has a label twice: name it once")
        return Example(place, (text,), labels, slices_of(place, row))

    def labels(self, train: Sequence[Example], test: Sequence[Example], declared: Sequence[str]) -> tuple[str, ...]:
        """As `labelled.schema`; raises InputError also where all training examples have the same labels, or none."""
        if len({frozenset(line.labels) for line in train}) < 2:
            raise InputError("LabelsAllEqual", "all training examples have the same labels: there is nothing to learn")
        return labelled.schema(train, test, declared)

    def needed(self, line: Example) -> Collection[str]:
        """Its labels."""
        return line.labels

    def check(self, lines: Sequence[Example], labels: Sequence[str]) -> None:
        """As `labelled.check`."""
        labelled.check(lines, labels)

    def tokenize(self, lines: Sequence[Example], labels: Sequence[str], reader: Reader) -> Labelled:
        """A row for each text; its target is 1 or 0 for each label."""
        return labelled.tokenize_texts(
            [text for line in lines for text in line.texts],
            [np.array([[label in line.labels for label in labels]], np.int64) for line in lines],
            reader.tokenizer,
            max_length=reader.max_length,
            special=reader.special,
            whole=reader.whole,
        )

    def width(self, labels: Sequence[str], hidden: int) -> int:  # noqa: ARG002 - as in Kind
        """A logit for each label."""
        return len(labels)

    def weight(self, batch: Batch) -> int:
        """Each text counts once."""
        return len(batch.targets)

    def loss_sum(self, output: Tensor, chunk: Chunk, weights_C: Tensor | None = None) -> Tensor:  # noqa: ARG002 - as in Kind
        """Binary cross-entropy, the mean over a text's labels."""
        if not chunk.weight:
            return output.sum() * 0
        losses_BC = functional.binary_cross_entropy_with_logits(
            output, chunk.targets.to(output.dtype), reduction="none"
        )
        return losses_BC.mean(-1).sum()

    def scored(self, outputs_NK: Outputs, rows: Rows, key: Any, slices: Sequence[Sequence[str]]) -> Marked:  # noqa: ARG002
        """Logits beside what is there."""
        logits_EC, truth_EC = pooled(outputs_NK, rows)
        return Marked(logits_EC, truth_EC.astype(bool), slices)

    def statistics(self, scores: Marked, labels: Sequence[str]) -> Mapping[str, Statistic]:  # noqa: ARG002 - as in Kind
        """`micro_f1` over all labels of all texts, `macro_f1` over the labels that occur, and `exact_match`: how often
        all labels of a text are right.
        """
        predicted_EC = scores.logits_EC >= 0
        hits_EC = predicted_EC & scores.truth_EC
        counts_E3C = np.stack([hits_EC, predicted_EC, scores.truth_EC], axis=1).astype(np.float64)
        return {
            "micro_f1": Statistic(counts_E3C.sum(-1), f1_of),
            "macro_f1": Statistic(counts_E3C.reshape(scores.examples, -1), macro_f1_of),
            "exact_match": mean((predicted_EC == scores.truth_EC).all(-1).astype(np.float64)),
        }

    def details(self, scores: Marked, labels: Sequence[str]) -> dict[str, float]:
        """`average_precision`, the mean over the labels that occur, and `f1_<label>` of each label."""
        predicted_EC = scores.logits_EC >= 0
        sums_C3 = np.stack([(predicted_EC & scores.truth_EC).sum(0), predicted_EC.sum(0), scores.truth_EC.sum(0)], -1)
        found = [
            calibration.average_precision(shares_E, truth_E)
            for shares_E, truth_E in zip(scores.probabilities().T, scores.truth_EC.T, strict=True)
            if truth_E.any()
        ]
        scores_C = f1_of(sums_C3.astype(np.float64))
        return {
            "average_precision": float(np.mean(found)) if found else 0.0,
            **{f"f1_{label}": float(score) for label, score in zip(labels, scores_C, strict=True)},
        }

    def further(
        self, scores: Marked, labels: Sequence[str], asked: Evaluation, known: Calibration | None = None
    ) -> Further:
        """How sure the model is, and what applies with thresholds where there are some."""
        chosen, answers = known or _calibration(scores, labels, asked), scores.answers
        temperature = chosen.temperature if chosen else 1.0
        scaled = known is None and asked.calibrate
        figures = {
            **self.details(scores, labels),
            **calibration.certainty(answers, temperature, held_out=scaled),
            **_applying(scores, labels, asked, known),
        }
        report = {"labels": list(labels), **calibration.diagrams(answers, temperature, scaled=scaled)}
        return Further(figures, report, chosen)

    def said(self, scores: Marked, labels: Sequence[str], calibration: Calibration | None) -> Said:
        """The labels that apply: from their thresholds on, or from a half."""
        calibration = calibration or Calibration()
        shares_EC, applies_EC = scores.probabilities(calibration.temperature), _applies(scores, labels, calibration)
        return Said(dict(zip(labels, applies_EC.sum(0).tolist(), strict=True)), shares_EC[applies_EC])

    @property
    def thresholded(self) -> Sequence[str]:
        """As `micro_f1`, and what it is made of."""
        return ("applied_micro_f1", "applied_precision", "applied_recall")

    def figure_names(self, labels: Sequence[str], key: Any = None) -> tuple[list[str], list[str]]:  # noqa: ARG002 - as in Kind
        """See the methods above."""
        told = ["micro_f1", "macro_f1", "exact_match"]
        return told, ["log_loss", "calibration_error", "average_precision", *(f"f1_{label}" for label in labels)]


def _calibration(scores: Marked, labels: Sequence[str], asked: Evaluation) -> Calibration | None:
    """What goes into the manifest: a temperature for all labels, and each one's threshold."""
    answers = scores.answers
    temperature = calibration.temperature(answers.logits_NC, answers.truth_N) if asked.calibrate else 1.0
    bounds: dict[str, float] = {}
    for label, shares_E, truth_E in zip(labels, scores.probabilities(temperature).T, scores.truth_EC.T, strict=True):
        pair_E2 = np.stack([shares_E, np.zeros_like(shares_E)], -1)
        bounds |= calibration.chosen_thresholds(pair_E2, (~truth_E).astype(np.int64), [label], asked)
    if not (asked.calibrate or asked.thresholds):
        return None
    return Calibration(temperature=temperature, thresholds=bounds)


def _applies(scores: Marked, labels: Sequence[str], chosen: Calibration) -> npt.NDArray[np.bool_]:
    """Whether a server says that a label applies (E, C)."""
    bounds_C = np.array([chosen.threshold(label, _HALF) for label in labels])
    return np.asarray(scores.probabilities(chosen.temperature) >= bounds_C)


def _applying(scores: Marked, labels: Sequence[str], asked: Evaluation, known: Calibration | None) -> dict[str, float]:
    """Figures over all labels of all texts with thresholds; each half of the texts with those of the other half."""
    if not (known.thresholds != {} if known else asked.thresholds):
        return {}
    if known:
        applies_EC = _applies(scores, labels, known)
    else:
        applies_EC = calibration.decided(
            np.arange(scores.examples),
            lambda other_E: _calibration(scores.only(other_E), labels, asked),
            lambda own_E, chosen: _applies(scores.only(own_E), labels, chosen),
        )
    right, applied, there = (applies_EC & scores.truth_EC).sum(), applies_EC.sum(), scores.truth_EC.sum()
    return {
        "applied_micro_f1": float(f1_of(np.array([right, applied, there], np.float64))),
        "applied_precision": right / max(applied, 1),
        "applied_recall": right / max(there, 1),
    }
