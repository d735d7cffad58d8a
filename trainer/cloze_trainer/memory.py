"""What fits into memory where the others wait: told by a rank that fails, and known to the next start.

A rank that has a part of the model can't try by itself, as it gathers each layer together with the others; and memory
may be too small in the end for what fitted when it was tried. It ends instead, the gang starts again from the newest
checkpoint, and all its ranks begin with smaller chunks.
"""

import contextlib
import json
from pathlib import Path
from typing import Final

from cloze_trainer.console import log
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
