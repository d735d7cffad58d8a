"""How much of an input the model reads, and in how many parts. Pure: numbers of tokens in, ranges of tokens out.

An input that is longer than the model is refused, cut, or read in overlapping windows. Near a window's edge the model
lacks context, so of the windows that hold a token the one where it is farther from a cut owns it: that window's answer
counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Truncation = Literal["error", "left", "right", "window"]

_DEFAULT_STRIDE = 4
_LARGEST_STRIDE = 2


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens start to stop (exclusive) of a text; those from first to last (exclusive) are its own."""

    start: int
    stop: int
    first: int
    last: int


def default_stride(room: int) -> int:
    """Overlap of windows of `room` tokens where nobody asked for another: a quarter."""
    return room // _DEFAULT_STRIDE


def largest_stride(room: int) -> int:
    """Largest overlap: a half. No token is read more than twice then, and the model's work at most doubles."""
    return room // _LARGEST_STRIDE


def plan(length: int, room: int, truncation: Truncation, stride: int) -> list[Window]:
    """Windows over a text of `length` tokens, of which the model takes `room` at a time, in the text's order.

    `left` drops the beginning and `right` the end. `window` drops nothing: each window but the last has `room` tokens,
    and neighbours share `stride` of them. `error` is for texts that fit. Raises ValueError for a text that `error`
    doesn't allow, for no room, and for a stride beyond `largest_stride`.
    """
    if length <= room:
        return [Window(0, length, 0, length)]
    if truncation == "error" or room < 1 or not 0 <= stride <= largest_stride(room):
        raise ValueError(f"{length} tokens don't fit into {room} with {truncation} and a stride of {stride}")
    match truncation:
        case "left":
            return [Window(length - room, length, length - room, length)]
        case "right":
            return [Window(0, room, 0, room)]
        case "window":
            return _overlapping(length, room, stride)


def _overlapping(length: int, room: int, stride: int) -> list[Window]:
    starts = range(0, length - stride, room - stride)
    spans = [(start, min(start + room, length)) for start in starts]
    # The middle of each overlap: left of it the earlier window has more context to come, right of it the later one
    # has more behind.
    bounds = [0, *((before[1] + after[0] + 1) // 2 for before, after in pairwise(spans)), length]
    return [Window(*span, *own) for span, own in zip(spans, pairwise(bounds), strict=True)]


def count(length: int, room: int, stride: int) -> int:
    """Windows that `plan` makes of a text that is read in windows."""
    return 1 if length <= room else len(range(0, length - stride, room - stride))


def covered(windows: Sequence[Window]) -> range:
    """The tokens of a text that its windows cover."""
    return range(windows[0].start, windows[-1].stop)
