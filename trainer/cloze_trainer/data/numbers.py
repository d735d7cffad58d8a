"""Numbers of examples."""

import sys
from typing import Any, Final

from cloze_trainer.errors import InputError

LARGEST_TARGET: Final = 1e15
"""What a model learns to say, at most: the squares of its errors, and sums of many of them, are finite in float32."""


def score_of(place: str, row: dict[str, Any], most: float = sys.float_info.max) -> float:
    """A line's field `score`, of at most that size. Raises InputError for anything else."""
    score = row.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise InputError("ScoreInvalid", f"{place} has no field 'score' with a number")
    # JSON may have integers of thousands of digits, which compare with floats but can't become one.
    if not abs(score) <= most:
        raise InputError("ScoreInvalid", f"{place} has a field 'score' that isn't a number of at most {most:g}")
    return float(score)
