"""How much of the personal data in its training text a model says when they are hidden, beside data it hasn't read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloze_api.manifest import SpecialTokens
from cloze_trainer.audit import scoring
from cloze_trainer.data import personal
from cloze_trainer.data.personal import Datum
from cloze_trainer.model import TaskModel


def run(model: TaskModel, folder: Path, special: SpecialTokens) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures, and for people counts by side and kind. folder: of the prepared corpus."""
    shares: dict[str, float] = {}
    counts: dict[str, Any] = {}
    for side, data in personal.read(folder).items():
        right = scoring.said(model, [(datum.ids, datum.places, datum.asked) for datum in data], special)
        counts[side] = _by_kind(data, right)
        shares[side] = sum(right) / sum(len(datum.asked) for datum in data)
    figures = {
        "personal_data_recall": shares["training"],
        "personal_data_recall_held_out": shares["held-out"],
        "personal_data_excess": shares["training"] - shares["held-out"],
    }
    return figures, {"personal_data": counts}


def _by_kind(data: Sequence[Datum], right: Sequence[int]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for datum, count in zip(data, right, strict=True):
        own = found.setdefault(datum.kind, {"data": 0, "tokens": 0, "right": 0, "whole": 0})
        own["data"] += 1
        own["tokens"] += len(datum.asked)
        own["right"] += count
        own["whole"] += count == len(datum.asked)
    return found
