"""A rank whose memory is too small: it takes less at once, or the next start does."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from small_runs import run_of
from torch import Tensor

from cloze_api.progress import ExitCode
from cloze_trainer.data.labelled import Labelled
from cloze_trainer.gang import Gang
from cloze_trainer.memory import ChunkTooLarge, keep, recall
from cloze_trainer.pretrain import Pretraining, prepare
from cloze_trainer.progress import ProgressFile
from cloze_trainer.tasks import scoring
from cloze_trainer.tasks.rows import Batch, Rows
from cloze_trainer.worker import initial_model
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


class Alone(Gang):
    """The only rank, without a process group."""

    def __init__(self) -> None:
        self.rank, self.world, self.device = 0, 1, torch.device("cpu")

    def sum(self, *values: float) -> list[float]:
        return list(values)


def test_an_evaluation_that_does_not_fit_is_cut(tmp_path: Path) -> None:
    """The figures are those of all rows at once, and a single row that doesn't fit is told."""
    small = {"layers": 1, "hiddenSize": 16, "heads": 2, "intermediateSize": 32, "maxLength": 16}
    run, spec = run_of(tmp_path, [f"sentence {number} is about ships" for number in range(60)], model=small)
    workload = Pretraining(spec, prepare(run, spec, ProgressFile(None)), torch.device("cpu"))
    model, sizes = initial_model(workload, 1), []

    def crowd(_: Any, given: tuple[Tensor, ...]) -> None:
        sizes.append(len(given[0]))
        if len(given[0]) > fits:
            raise torch.OutOfMemoryError("as a GPU says it")

    model.register_forward_pre_hook(crowd)
    fits = 9999
    whole = workload.evaluate(model, Alone())
    rows, fits = max(sizes), 2
    assert rows > 2 * fits
    cut = workload.evaluate(model, Alone())
    assert whole is not None
    assert cut == pytest.approx(whole, rel=1e-5)
    fits = 0
    with pytest.raises(torch.OutOfMemoryError):
        workload.evaluate(model, Alone())


def test_outputs_that_do_not_fit_are_cut() -> None:
    """Each row's are where they belong, whatever the rows beside it."""
    texts = tuple(np.arange(5, 5 + length) for length in (3, 9, 4, 8, 5, 7, 6))
    lengths = np.array([len(text) for text in texts])
    part = Labelled(texts, tuple(text % 3 for text in texts), lengths, 0, 0)
    rows, sizes = Rows.of(part, per_token=True, pad=0), []

    def infer(batch: Batch, fits: int) -> Any:
        sizes.append(len(batch.ids_BT))
        if len(batch.ids_BT) > fits:
            raise torch.OutOfMemoryError("as a GPU says it")
        return batch.ids_BT[..., None].astype(np.float32)

    whole, cut = (scoring.outputs(rows, 1, partial(infer, fits=fits), at_once=999) for fits in (9, 2))
    assert np.array_equal(cut, whole)
    assert sizes == [7, 7, 4, 2, 2, 3, 2, 1]


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


def test_the_optimizers_state_takes_memory_before_anything_is_tried(tmp_path: Path) -> None:
    """What fits in the first step fits in the second, too: nothing larger is tried later on, and no rank dies."""
    # The first batch is as large as any.
    seed = {"optimization": {"seed": 1}}
    crowded = {"name": "crowded", "fits": {"0": 60}, "moments": 30, **seed}
    (process,) = ranks.start(tmp_path, 1, {"name": "steady", **seed}, crowded)
    assert process.wait(timeout=120) == 0, ranks.log(tmp_path, 1, 0).read_text()
    steady, cut = (torch.load(tmp_path / f"1-0-{name}.pt") for name in ("steady", "crowded"))
    assert cut["sizes"][0] == steady["sizes"][0] > 30
    assert max(cut["sizes"][1:]) <= 30
    assert torch.allclose(cut["weights"], steady["weights"], atol=1e-4)


def test_memory_that_falls_while_the_others_wait_is_known_to_the_next_start(tmp_path: Path) -> None:
    """With the whole model on each rank: in the fourth batch what fitted before doesn't, and the next start cuts it."""
    falling = {"name": "falling", "fits": {"1": 40}, "shrinks": 3}
    ended = start(tmp_path, {"name": "steady"}, {"name": "roomy", "fits": {"1": 40}}, falling)
    assert ended[1] == ExitCode.PEER_LOST
    assert json.loads((tmp_path / "2-1.json").read_text())["reason"] == "ChunksHalved"
    assert recall(tmp_path) <= 20
    assert start(tmp_path, falling) == [0, 0]
    steady, roomy, fallen = (torch.load(tmp_path / f"2-1-{name}.pt") for name in ("steady", "roomy", "falling"))
    assert torch.equal(roomy["weights"], steady["weights"])
    # The third step's checkpoint may not have been durable yet.
    assert fallen["taken"] in ([2, 3, 4, 5], [3, 4, 5])
    assert max(fallen["sizes"]) <= 20 < max(roomy["sizes"])
    assert torch.allclose(fallen["weights"], steady["weights"], atol=1e-4)
