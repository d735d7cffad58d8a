"""What a run's pod tells Prometheus about it."""

import json
import math
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloze_api import metrics
from cloze_api.progress import Progress
from cloze_trainer.console import Reporter
from cloze_trainer.progress import ProgressFile, serve


def scrape(port: int) -> dict[str, tuple[dict[str, str], float]]:
    """Labels and value of each sample."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    return {sample.name: (sample.labels, sample.value) for family in families for sample in family.samples}


def test_steps_go_on_over_several_trainings(tmp_path: Path) -> None:
    """Of three trainings with ten steps each, the second one's third step is the 13th of 30; tokens add up."""
    path = tmp_path / "progress.json"
    figures = ProgressFile(path)
    figures.leg(0, 3)
    figures.step(10, 10, loss=1.0, tokens=500)
    figures.leg(1, 3)
    figures.step(0, 10, loss=None, tokens=0)
    figures.step(3, 10, loss=2.0, tokens=150)
    figures.checkpoint(2)
    document = json.loads(path.read_text())
    progress = document["progress"]
    assert [progress[name] for name in ("step", "totalSteps", "checkpointStep")] == [13, 30, 12]
    assert document["tokens"] == 650


def test_figures_are_told_by_the_runs_kind_and_name(tmp_path: Path) -> None:
    """Labels that don't clash with those which Prometheus gives to a target, and join with the operator's."""
    path = tmp_path / "progress.json"
    figures = ProgressFile(path)
    server = serve(0, path, ("PretrainJob", "encoder"))
    try:
        figures.saving(blocked_seconds=1.5, missed=2)
        figures.trouble(rollbacks=1, skipped=30, left_out=4)
        figures.evaluated({"masked_loss": 2.0, "masked_accuracy": 0.5, "perplexity": 7.4, "f1_ham": 0.9})
        figures.figures({"gradient_norm": 0.5, "padding_share": 0.25, "data_wait_seconds": 3.5, "memory_bytes": 1e9})
        figures.step(3, 10, loss=2.5, tokens=1000)
        figures.stage("evaluation")
        found = scrape(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
    run = {"kind": "PretrainJob", "name": "encoder"}
    assert found[metrics.TRAIN_STEP.name] == (run, 3)
    assert found[f"{metrics.TRAIN_TOKENS.name}_total"] == (run, 1000)
    assert found[f"{metrics.TRAIN_CHECKPOINT_BLOCKED.name}_total"] == (run, 1.5)
    assert found[f"{metrics.TRAIN_MISSED_CHECKPOINTS.name}_total"] == (run, 2)
    assert found[f"{metrics.TRAIN_ROLLBACKS.name}_total"] == (run, 1)
    assert found[f"{metrics.TRAIN_SKIPPED_BATCHES.name}_total"] == (run, 30)
    assert found[f"{metrics.TRAIN_LEFT_OUT_UPDATES.name}_total"] == (run, 4)
    assert found[metrics.TRAIN_MASKED_LOSS.name] == (run, 2)
    assert found[metrics.TRAIN_MASKED_ACCURACY.name] == (run, 0.5)
    assert found[metrics.TRAIN_PERPLEXITY.name] == (run, 7.4)
    assert found[metrics.TRAIN_GRADIENT_NORM.name] == (run, 0.5)
    assert found[metrics.TRAIN_PADDING.name] == (run, 0.25)
    assert found[f"{metrics.TRAIN_DATA_WAIT.name}_total"] == (run, 3.5)
    assert found[metrics.TRAIN_MEMORY.name] == (run, 1e9)
    assert metrics.TRAIN_UTILIZATION.name not in found
    assert found[metrics.TRAIN_STAGE.name] == ({**run, "stage": "evaluation"}, 1)


def test_the_progress_has_the_last_steps_and_the_last_evaluations_figures(tmp_path: Path) -> None:
    """Also after further steps; what isn't finite is left out."""
    path = tmp_path / "progress.json"
    figures = ProgressFile(path, clock=iter(range(100)).__next__)
    figures.figures({"gradient_norm": 0.5})
    figures.evaluated({"validation_f1": 0.75, "validation_log_loss": math.nan})
    figures.step(1, 10, loss=1.0, tokens=10)
    figures.figures({"gradient_norm": 0.25})
    figures.step(2, 10, loss=1.0, tokens=20)
    assert json.loads(path.read_text())["progress"]["figures"] == {"gradient_norm": 0.25, "validation_f1": 0.75}


def test_a_training_that_ends_early_is_complete(tmp_path: Path) -> None:
    """What was expected of it doesn't come any more."""
    path = tmp_path / "progress.json"
    figures = ProgressFile(path)
    figures.step(6, 10, loss=1.0, tokens=10)
    figures.over(6)
    progress = json.loads(path.read_text())["progress"]
    assert (progress["step"], progress["totalSteps"], progress["etaSeconds"]) == (6, 6, 0)


def test_the_durations_of_all_checkpoints_are_counted(tmp_path: Path) -> None:
    """Buckets that fell would be taken for a counter that begins anew."""
    path = tmp_path / "progress.json"
    figures = ProgressFile(path)
    server = serve(0, path, ("PretrainJob", "encoder"))
    try:
        for number in range(1200):
            figures.checkpoint(number, 0.1 if number < 1100 else 200.0)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_address[1]}/metrics", timeout=10) as reply:
            families = list(text_string_to_metric_families(reply.read().decode()))
    finally:
        server.shutdown()
        server.server_close()
    (family,) = [family for family in families if family.name == metrics.TRAIN_CHECKPOINT_DURATION.name]
    buckets = {each.labels["le"]: each.value for each in family.samples if "le" in each.labels}
    assert [buckets[le] for le in ("0.05", "0.1", "60.0", "+Inf")] == [0, 1100, 1100, 1200]
    (total,) = [each.value for each in family.samples if each.name.endswith("_sum")]
    assert total == pytest.approx(1100 * 0.1 + 100 * 200)


