"""Which of a model's figures come first where there isn't room for all. Pure."""

from collections.abc import Iterable, Mapping
from typing import Final

from cloze_api.evaluation import Gate

_BESIDE: Final = (
    ("seed_deviation_", "seed_range_", "seed_least_"),
    ("worst_slice_", "champion_"),
    ("lower_", "upper_"),
    ("validation_", "teacher_"),
    ("exposure_", "bias_"),
    ("data_", "latency_ms_"),
    ("seed_",),
    ("f1_",),
)
"""How names of figures begin that stand beside others, those that say most of a model first. There may be a thousand of
the last, one for each label; a task's own figures and what tells how sure the model is begin with none of them."""


def by_importance(figures: Mapping[str, float], gates: Iterable[Gate], *, most: int | None = None) -> dict[str, float]:
    """The figures, or so many of them: those that gates name, then the task's own, then what stands beside them; of the
    same importance by name.
    """
    asked = {gate.figure for gate in gates}

    def place(name: str) -> tuple[int, str]:
        beside = (number for number, beginnings in enumerate(_BESIDE, start=1) if name.startswith(beginnings))
        return -1 if name in asked else next(beside, 0), name

    return {name: figures[name] for name in sorted(figures, key=place)[:most]}
