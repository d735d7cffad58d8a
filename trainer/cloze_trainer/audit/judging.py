"""Whether a language model may be registered: its figures, the audit's, and gates on them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloze_api.manifest import SpecialTokens
from cloze_api.pretrain import PretrainEvaluation
from cloze_trainer.audit import probes
from cloze_trainer.errors import InputError
from cloze_trainer.model import TaskModel
from cloze_trainer.quality import gates
from cloze_trainer.quality.judgement import Judgement

FIGURES = ("masked_loss", "masked_accuracy", "perplexity")


def check(
    asked: PretrainEvaluation, folder: Path, special: SpecialTokens, max_length: int, report: Mapping[str, Any]
) -> None:
    """Raise InputError for a probe or a gate that can't be, before anything is trained. report: of the data."""
    probes.check(asked.audit, folder, special, max_length)
    counted = [f"data_{name}" for name, value in report.items() if isinstance(value, int | float)]
    known = [*FIGURES, *asked.audit.figures, *counted]
    if missing := gates.unknown(asked.gates, known):
        raise InputError(
            "GateFigureUnknown",
            f"spec.evaluation.gates names {missing[0]!r}, which the evaluation doesn't give: there are "
            f"{', '.join(known)}",
        )


def judge(
    asked: PretrainEvaluation,
    model: TaskModel,
    figures: Mapping[str, float],
    *,
    folder: Path,
    others: Mapping[str, float],
) -> Judgement:
    """The finished model. folder: of its tokenizer. others: figures from elsewhere, which may have gates, too."""
    special, max_length = model.config.special_tokens, model.config.max_length
    found, report = probes.run(asked.audit, model, folder, special, max_length)
    whole = {**figures, **found}
    verdicts = [gates.bound(gate, {**others, **whole}) for gate in asked.gates]
    if not (verdicts or found):
        return Judgement(whole)
    listed = [{"gate": each.gate, "passed": each.passed, "message": each.message} for each in verdicts]
    return Judgement(whole, {"figures": whole, "gates": listed, **report}, verdicts=verdicts)
