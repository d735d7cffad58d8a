"""Saving beside the training: what is copied, what waits, and what a failed write does."""

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ranks
import torch
from torch import nn

from cloze_trainer.checkpoint import Checkpoints, LoopState, captured
from cloze_trainer.errors import classify
from cloze_trainer.origin import Origin
from cloze_trainer.progress import ProgressFile
from cloze_trainer.saving import Saver

ORIGIN = Origin("corpus", "sha256:base")


class Alone:
    """A gang of one."""

    leads = True

    def from_leader(self, value: Any = None) -> Any:
        return value


class Gated(Checkpoints):
    """Writes once the gate is open; `error` is raised instead when it is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 3, ORIGIN)
        self.gate = threading.Event()
        self.error: OSError | None = None

    def write(self, state: LoopState, tensors: dict[str, Any], give_up: threading.Event | None = None) -> None:
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        super().write(state, tensors, give_up)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    train(model, optimizer)
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()


def saver(checkpoints: Checkpoints) -> Saver:
    gang: Any = Alone()
    return Saver(checkpoints, gang, ProgressFile(None), None)


def test_training_goes_on_while_the_state_of_before_is_written(tmp_path: Path) -> None:
    """What becomes durable is the state at the call, though weights and moments have changed before it is written."""
    checkpoints = Gated(tmp_path)
    model, optimizer = trained()
    expected = captured(model, optimizer)
    with saver(checkpoints) as own:
        own.save(LoopState(1, 10), model, optimizer)
        assert own.durable is None
        train(model, optimizer)
        checkpoints.gate.set()
        own.settle()
        assert own.durable == 1
    checkpoints.load(1, model, optimizer)
    loaded = captured(model, optimizer)
    assert all(torch.equal(loaded["model"][name], expected["model"][name]) for name in expected["model"])
    for name, moments in expected["optimizer"]["state"].items():
        assert all(torch.equal(loaded["optimizer"]["state"][name][key], moments[key]) for key in moments)


def test_leaving_waits_for_the_write_in_flight(tmp_path: Path) -> None:
    """Also where the training ends by an error: the checkpoint is durable before the error goes on."""
    checkpoints = Gated(tmp_path)

    class Opening(Saver):
        def wait(self) -> None:
            checkpoints.gate.set()
            super().wait()

    def broken() -> None:
        gang: Any = Alone()
        with Opening(checkpoints, gang, ProgressFile(None), None) as own:
            own.save(LoopState(1, 10), *trained())
            raise RuntimeError("elsewhere")

    with pytest.raises(RuntimeError, match="elsewhere"):
        broken()
    assert checkpoints.latest() == 1


def test_memory_of_the_copy_is_used_again() -> None:
    """A second copy takes no new memory."""
    model, optimizer = trained()
    first = captured(model, optimizer)
    places = [tensor.data_ptr() for tensor in first["model"].values()]
    train(model, optimizer)
    second = captured(model, optimizer, first)
    assert [tensor.data_ptr() for tensor in second["model"].values()] == places
    assert all(torch.equal(second["model"][name], tensor) for name, tensor in model.state_dict().items())


def test_full_volume_costs_that_checkpoint_only(tmp_path: Path) -> None:
    """It is counted, the last good one stays, and the same step is tried again at the next call."""
    checkpoints = Gated(tmp_path)
    checkpoints.gate.set()
    model, optimizer = trained()
    with saver(checkpoints) as own:
        own.save(LoopState(1, 10), model, optimizer)
        own.settle()
        checkpoints.error = OSError(errno.ENOSPC, "No space left on device")
        own.save(LoopState(2, 20), model, optimizer)
        own.settle()
        assert (own.missed, own.durable, own.failed) == (1, 1, False)
        assert checkpoints.latest() == 1
        checkpoints.error = None
        own.save(LoopState(2, 20), model, optimizer)
        own.settle()
        assert (own.missed, own.durable) == (1, 2)


def test_any_other_error_ends_the_run(tmp_path: Path) -> None:
    """The flag tells the ranks, and the error is the writer's own."""
    checkpoints = Gated(tmp_path)
    checkpoints.gate.set()
    checkpoints.error = OSError(errno.EROFS, "Read-only file system")
    with saver(checkpoints) as own:
        own.save(LoopState(1, 10), *trained())
        own.wait()
        assert own.failed
        with pytest.raises(OSError, match="Read-only"):
            own.check(1.0)