def test_passes_over_the_data_are_told_until_the_training_begins(tmp_path: Path) -> None:
    """In the file that the pod serves; what begins next begins anew."""
    path, clock = tmp_path / "progress.json", iter(range(100))
    figures = ProgressFile(path, clock=lambda: float(next(clock)))

    def told() -> dict[str, Any]:
        progress = json.loads(path.read_text())["progress"]
        return {name: progress[name] for name in ("stage", "doing", "documents", "doneBytes", "totalBytes")}

    figures.stage("data")
    figures.advance("reading", documents=12, done_bytes=300, total_bytes=1000)
    expected = {"stage": "data", "doing": "reading", "documents": 12, "doneBytes": 300, "totalBytes": 1000}
    assert told() == expected
    figures.advance("comparing")
    assert told() == expected | {"doing": "comparing", "documents": None, "doneBytes": None, "totalBytes": None}
    nothing = dict.fromkeys(("doing", "documents", "doneBytes", "totalBytes"))
    figures.stage("tokenizer")
    assert told() == {"stage": "tokenizer", **nothing}
    figures.advance("counting", documents=3)
    figures.step(0, 10, loss=None, tokens=0)
    assert told() == {"stage": "training", **nothing}


@pytest.mark.parametrize("terminal", [False, True])
def test_a_person_sees_how_far_the_data_are(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bar where one watches, else a line at the begin of each stage and every ten seconds."""
    now = 1000.0
    monkeypatch.setattr("cloze_trainer.console.time.monotonic", lambda: now)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    reporter = Reporter()
    for _ in range(31):
        share = round(now - 1000)
        reporter.show(
            Progress(
                stage="data", doing="reading", documents=100 * share, done_bytes=share * 10**6, total_bytes=40 * 10**6
            )
        )
        now += 1.0
    reporter.show(Progress(stage="tokenizer"))
    shown = capsys.readouterr().err
    if terminal:
        assert f"data {'█' * 6}{'░' * 18} reading  10.0/40.0 MB  1,000 documents" in shown
        assert "\n" not in shown
    else:
        lines = [json.loads(line) for line in shown.splitlines()]
        assert [(line["stage"], line.get("documents")) for line in lines] == [
            *(("data", documents) for documents in (0, 1000, 2000, 3000)),
            ("tokenizer", None),
        ]
        assert (lines[1]["doing"], lines[1]["done_bytes"], lines[1]["total_bytes"]) == ("reading", 10**7, 4 * 10**7)


def test_going_back_takes_nothing_from_what_was_trained_on(tmp_path: Path) -> None:
    """Prometheus would take a counter that falls for one that begins anew."""
    path, clock = tmp_path / "progress.json", iter(range(100))
    figures = ProgressFile(path, clock=lambda: float(next(clock)))
    counted, rates = [], []
    for step, tokens in ((8, 800), (9, 900), (4, 400), (5, 500), (3, 300), (4, 400)):
        figures.step(step, 10, loss=1.0, tokens=tokens)
        counted.append(json.loads(path.read_text())["tokens"])
        rates.append(figures.tokens_per_second)
    assert counted == [800, 900, 900, 1000, 1000, 1100]
    known = [rate for rate in rates if rate is not None]
    assert known
    assert min(known) > 0
