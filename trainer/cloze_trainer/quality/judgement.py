"""Everything that the evaluation says of a classifier: figures, intervals, calibration, slices, gates."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from cloze_api.evaluation import Evaluation
from cloze_api.manifest import Calibration
from cloze_api.task import Task
from cloze_trainer import evaluation
from cloze_trainer.quality import calibration, gates, intervals
from cloze_trainer.quality.entities import is_scheme
from cloze_trainer.quality.gates import Comparison, Verdict
from cloze_trainer.quality.scores import Scores, probabilities, statistics

MAIN: Final = {Task.SEQUENCE_CLASSIFICATION: "accuracy", Task.TOKEN_CLASSIFICATION: "macro_f1"}
"""The figure that stands for the task: of the champion, and of slices."""
ENDS: Final = ("lower", "upper")
"""Of an interval, as `lower_accuracy`: before the name, since labels are behind it and may be called anything."""
_WORST: Final = "worst_slice_"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found.

    figures: by name. report: `evaluation.json`, for people: also what isn't one number; empty where there is no more.
    calibration: for the manifest; None where none was asked for. verdicts: of the gates.
    """

    figures: Mapping[str, float]
    report: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    verdicts: Sequence[Verdict] = ()

    @property
    def refusal(self) -> str:
        """Why it isn't good enough; empty when it is."""
        return gates.refusal(self.verdicts)


def figure_names(task: Task, labels: Sequence[str], *, sliced: bool) -> list[str]:
    """The figures that `judge` gives of a model with these labels. sliced: whether there are slices that count."""
    names = ["accuracy", "macro_f1", "log_loss", "calibration_error"]
    if sliced:
        names.append(f"{_WORST}{MAIN[task]}")
    if len(labels) == 2:
        names += ["f1", "average_precision", "false_positive_rate"]
    if task is Task.TOKEN_CLASSIFICATION and is_scheme(labels):
        names += ["entity_f1", "entity_precision", "entity_recall"]
    names += [f"{end}_{name}" for name in names if name in _WITH_INTERVAL for end in ENDS]
    return [*names, *(f"f1_{label}" for label in labels)]


_WITH_INTERVAL: Final = ("accuracy", "macro_f1", "f1", "entity_f1")


def judge(
    scores: Scores,
    labels: Sequence[str],
    asked: Evaluation,
    *,
    task: Task,
    others: Mapping[str, float] | None = None,
    comparison: Comparison | None = None,
) -> Judgement:
    """Judge a classifier. others: figures that come from elsewhere and may have gates, too. comparison: with the
    champion, where there is one.
    """
    found = statistics(scores, labels, per_token=task is Task.TOKEN_CLASSIFICATION)
    counts_CC = evaluation.confusion(scores.truth_N, scores.predicted, len(labels))
    figures = {name: statistic.figure for name, statistic in found.items()}
    for name, statistic in found.items():
        for end, value in zip(ENDS, intervals.interval(statistic, asked.confidence), strict=True):
            figures[f"{end}_{name}"] = value
    if "entity_f1" in found:
        right, predicted, there = found["entity_f1"].sums_EK.sum(0)
        figures["entity_precision"], figures["entity_recall"] = right / max(predicted, 1), right / max(there, 1)
    chosen, certainty = _calibration(scores, labels, asked, task)
    figures |= certainty
    slices = _slices(scores, labels, task, asked.min_slice_examples)
    if counted := [each["figure"] for each in slices.values() if each["counts"]]:
        figures[f"{_WORST}{MAIN[task]}"] = min(counted)
    figures |= {name: value for name, value in evaluation.classification(counts_CC, labels).items() if "f1_" in name}
    verdicts = [gates.bound(gate, {**(others or {}), **figures}) for gate in asked.gates]
    if comparison is not None and asked.champion is not None:
        verdicts.append(gates.no_worse(comparison, asked.champion.max_loss, asked.champion.confidence))
    report = {
        "figures": figures,
        "confidence": asked.confidence,
        "labels": list(labels),
        "confusion": counts_CC.tolist(),
        "reliability": calibration.reliability(
            probabilities(scores.logits_NC, chosen.temperature if chosen else 1.0), scores.truth_N
        ),
        "reliability_before": calibration.reliability(probabilities(scores.logits_NC), scores.truth_N)
        if asked.calibrate
        else None,
        "slices": slices,
        "gates": [{"gate": each.gate, "passed": each.passed, "message": each.message} for each in verdicts],
    }
    return Judgement(figures, report, chosen, verdicts)


def _calibration(
    scores: Scores, labels: Sequence[str], asked: Evaluation, task: Task
) -> tuple[Calibration | None, dict[str, float]]:
    """What goes into the manifest, and the figures of how sure the model is."""
    logits_NC, truth_N = scores.logits_NC, scores.truth_N
    temperature = calibration.temperature(logits_NC, truth_N) if asked.calibrate else 1.0
    shares_NC = probabilities(logits_NC, temperature)
    figures = {
        "log_loss": calibration.log_loss(logits_NC, truth_N, temperature),
        "calibration_error": calibration.held_out_error(logits_NC, truth_N, scores.example_N)
        if asked.calibrate
        else calibration.calibration_error(shares_NC, truth_N),
    }
    if len(labels) == 2:
        negative_N = truth_N == 0
        figures["average_precision"] = calibration.average_precision(shares_NC[:, 1], ~negative_N)
        figures["false_positive_rate"] = float((scores.predicted[negative_N] == 1).sum() / max(1, negative_N.sum()))
    bounds: dict[str, float] = {}
    if asked.abstain_below_precision is not None and task is Task.SEQUENCE_CLASSIFICATION:
        bounds = calibration.thresholds(shares_NC, truth_N, labels, asked.abstain_below_precision)
    if not asked.calibrate and not bounds:
        return None, figures
    return Calibration(temperature=temperature, thresholds=bounds), figures


def counted_slices(slices: Iterable[Sequence[str]], least: int) -> set[str]:
    """Those of which there are enough examples."""
    counts = Counter(name for own in slices for name in own)
    return {name for name, count in counts.items() if count >= least}


def _slices(scores: Scores, labels: Sequence[str], task: Task, least: int) -> dict[str, dict[str, Any]]:
    """The task's figure of each slice. counts: whether there are enough examples."""
    found = {}
    counted = counted_slices(scores.slices, least)
    for name in sorted({each for own in scores.slices for each in own}):
        part = scores.part(np.array([name in own for own in scores.slices]))
        if not len(part.truth_N):
            continue
        figure = statistics(part, labels, per_token=task is Task.TOKEN_CLASSIFICATION)[MAIN[task]].figure
        found[name] = {"examples": part.examples, "figure": figure, "counts": name in counted}
    return found


def compare(
    new: Scores, old: Scores, labels: Sequence[str], *, task: Task, against: str, confidence: float
) -> Comparison:
    """Two models on the same examples. labels: of both, in one order."""
    ours, theirs = (
        statistics(scores, labels, per_token=task is Task.TOKEN_CLASSIFICATION)[MAIN[task]] for scores in (new, old)
    )
    return Comparison(
        against=against,
        figure=MAIN[task],
        new=ours.figure,
        old=theirs.figure,
        difference=ours.figure - theirs.figure,
        least=intervals.least_difference(ours, theirs, confidence),
    )