def test_two_ranks_learn_of_a_checkpoint_that_one_could_not_write(tmp_path: Path) -> None:
    """Before the next collective of the training: both end in the same step, the writer with what the volume says, and
    go on together from the last good checkpoint, to the same weights. A full volume ends neither.
    """
    scenarios = [
        {"name": "steady"},
        {"name": "unwritable", "refused": [3, errno.EROFS]},
        {"name": "full", "refused": [3, errno.ENOSPC]},
    ]
    processes = ranks.start(tmp_path, 2, *scenarios)
    ranks.finish(tmp_path, processes)
    left = {path.stem: torch.load(path) for path in tmp_path.glob("*.pt")}
    for rank, reason in enumerate(["StorageUnusable", "PeerLost"]):
        steady, unwritable, full = (left[f"2-{rank}-{each['name']}"] for each in scenarios)
        ((why, batch),) = unwritable["ended"]
        assert why == reason
        # The write of step 3 goes on beside the one or two batches that come next.
        assert batch in (4, 5)
        assert [("PeerLost", batch)] == left["2-1-unwritable"]["ended"]
        assert unwritable["taken"] == [*range(batch + 1), *range(2, 6)]
        assert torch.equal(unwritable["weights"], steady["weights"])
        assert (full["ended"], full["taken"]) == ([], list(range(6)))
        assert full["checkpoints"] == [f"step-{step:08d}" for step in (1, 2, 4, 5, 6)]
        assert torch.equal(full["weights"], steady["weights"])


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    folder = tmp_path / "volume"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "cloze-test", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_volume_that_fills_while_a_checkpoint_is_written_costs_that_checkpoint_only(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There was room when it began: what was written of it is taken away, and what was there before can be loaded."""
    checkpoints = Checkpoints(volume / "checkpoints", 3, ORIGIN)
    model = nn.Linear(128, 128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with saver(checkpoints) as own:
        own.save(LoopState(1, 10), model, optimizer)
        own.settle()
        kept = captured(model, optimizer)["model"]
        ballast = volume / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(volume).free - (32 << 10)))
        monkeypatch.setattr("cloze_trainer.checkpoint.shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 30))
        nn.init.ones_(model.weight)
        own.save(LoopState(2, 20), model, optimizer)
        own.settle()
        assert (own.missed, own.durable) == (1, 1)
        assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]
        ballast.unlink()
        assert checkpoints.latest() == 1
        checkpoints.load(1, model, optimizer)
        assert torch.equal(model.weight, kept["weight"])
        own.save(LoopState(3, 30), model, optimizer)
        own.settle()
        assert (own.missed, own.durable) == (1, 3)


def test_a_volume_that_turned_read_only_is_not_called_full(volume: Path) -> None:
    """The run ends with what the volume says: room would not help."""
    checkpoints = Checkpoints(volume / "checkpoints", 3, ORIGIN)
    checkpoints.write(LoopState(1, 10), captured(*trained()))
    subprocess.run(["mount", "-o", "remount,ro", volume], check=True)
    with saver(checkpoints) as own:
        own.save(LoopState(2, 20), *trained())
        own.wait()
        with pytest.raises(OSError, match="Read-only") as failure:
            own.check(1.0)
    assert own.missed == 0
    assert classify(failure.value).reason == "StorageUnusable"


LEFT = [("renamed", 2), ("unpruned", 3), ("pruning", 3), ("damaged", 2)]
"""What a kill about the checkpoint of step 3 has left, and the newest step that is good then."""


def killed(folder: Path, keep: int, left: str) -> None:
    """The folder of a run that was killed: as many checkpoints are there as are kept, and another one."""
    checkpoints = Checkpoints(folder, 9, ORIGIN)
    for step in range(3 - keep, 4):
        checkpoints.write(LoopState(step, 10 * step), captured(*wide()))
    newest, oldest = folder / "step-00000003", folder / f"step-{3 - keep:08d}"
    match left:
        case "renamed":
            (newest / "COMPLETE").unlink()
        case "pruning":
            (oldest / "COMPLETE").unlink()
        case "damaged":
            victim = next(newest.glob("*.distcp"))
            victim.write_bytes(b"x" + victim.read_bytes()[1:])


def wide() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model whose checkpoint takes 200 kB."""
    model = nn.Linear(128, 128)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize(("left", "good"), LEFT)
def test_what_a_kill_has_left_is_in_no_later_checkpoints_way(volume: Path, keep: int, left: str, good: int) -> None:
    """The volume has room for those that are kept and one more, which is there already: it goes before another is
    written, and the good ones stay until then.
    """
    folder = volume / "checkpoints"
    killed(folder, keep, left)
    (volume / "ballast").write_bytes(bytes(shutil.disk_usage(volume).free - (32 << 10)))
    checkpoints = Checkpoints(folder, keep, ORIGIN)
    assert checkpoints.latest() == good
    with saver(checkpoints) as own:
        for step in (4, 5):
            own.save(LoopState(step, 10 * step), *wide())
            own.settle()
            assert (own.missed, own.durable) == (0, step)
            before = good if step == 4 else 4
            kept = [step, before][:keep]
            assert sorted(path.name for path in folder.iterdir()) == [f"step-{each:08d}" for each in sorted(kept)]
    assert checkpoints.latest() == 5


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize(("left", "good"), LEFT)
def test_the_last_good_checkpoint_stays_where_there_is_no_room_even_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, left: str, good: int
) -> None:
    """Whatever is removed for another one, which can't be written then."""
    killed(tmp_path, keep, left)
    checkpoints = Checkpoints(tmp_path, keep, ORIGIN)
    assert checkpoints.latest() == good
    monkeypatch.setattr("cloze_trainer.checkpoint.shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with saver(checkpoints) as own:
        own.save(LoopState(4, 40), *wide())
        own.settle()
        assert own.missed == 1
    again = Checkpoints(tmp_path, keep, ORIGIN)
    assert again.latest() == good
    assert again.load(good, *wide()) == LoopState(good, 10 * good)


def test_without_room_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preflight refuses before a byte is written; the last good checkpoint stays."""
    checkpoints = Gated(tmp_path)
    checkpoints.gate.set()
    checkpoints.write(LoopState(1, 10), captured(*trained()))
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("cloze_trainer.checkpoint.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="10 are free") as refusal:
        checkpoints.write(LoopState(2, 20), captured(*trained()))
    assert refusal.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
