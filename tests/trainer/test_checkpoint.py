"""Checkpoints: whole or absent; the newest intact one counts."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from cloze_api.training import Optimization
from cloze_trainer.checkpoint import Checkpoints, LoopState, captured
from cloze_trainer.errors import InputError, TrainerError
from cloze_trainer.optimizer import build
from cloze_trainer.origin import Origin

ORIGIN = Origin(data="corpus", base="sha256:base")


def trained(seed: int, width: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(3, width)).sum().backward()
    optimizer.step()
    return model, optimizer


def saved(folder: Path, *steps: int, keep: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep, ORIGIN)
    for step in steps:
        checkpoints.write(LoopState(step, 10 * step), captured(*trained(step)))
    return checkpoints


def test_state_comes_back_exactly(tmp_path: Path) -> None:
    """Weights, moments and counters are those that were saved, bit for bit."""
    checkpoints = saved(tmp_path, 5)
    model, optimizer = trained(99)
    assert checkpoints.load(5, model, optimizer) == LoopState(5, 50)
    expected_model, expected_optimizer = trained(5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected_model.parameters(), strict=True))
    for got, expected in zip(
        optimizer.state_dict()["state"].values(), expected_optimizer.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_newest_are_kept(tmp_path: Path) -> None:
    """Older ones go, once the newer is durable."""
    checkpoints = saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert checkpoints.latest() == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("damage", ["marker", "bytes", "file"])
def test_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    """One without its marker, with a changed or a missing file doesn't count; the one before it does."""
    checkpoints = saved(tmp_path, 1, 2)
    newest = tmp_path / "step-00000002"
    if damage == "marker":
        (newest / "COMPLETE").unlink()
    else:
        victim = next(path for path in newest.iterdir() if path.suffix == ".distcp")
        victim.write_bytes(b"x" + victim.read_bytes()[1:]) if damage == "bytes" else victim.unlink()
    assert checkpoints.latest() == 1


def test_what_is_written_is_kept_whatever_damaged_one_is_newer(tmp_path: Path) -> None:
    """A run that had to go on from before a damaged checkpoint doesn't lose what it saves then."""
    checkpoints = saved(tmp_path, 1, 100, keep=1)
    next(path for path in (tmp_path / "step-00000100").iterdir() if path.suffix == ".distcp").unlink()
    assert checkpoints.latest() is None
    saved(tmp_path, 90, keep=1)
    assert checkpoints.latest() == 90
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000090"]


def test_a_state_of_before_the_first_update_counts_none(tmp_path: Path) -> None:
    """A stop may come that early: the first update of the resumed run is the first one, to the bit."""
    torch.manual_seed(7)
    first, second = nn.Linear(4, 2), nn.Linear(4, 2)
    settings = Optimization.model_validate({"learningRate": 0.1, "beta2": 0.999, "epsilon": 1e-8})
    optimizers = [build(model, settings) for model in (first, second)]
    checkpoints = Checkpoints(tmp_path, 3, ORIGIN)
    checkpoints.write(LoopState(0, 0), captured(first, optimizers[0]))
    checkpoints.load(0, second, optimizers[1])
    fresh = nn.Linear(4, 2)
    fresh.load_state_dict(first.state_dict())
    models = [first, second, fresh]
    for model, optimizer in zip(
        models, [*optimizers, torch.optim.AdamW(fresh.parameters(), lr=0.1, fused=True)], strict=True
    ):
        for gradient in (1.0, 2.0):
            optimizer.zero_grad()
            (model(torch.ones(3, 4)).sum() * gradient).backward()
            optimizer.step()
    assert torch.equal(first.weight, fresh.weight)
    assert torch.equal(second.weight, fresh.weight)


def test_failed_save_keeps_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while saving costs the new checkpoint only, and nothing half-written stays."""
    checkpoints = saved(tmp_path, 1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cloze_trainer.checkpoint.write_json", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.write(LoopState(2, 20), captured(*trained(2)))
    assert checkpoints.latest() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_leftovers_of_a_killed_save_are_no_checkpoint(tmp_path: Path) -> None:
    """A staging folder, whatever it holds, is never loaded."""
    checkpoints = saved(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000007.staging")
    assert checkpoints.latest() == 1


@pytest.mark.parametrize(
    ("origin", "words"),
    [(Origin("other", "sha256:base"), "the data"), (Origin("corpus", "sha256:other"), "the base model")],
)
def test_checkpoint_of_other_data_or_base_is_refused(tmp_path: Path, origin: Origin, words: str) -> None:
    """Its weights would mean other tokens or labels: the refusal says what changed and what to do."""
    saved(tmp_path, 1)
    with pytest.raises(InputError, match=f"{words}.* changed since .*put the old content back") as refusal:
        Checkpoints(tmp_path, 3, origin).load(1, *trained(1))
    assert refusal.value.reason == "SourceChanged"


def test_leftovers_of_killed_attempts_go_with_the_next_save(tmp_path: Path) -> None:
    """Folders that were renamed but not marked, and staged ones, don't fill the volume."""
    checkpoints = saved(tmp_path, 1, 2)
    (tmp_path / "step-00000001" / "COMPLETE").unlink()
    (tmp_path / ".step-00000009.staging").mkdir()
    checkpoints.write(LoopState(3, 30), captured(*trained(3)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    """Shapes that don't fit give a sentence, not a stack trace."""
    checkpoints = saved(tmp_path, 1)
    with pytest.raises(TrainerError, match="another run"):
        checkpoints.load(1, *trained(1, width=8))
