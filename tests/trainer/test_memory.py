"""A model in parts, of which one rank's memory is too small: the next start knows it."""

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch

from cloze_api.progress import ExitCode
from cloze_trainer.memory import ChunkTooLarge, keep, recall
from cloze_trainer.workload import CHUNK_TOKENS

pytestmark = pytest.mark.timeout(300)


def test_what_fits_is_kept_and_only_falls(tmp_path: Path) -> None:
    """A file that can't be read is as good as none."""
    assert recall(tmp_path) == CHUNK_TOKENS
    for tokens, known in ((4096, 4096), (8192, 4096), (512, 512)):
        keep(tmp_path, ChunkTooLarge(1, 2 * tokens, tokens))
        assert recall(tmp_path) == known
    (tmp_path / ".chunk-tokens.json").write_text("{")
    assert recall(tmp_path) == CHUNK_TOKENS


def start(folder: Path, *scenarios: dict[str, Any]) -> list[int]:
    """Two ranks, to their ends; how these were."""
    return [process.wait(timeout=120) for process in ranks.start(folder, 2, *scenarios)]


def test_a_model_in_parts_starts_again_with_what_fits(tmp_path: Path) -> None:
    """The rank ends in the midst of a gradient, the other loses it, and the next start learns what it would have."""
    sharded = {"optimization": {"sharding": "full"}}
    ended = start(tmp_path, {"name": "steady", **sharded}, {"name": "crowded", **sharded, "fits": {"1": 20}})
    assert ended[1] == ExitCode.PEER_LOST
    assert ended[0] != 0
    left = json.loads((tmp_path / "2-1.json").read_text())
    assert left["reason"] == "ChunksHalved"
    assert "don't fit into rank 1's memory" in left["message"]
    assert recall(tmp_path) <= 14
    assert start(tmp_path, {"name": "crowded", **sharded, "fits": {"1": 20}}) == [0, 0]
    steady, crowded = (torch.load(tmp_path / f"2-1-{name}.pt") for name in ("steady", "crowded"))
    assert max(crowded["sizes"]) <= 20 < max(steady["sizes"])
    assert crowded["error"] == ""
    assert torch.allclose(crowded["weights"], steady["weights"], atol=1e-4)
