"""Values of a person's own query against its bounds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cloze_api.rollout import Query


@dataclass(frozen=True, slots=True)
class Course:
    """longest: values in a row that were out of bounds, at most; row: as many up to the last one."""

    longest: int
    row: int
    last: float


def course(query: Query, values: Sequence[float]) -> Course | None:
    """How the values went; NaN is no value. None without any."""
    longest = row = 0
    known = [value for value in values if not math.isnan(value)]
    for value in known:
        row = 0 if _within(query, value) else row + 1
        longest = max(longest, row)
    return Course(longest, row, known[-1]) if known else None


def described(query: Query) -> str:
    """The bounds in words."""
    if query.minimum is None:
        return f"at most {query.maximum:g}"
    if query.maximum is None:
        return f"at least {query.minimum:g}"
    return f"{query.minimum:g} to {query.maximum:g}"


def _within(query: Query, value: float) -> bool:
    low = -math.inf if query.minimum is None else query.minimum
    high = math.inf if query.maximum is None else query.maximum
    return low <= value <= high
