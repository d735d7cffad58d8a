"""How many padded tokens one batch may have. Pure."""

import math
from typing import Final

from cloze_api.task import Task

TOKENS_PER_THREAD = 256
"""For one thread of a CPU. Larger batches gain nothing there, and let short inputs wait for long ones."""
DEVICE_TOKENS = 16_384
"""For a GPU, which is idle with less."""

_LOGITS_BYTES = 64 << 20


def default_tokens(threads: int, *, device: bool) -> int:
    """Where nobody says otherwise. threads: compute threads of a batch. device: whether it runs on a GPU instead."""
    return DEVICE_TOKENS if device else TOKENS_PER_THREAD * threads


def logits_bound(task: Task, vocabulary: int) -> float:
    """Most tokens for what a model gives for each of them; infinite where that is little.

    A fill-mask graph gives logits over the vocabulary: 2,048 tokens × 30,522 × 4 bytes are 250 MB. They are kept below
    64 MiB; smaller batches of equal lengths cost no throughput on a CPU.
    """
    return max(1, _LOGITS_BYTES // (4 * vocabulary)) if task is Task.FILL_MASK else math.inf


class Budget:
    """The most padded tokens of a batch: as many as are asked for, or as many as memory has room for.

    A batch that didn't fit leaves half of it. Many that fit and use what is allowed raise that by a sixteenth: what
    took the memory may be gone, and one try that fails costs little among them.
    """

    PATIENCE: Final = 64
    """Batches that must fit before more is tried."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._fitting = 0
        self.tokens = most

    def fitted(self, tokens: int) -> None:
        """A batch of so many padded tokens has run. One that used less than half proves nothing."""
        if self.tokens == self._most or 2 * tokens < self.tokens:
            return
        self._fitting += 1
        if self._fitting == self.PATIENCE:
            self._fitting = 0
            self.tokens = min(self._most, self.tokens + max(1, self.tokens // 16))

    def failed(self, tokens: int) -> None:
        """There was no memory for a batch of so many padded tokens."""
        self._fitting = 0
        self.tokens = max(1, min(self.tokens, tokens // 2))
