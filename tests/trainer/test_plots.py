"""Plots of a run: images of bounded size for whatever was measured, and in a real MLflow at the run's end."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from whole_runs import Trainer, kill_after, kill_once, pretrain

from cloze_api.manifest import MANIFEST_FILE, file_sha256
from cloze_trainer import plots
from cloze_trainer.tracking import JobTags, MlflowTracker

REPORT: dict[str, Any] = {
    "labels": ["ham", "spam $x_1$", "天気"],
    "confusion": [[5, 1, 0], [0, 7, 0], [2, 0, 0]],
    "reliability": [(0, 0.0, 0.0)] * 7 + [(9, 0.5, 0.4)] + [(0, 0.0, 0.0)] * 6 + [(6, 0.98, 1.0)],
    "reliability_before": None,
    "slices": {"language=en": {"examples": 12, "figure": 0.9, "counts": True}},
}


def pixels(image: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def test_a_long_run_takes_no_larger_an_image_than_a_short_one() -> None:
    """And parts of which nothing was measured take no room."""
    short = {"loss": [(10, 3.0), (20, 2.0)]}
    images = [
        plots.training(curves)
        for curves in (
            {},
            short,
            {**short, "learning_rate": [(10, 1e-3), (20, 5e-4)]},
            {name: [(step, 1 / (step + 1)) for step in range(50_000)] for name in plots.CURVES},
        )
    ]
    assert images[0] is None
    heights = [len(pixels(image)) for image in images if image is not None]
    assert heights == [heights[0], 2 * heights[0], 3 * heights[0]]
    assert all(len(image) < 200_000 for image in images if image is not None)


def test_a_field_of_the_confusion_is_as_dark_as_its_share_of_the_row() -> None:
    """The worst rows are seen at once, however many examples they have."""
    image = pixels(plots.confusion([[100, 0], [1, 3]], ["a", "b"]))
    shades = {tuple(colour) for colour in image.reshape(-1, 3)}
    from matplotlib import colormaps  # noqa: PLC0415 - beside what it is needed for

    for share in (0.0, 0.25, 0.75, 1.0):
        wanted = np.array(colormaps["Blues"](share)[:3]) * 255
        assert min(np.abs(np.array(shade, float) - wanted).max() for shade in shades) < 3


def test_the_worst_slices_are_kept() -> None:
    """Of hundreds, forty are drawn."""
    many = {
        f"key={number}": {"examples": 30, "figure": number / 300, "counts": number % 2 > 0} for number in range(300)
    }
    few = dict(list(many.items())[:40])
    assert len(pixels(plots.slices(many))) == len(pixels(plots.slices(few)))


def test_plots_are_in_mlflow_when_the_run_is_over(mlflow: str, tmp_path: Path) -> None:
    """With what an earlier start of the run had sent, and the evaluation that it ended with."""
    tags = JobTags("uid-plots", "tests/plots", "sequence-classification", "plots")
    first = MlflowTracker(mlflow, tags)
    first.metrics(10, {"loss": 3.0, "learning_rate": 1e-3})
    first.close(failed=True)
    client = MlflowClient(mlflow)

    def drawn() -> dict[str, int]:
        (run,) = client.search_runs([client.get_experiment_by_name("plots").experiment_id])
        return {each.path: each.file_size for each in client.list_artifacts(run.info.run_id, "plots")}

    before = drawn()
    assert before.keys() == {"plots/training.png"}
    second = MlflowTracker(mlflow, tags)
    second.metrics(20, {"loss": 2.0, "macro_f1": 0.5, "learning_rate": 5e-4})
    second.close(report=REPORT)
    after = drawn()
    assert after.keys() == {f"plots/{name}.png" for name in ("training", "confusion", "reliability", "slices")}
    assert after["plots/training.png"] > before["plots/training.png"]


def test_plots_trace_and_last_figures_of_a_run_that_is_killed_at_its_end(
    corpus: Path, mlflow: str, tmp_path: Path
) -> None:
    """All processes killed once the artifact is there, which the next start registers: MLflow has the curves up to the
    last step, what the evaluation found, and the trace that the first start made, which was killed, too.
    """
    trainer = Trainer(tmp_path, {"MLFLOW_TRACKING_URI": mlflow})
    profile, topology = {"fromStep": 2, "steps": 1}, {"processesPerNode": 1}
    job = pretrain(corpus, profile=profile, topology=topology, registry={"name": "killed-at-its-end"})
    manifest = trainer.artifact / MANIFEST_FILE
    kill_after(trainer, job, 14)
    kill_once(trainer, job, manifest.exists)
    digest = f"sha256:{file_sha256(manifest)}"
    assert trainer.run(job) == 0, trainer.log
    assert trainer.outcome["modelDigest"] == digest
    client, run = MlflowClient(mlflow), trainer.outcome["runId"]
    folders = ("plots", "profile")
    files = [each.path for folder in folders for each in client.list_artifacts(run, folder)]
    assert files == ["plots/training.png", "profile/trace.json.gz"]
    for figure in ("loss", "masked_loss"):
        assert max(each.step for each in client.get_metric_history(run, figure)) == 60


def test_a_plot_that_fails_ends_nothing(mlflow: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The log says so, without anything of the report."""
    tracker = MlflowTracker(mlflow, JobTags("uid-broken", "tests/broken", "sequence-classification", "broken"))
    tracker.metrics(10, {"loss": 3.0})
    tracker.close(report={"labels": ["secret"], "confusion": []})
    log = capfd.readouterr().err
    assert "artifacts not logged" in log
    assert "secret" not in log
