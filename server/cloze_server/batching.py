"""Which waiting sequences make the next batch. Pure: no clock, no lock, no model.

On a CPU padding costs as much as text, and a batch larger than a few hundred tokens gains nothing, so a batch holds
sequences of nearly one length within a budget of padded tokens. Every batch holds the oldest waiting sequence, so
none waits for more batches than there were sequences before it, whatever arrives later; no timer and no ageing
constant are needed for that. And what is taken along stands near the head of the queue: one that came much later goes
before nobody, however well its length fits.
"""

from collections.abc import Sequence
from typing import Protocol

LOOKAHEAD = 1024
"""Sequences that one plan considers, oldest first. Bounds the time of a plan under a long queue."""

REACH = 8
"""Batches' worth of tokens that one plan considers, from the head of the queue on."""

_FREE_PADDING = 16
_PADDING_SHARE = 8


class Sized(Protocol):
    """Something with a length in tokens."""

    @property
    def length(self) -> int:
        """Tokens, special tokens included."""
        ...


def tolerance(longest: int) -> int:
    """How much shorter than the longest a sequence in a batch may be, in tokens.

    An eighth; for short ones 16 tokens, where the fixed cost of a run outweighs padding.
    """
    return max(_FREE_PADDING, longest // _PADDING_SHARE)


def plan_batch(queue: Sequence[Sized], budget: int) -> list[int]:
    """Indexes into `queue` (oldest first) of the next batch.

    Holds index 0; `len(batch) × longest ≤ budget` unless it is that one sequence alone; the shortest is within
    `tolerance` of the longest; among sequences of the same length, older ones are taken first. Empty only for an
    empty queue. Grows from the oldest by whichever neighbour in length adds the least padding.
    """
    if not queue:
        return []
    considered = _near(queue, REACH * budget)
    first = queue[0].length
    # The nearest in length comes last, to be popped; among equals, the oldest.
    shorter = sorted((i for i in considered if queue[i].length < first), key=lambda i: (queue[i].length, -i))
    longer = sorted((i for i in considered if queue[i].length >= first), key=lambda i: (-queue[i].length, -i))
    batch, shortest, longest = [0], first, first
    while shorter or longer:
        down = queue[shorter[-1]].length if shorter else None
        up = queue[longer[-1]].length if longer else None
        size = len(batch)
        fits_down = down is not None and (size + 1) * longest <= budget and longest - down <= tolerance(longest)
        fits_up = up is not None and (size + 1) * up <= budget and up - shortest <= tolerance(up)
        if fits_up and up is not None and (not fits_down or down is None or (up - longest) * size <= longest - down):
            batch.append(longer.pop())
            longest = up
        elif fits_down and down is not None:
            batch.append(shorter.pop())
            shortest = down
        else:
            break
    return batch


def _near(queue: Sequence[Sized], tokens: int) -> range:
    """Indexes of those behind the oldest, as far as so many tokens reach."""
    for index in range(1, min(len(queue), LOOKAHEAD)):
        tokens -= queue[index].length
        if tokens < 0:
            return range(1, index)
    return range(1, min(len(queue), LOOKAHEAD))
