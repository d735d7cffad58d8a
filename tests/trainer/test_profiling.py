"""Traces of some steps: kept where they are asked for, and no failure of the training when they can't be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from cloze_api.training import Profile
from cloze_trainer import profiling
from cloze_trainer.profiling import Profiler
from cloze_trainer.tracking import JobTags, MlflowTracker


class Kept(list[Path]):
    """What was shown."""

    def keep(self, path: Path) -> None:
        self.append(path)


def watch(folder: Path, steps: range, **asked: Any) -> Kept:
    kept = Kept()
    with Profiler(Profile.model_validate(asked), folder, kept) as profiler:
        for step in steps:
            profiler.at(step)
            torch.ones(4) @ torch.ones(4)
    return kept


def test_a_run_that_goes_on_behind_the_window_has_no_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It says so, once. Nor has one that ends before; one that ends within has what there was."""
    assert watch(tmp_path, range(5, 9), fromStep=3) == []
    assert capfd.readouterr().err.count("step 3 of spec.profile.fromStep is done") == 1
    assert watch(tmp_path, range(3), fromStep=3) == []
    assert watch(tmp_path, range(4), fromStep=3) == [tmp_path / "trace.json.gz"]


def test_the_trace_of_an_earlier_start_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """That one was killed before it could; none is missed then. What an even earlier one didn't finish is no trace."""
    (tmp_path / ".trace.json.gz").write_bytes(b"half")
    assert watch(tmp_path, range(5, 9), fromStep=3) == []
    watch(tmp_path, range(5), fromStep=3)
    capfd.readouterr()
    assert watch(tmp_path, range(5, 9), fromStep=3) == [tmp_path / "trace.json.gz"]
    assert "no profile" not in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json.gz"]


def test_a_trace_that_cannot_be_kept_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The volume doesn't take it, or it is too large: the log says so."""
    (tmp_path / "file").touch()
    assert watch(tmp_path / "file", range(9), fromStep=3) == []
    assert "profile not written" in capfd.readouterr().err
    monkeypatch.setattr(profiling, "_LARGEST_BYTES", 100)
    assert watch(tmp_path / "large", range(9), fromStep=3) == []
    assert "spec.profile.steps" in capfd.readouterr().err
    assert list((tmp_path / "large").iterdir()) == []


def test_a_trace_is_in_mlflow_when_the_run_is_over(mlflow: str, tmp_path: Path) -> None:
    """Beside the plots."""
    tracker = MlflowTracker(mlflow, JobTags("uid-profiled", "tests/profiled", "fill-mask", "profiled"))
    tracker.metrics(10, {"loss": 3.0})
    for path in watch(tmp_path / "profile", range(9), fromStep=3):
        tracker.keep(path)
    tracker.close()
    client = MlflowClient(mlflow)
    (run,) = client.search_runs([client.get_experiment_by_name("profiled").experiment_id])
    found = [each.path for folder in ("plots", "profile") for each in client.list_artifacts(run.info.run_id, folder)]
    assert found == ["plots/training.png", "profile/trace.json.gz"]
