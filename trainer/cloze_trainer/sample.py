"""Which test examples graphs are tried on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloze_trainer.data.examples import Row
from cloze_trainer.quality.judgement import counted_slices
from cloze_trainer.tasks.rows import EXAMPLE, Rows, evenly


@dataclass(frozen=True, slots=True)
class Sample:
    """rows: from all over the examples. beside: more of slices that have few among these. slices: those that count."""

    rows: Sequence[Row]
    beside: Sequence[Row]
    slices: Sequence[str]


def draw(rows: Rows, slices: Sequence[Sequence[str]], least: int, most: int) -> Sample:
    """At most so many rows, and at most about as many beside them, until each slice that counts has `least`.

    slices: of each example. least: examples of a slice that counts.
    """
    own = [slices[example] for example in rows.places[:, EXAMPLE]]
    counted = sorted(counted_slices(slices, least))
    chosen = evenly(len(rows), most)
    taken = set(chosen.tolist())
    beside: list[int] = []
    wanted = min(least, -(-most // max(1, len(counted))))
    for name in counted:
        others = np.array([row for row, names in enumerate(own) if name in names and row not in taken], np.int64)
        missing = wanted - sum(name in own[row] for row in taken)
        more = others[evenly(len(others), max(0, missing))].tolist()
        beside += more
        taken.update(more)

    def told(numbers: Sequence[int]) -> list[Row]:
        found = rows.some(np.array(numbers, np.int64))
        return [row._replace(slices=own[number]) for number, row in zip(numbers, found, strict=True)]

    return Sample(told(chosen.tolist()), told(beside), counted)
