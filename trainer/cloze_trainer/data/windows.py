"""The parts in which longer texts are read than a model takes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

SERVED: Final = 4
"""Servers' windows share a quarter of their room."""


def windows(length: int, room: int, *, shared: int = SERVED) -> list[range]:
    """Tokens of each part: all but the last have `room`, and neighbours share one part of it in so many."""
    if length <= room:
        return [range(length)]
    overlap = room // shared
    return [range(start, min(start + room, length)) for start in range(0, length - overlap, room - overlap)]


def own(read: Sequence[range]) -> list[range]:
    """Of each window the tokens that it answers for: as far as the middle of what it shares with a neighbour."""
    middles = [(before.stop + after.start + 1) // 2 for before, after in pairwise(read)]
    return [range(*each) for each in pairwise([read[0].start, *middles, read[-1].stop])]


def parts(length: int, room: int, *, whole: bool) -> list[range]:
    """What is read of a text: all of it, in windows, or its beginning."""
    return windows(length, room) if whole else [range(min(length, room))]
