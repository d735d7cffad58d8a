"""What fits into memory where the others wait: told by a rank that fails, and known to the next start.

A rank that has a part of the model can't try by itself, as it gathers each layer together with the others; and memory
may be too small in the end for what fitted when it was tried. It ends instead, the gang starts again from the newest
checkpoint, and all its ranks begin with smaller chunks.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import torch

from cloze_trainer.console import log
from cloze_trainer.data.order import Indices
from cloze_trainer.errors import PeerLost
from cloze_trainer.files import write_json
from cloze_trainer.workload import CHUNK_TOKENS

_FILE: Final = ".chunk-tokens.json"


class ChunkTooLarge(PeerLost):
    """A rank's memory is too small for a chunk. tokens: how many to try at once from now on."""

    def __init__(self, rank: int, places: int, tokens: int) -> None:
        super().__init__(
            f"{places} tokens at once don't fit into rank {rank}'s memory: the gang starts again from the last "
            f"checkpoint, with {tokens}",
            "ChunksHalved",
        )
        self.tokens = tokens


Measured = TypeVar("Measured")


def in_parts(rows_B: Indices, measure: Callable[[Indices], Measured]) -> list[Measured]:
    """What `measure` gives of rows: of all at once, or of their halves where that is too much for a GPU's memory.

    For what no other rank waits for. Raises OutOfMemoryError where a single row is too much.
    """
    try:
        return [measure(rows_B)]
    except torch.OutOfMemoryError:
        if len(rows_B) == 1:
            raise
    # Only now: the error held what was computed so far.
    torch.cuda.empty_cache()
    first_B, second_B = np.array_split(rows_B, 2)
    return in_parts(first_B, measure) + in_parts(second_B, measure)


def recall(workspace: Path) -> int:
    """How many tokens may go through the model at once, as far as earlier starts have found out."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return min(CHUNK_TOKENS, int(json.loads((workspace / _FILE).read_text(encoding="utf-8"))["tokens"]))
    return CHUNK_TOKENS


def keep(workspace: Path, found: ChunkTooLarge) -> None:
    """For the next start. Raises OSError."""
    tokens = min(recall(workspace), found.tokens)
    log("chunks halved", to=tokens)
    write_json(workspace / _FILE, {"tokens": tokens})
