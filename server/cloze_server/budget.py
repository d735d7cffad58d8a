"""How many padded tokens one batch may have. Pure."""

import math

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
