"""Everything that the evaluation says of a model: figures, intervals, calibration, slices, gates."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from cloze_api.evaluation import Evaluation
from cloze_api.manifest import Calibration
from cloze_api.task import Problem, Task
from cloze_trainer import tasks
from cloze_trainer.quality import gates, intervals
from cloze_trainer.quality.gates import Comparison, Verdict
from cloze_trainer.quality.scores import Statistic
from cloze_trainer.tasks.kind import Said, Scored

ENDS: Final = ("lower", "upper")
"""Of an interval, as `lower_accuracy`: before the name, since labels are behind it and may be called anything."""
_WORST: Final = "worst_slice_"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found.

    figures: by name. report: `evaluation.json`, for people: also what isn't one number; empty where there is no more.
    calibration: for the manifest; None where none was asked for. verdicts: of the gates. said: for the profile.
    """

    figures: Mapping[str, float]
    report: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    verdicts: Sequence[Verdict] = ()
    said: Said = field(default_factory=Said)

    @property
    def refusal(self) -> str:
        """Why it isn't good enough; empty when it is."""
        return gates.refusal(self.verdicts)

    def beside(self, name: str, about: Mapping[str, Any], figures: Mapping[str, float]) -> "Judgement":
        """The same with what another model does: figures, and a part of the report, called so."""
        joined = {**self.figures, **figures}
        part = {**self.report.get(name, {}), **about}
        return replace(self, figures=joined, report={**self.report, "figures": joined, name: part})


def figure_names(
    task: Task, labels: Sequence[str], *, sliced: bool, problem: Problem = Problem.SINGLE_LABEL, key: Any = None
) -> list[str]:
    """The figures that `judge` gives of a model with these labels. sliced: whether there are slices that count. key:
    what the examples are scored by; any when absent.
    """
    kind = tasks.of(task, problem)
    told, others = kind.figure_names(labels, key)
    worst = [f"{_WORST}{name}" for name in kind.mains(labels) if name in told] if sliced else []
    return [*told, *worst, *(f"{end}_{name}" for name in told for end in ENDS), *others]


def judge(
    scores: Scored,
    labels: Sequence[str],
    asked: Evaluation,
    *,
    task: Task,
    problem: Problem = Problem.SINGLE_LABEL,
    others: Mapping[str, float] | None = None,
    champion: Verdict | None = None,
    known: Calibration | None = None,
) -> Judgement:
    """Judge a model by its answers. others: figures that come from elsewhere and may have gates, too. champion: what
    came of the comparison with it, where there is one. known: the calibration that the model came with, if it did.
    """
    kind = tasks.of(task, problem)
    found = kind.statistics(scores, labels)
    figures = {name: statistic.figure for name, statistic in found.items()}
    for name, statistic in found.items():
        for end, value in zip(ENDS, intervals.interval(statistic, asked.confidence), strict=True):
            figures[f"{end}_{name}"] = value
    further = kind.further(scores, labels, asked, known)
    main = kind.main_of(found)
    slices = _slices(scores, found[main], asked.min_slice_examples)
    if counted := [each["figure"] for each in slices.values() if each["counts"]]:
        figures[f"{_WORST}{main}"] = min(counted)
    figures |= further.figures
    verdicts = [gates.bound(gate, {**(others or {}), **figures}) for gate in asked.gates]
    if champion is not None:
        verdicts.append(champion)
        figures |= champion.figures
    report = {
        "figures": figures,
        "confidence": asked.confidence,
        **further.report,
        "slices": slices,
        "gates": [{"gate": each.gate, "passed": each.passed, "message": each.message} for each in verdicts],
    }
    said = kind.said(scores, labels, further.calibration)
    return Judgement(figures, report, further.calibration, verdicts, said)


def counted_slices(slices: Iterable[Sequence[str]], least: int) -> set[str]:
    """Those of which there are enough examples."""
    counts = Counter(name for own in slices for name in own)
    return {name for name, count in counts.items() if count >= least}


def _slices(scores: Scored, main: Statistic, least: int) -> dict[str, dict[str, Any]]:
    """The task's figure of each slice. counts: whether there are enough examples."""
    found = {}
    counted = counted_slices(scores.slices, least)
    for name in sorted({each for own in scores.slices for each in own}):
        part = main.part(np.array([name in own for own in scores.slices]))
        # Of examples that were cut there may be nothing to judge.
        if part.sums_EK.any():
            found[name] = {"examples": len(part.sums_EK), "figure": part.figure, "counts": name in counted}
    return found


def compare(
    new: Scored,
    old: Scored,
    labels: Sequence[str],
    *,
    task: Task,
    problem: Problem = Problem.SINGLE_LABEL,
    against: str,
    confidence: float,
) -> Comparison:
    """Two models on the same examples. labels: of both, in one order."""
    kind = tasks.of(task, problem)
    ours, theirs = (kind.statistics(scores, labels) for scores in (new, old))
    main = kind.main_of(ours)
    return Comparison(
        against=against,
        figure=main,
        new=ours[main].figure,
        old=theirs[main].figure,
        difference=ours[main].figure - theirs[main].figure,
        least=intervals.least_difference(ours[main], theirs[main], confidence),
    )
