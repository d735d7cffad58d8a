"""Whole runs of `cloze-train` as processes: artifact, resume after kills, registration, refusals."""

import json
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import warm
from transformers import AutoModelForMaskedLM, AutoTokenizer
from whole_runs import Trainer, kill_after, kill_in, pretrain, versions, weights

from cloze_api.manifest import verify
from cloze_api.progress import ExitCode
from cloze_api.task import Task
from cloze_trainer import memory

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, mlflow: str, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A registered pretraining run of two ranks that nothing happened to, by the very command."""
    trainer = Trainer(tmp_path_factory.mktemp("undisturbed"), {"MLFLOW_TRACKING_URI": mlflow}, cold=True)
    assert trainer.run(pretrain(corpus)) == 0, trainer.log
    return trainer


def test_killed_and_resumed_run_has_the_same_bits(corpus: Path, undisturbed: Trainer, tmp_path: Path) -> None:
    """All processes killed in the middle, started again: the weights are those of the undisturbed run, bit for bit."""
    trainer = Trainer(tmp_path, {})
    kill_after(trainer, pretrain(corpus), 14)
    assert trainer.run(pretrain(corpus)) == 0, trainer.log
    assert trainer.resumed() >= 14
    assert weights(trainer) == weights(undisturbed)


def test_a_damaged_corpus_is_found_prepared_again_and_costs_no_bit(
    corpus: Path, undisturbed: Trainer, tmp_path: Path
) -> None:
    """One bit of the prepared data turned over between two starts: the log says so, and the weights are the same."""
    trainer = Trainer(tmp_path, {})
    kill_after(trainer, pretrain(corpus), 14)
    (train,) = (tmp_path / "workspace" / "data").glob("*/train.npy")
    whole = train.read_bytes()
    with train.open("r+b") as file:
        file.seek(len(whole) // 2)
        file.write(bytes([whole[len(whole) // 2] ^ 1]))
    assert trainer.run(pretrain(corpus)) == 0, trainer.log
    assert "train.npy is damaged: the data are removed and prepared again" in trainer.log
    assert train.read_bytes() == whole
    assert trainer.resumed() >= 14
    assert weights(trainer) == weights(undisturbed)


def test_a_run_goes_on_with_another_number_of_ranks(
    corpus: Path, undisturbed: Trainer, mlflow: str, tmp_path: Path
) -> None:
    """One, two, one, in the same workspace: each step has the same batch and the same masks, so that the end is the
    same but for rounding and dropout. It is one run of one job, registered once.
    """
    trainer = Trainer(tmp_path, {"MLFLOW_TRACKING_URI": mlflow})

    def job(ranks: int) -> dict[str, Any]:
        made = pretrain(corpus, topology={"processesPerNode": ranks}, registry={"name": "resized"})
        # No cluster says which run it is.
        del made["metadata"]["uid"]
        return made

    kill_after(trainer, job(1), 14)
    kill_after(trainer, job(2), 35)
    assert trainer.run(job(1)) == 0, trainer.log
    assert trainer.resumed() >= 35
    resized, steady = (verify(each.artifact).evaluation for each in (trainer, undisturbed))
    # Dropout differs with the number of ranks.
    assert resized["masked_loss"] == pytest.approx(steady["masked_loss"], abs=0.03)
    assert resized["data_tokens"] == steady["data_tokens"]
    assert trainer.run(job(2)) == 0, trainer.log
    assert "finished before" in trainer.log
    assert len(versions(mlflow, "resized")) == 1


@pytest.mark.full
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("ranks", [1, 2])
def test_kills_at_many_moments_change_no_bit(corpus: Path, tmp_path: Path, ranks: int) -> None:
    """Ten kills each, at random steps: half of them while a checkpoint is written, half at any time after one."""
    job = pretrain(corpus, topology={"processesPerNode": ranks}, checkpoint={"everySteps": 3})
    steady = Trainer(tmp_path / "steady", {})
    assert steady.run(job) == 0
    torn = 0
    for number in range(10):
        trainer = Trainer(tmp_path / str(number), {})
        chance = random.Random(number)  # noqa: S311 - a reproducible test
        step, seconds = chance.randint(1, 50), chance.uniform(0, 0.5)
        saving = number % 2 == 0
        torn += kill_after(trainer, job, step, saving=saving, seconds=0.0 if saving else seconds)
        assert trainer.run(job) == 0, trainer.log
        assert trainer.resumed() >= step
        assert weights(trainer) == weights(steady), number
    # One may have been renamed in the moment of the kill.
    assert torn >= 3


@pytest.mark.full
def test_kills_in_every_stage_change_no_bit(corpus: Path, undisturbed: Trainer, tmp_path: Path) -> None:
    """One run, killed while it reads its data, trains its tokenizer, does its first steps, and exports its model."""
    trainer, job = Trainer(tmp_path, {}), pretrain(corpus, checkpoint={"everySteps": 50})
    kill_in(trainer, job, "data", seconds=random.Random(1).uniform(0, 0.2))  # noqa: S311 - a reproducible test
    kill_in(trainer, job, "tokenizer")
    kill_in(trainer, job, "training")
    assert not list((tmp_path / "workspace" / "checkpoints").glob("step-*/COMPLETE"))
    kill_in(trainer, job, "export")
    assert not trainer.artifact.exists()
    assert trainer.run(job) == 0, trainer.log
    assert trainer.resumed() == 60
    assert weights(trainer) == weights(undisturbed)


@pytest.mark.full
def test_a_killed_run_with_all_that_saves_memory_has_the_same_bits(corpus: Path, tmp_path: Path) -> None:
    """Two ranks with a part of the model each, activations computed again, and several chunks in a batch."""
    job = pretrain(corpus)
    saving = {"sharding": "full", "activationCheckpointing": True, "algorithm": "stable-adamw"}
    job["spec"]["optimization"] |= saving
    steady, killed = (Trainer(tmp_path / name, {}) for name in ("steady", "killed"))
    for trainer in (steady, killed):
        workspace = trainer.folder / "workspace"
        workspace.mkdir(parents=True)
        # As an earlier start has found out: two sequences at once, of the four that a rank has of a batch.
        memory.keep(workspace, memory.ChunkTooLarge(0, 128, 64))
    assert steady.run(job) == 0, steady.log
    kill_after(killed, job, 14, seconds=random.Random(5).uniform(0, 0.2))  # noqa: S311 - a reproducible test
    assert killed.run(job) == 0, killed.log
    assert 14 <= killed.resumed() < 60
    last = killed.folder / "workspace" / "checkpoints" / "step-00000060" / "state.json"
    assert json.loads(last.read_text())["chunk_tokens"] == 64
    assert weights(killed) == weights(steady)


@pytest.mark.full
def test_a_run_with_its_checkpoints_in_a_bucket_outlives_its_machine_and_its_store(
    corpus: Path, undisturbed: Trainer, s3: Any, tmp_path: Path
) -> None:
    """Killed in mid-upload with all it had on its disk, and without its store for a while: the same bits come out."""
    job = pretrain(corpus, checkpoint={"everySteps": 1, "uri": "s3://runs/cloze"}, storage={"ephemeral": True})
    first = Trainer(tmp_path / "first", s3.access)

    def newest() -> int:
        return max(
            (int(key.split("/step-")[1][:8]) for key in s3.keys("cloze/") if key.endswith("/COMPLETE")), default=0
        )

    def until(happened: Callable[[], object], trainer: Trainer, process: warm.Process) -> None:
        deadline = time.monotonic() + 240
        while not happened():
            assert process.poll() is None, trainer.log
            assert time.monotonic() < deadline, trainer.log
            time.sleep(0.02)

    def stopped_in_mid_upload() -> bool:
        first.signal_rank(0, signal.SIGSTOP)
        files = Counter(key.rpartition("/")[0] for key in s3.keys("cloze/"))
        # A file is missing besides the digests, which come after all others: nothing on its way completes it.
        if files[max(files)] < max(files.values()) - 1:
            return True
        first.signal_rank(0, signal.SIGCONT)
        return False

    process = first.start(job)
    until(lambda: newest() >= 14, first, process)
    until(stopped_in_mid_upload, first, process)
    first.kill()
    process.wait()
    whole = newest()
    assert any(f"/step-{whole + 1:08d}-" in key for key in s3.keys("cloze/"))

    second = Trainer(tmp_path / "second", s3.access)
    process = second.start(job)
    until(lambda: newest() >= 28, second, process)
    s3.kill()
    until(lambda: '"event": "checkpoint not stored"' in second.log, second, process)
    s3.start()
    assert process.wait(timeout=240) == 0, second.log
    assert second.resumed() == whole
    assert newest() == 60
    assert weights(second) == weights(undisturbed)


@pytest.mark.full
def test_a_frozen_rank_is_named_and_costs_no_bit(corpus: Path, undisturbed: Trainer, tmp_path: Path) -> None:
    """The pod ends for a peer's sake and says which rank and where; started again it goes on from its checkpoint."""
    trainer = Trainer(tmp_path / "frozen", {})
    job = pretrain(corpus, failurePolicy={"stuckSeconds": 10})
    process = trainer.start(job)
    try:
        deadline = time.monotonic() + 240
        while not list((trainer.folder / "workspace" / "checkpoints").glob("step-*/COMPLETE")):
            assert process.poll() is None, trainer.log
            assert time.monotonic() < deadline, trainer.log
            time.sleep(0.02)
        trainer.signal_rank(1, signal.SIGSTOP)
        assert process.wait(timeout=120) == ExitCode.PEER_LOST, trainer.log
    finally:
        trainer.kill()
    assert trainer.outcome["reason"] == "RankStuck"
    assert f"rank 1 on {socket.gethostname()} doesn't respond" in trainer.outcome["message"]
    assert trainer.run(job) == 0, trainer.log
    assert weights(trainer) == weights(undisturbed)


def test_a_run_that_diverges_ends_with_its_own_code(corpus: Path, tmp_path: Path) -> None:
    """Final, with the reason and what to change: a learning rate that rises to 1, and the loss with it."""
    trainer = Trainer(tmp_path, {})
    absurd = {"learningRate": 1, "warmupSteps": 60, "maxLossRise": 0.1, "maxRollbacks": 0}
    assert trainer.run(pretrain(corpus, optimization={"steps": 60, "batchSequences": 8, **absurd})) == 11, trainer.log
    assert trainer.outcome["reason"] == "Diverged"
    assert "lower optimization.learningRate" in trainer.outcome["message"]


def test_stop_signal_saves_and_a_killed_rank_is_told(corpus: Path, tmp_path: Path) -> None:
    """SIGTERM: a checkpoint of the step that was reached, the code for a suspended run; started again it goes on. A
    rank that the system kills then is the reason of the end, not the other's loss of it.
    """
    trainer = Trainer(tmp_path, {})
    job = pretrain(corpus, optimization={"steps": 4000, "batchSequences": 8}, checkpoint={"everySteps": 2000})
    process = trainer.start(job)
    deadline = time.monotonic() + 120
    while '"stage": "training", "step": ' not in trainer.log:
        assert time.monotonic() < deadline, trainer.log
        time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=60) == 23
    assert trainer.outcome["reason"] == "Suspended"
    (marker,) = (tmp_path / "workspace" / "checkpoints").glob("step-*/COMPLETE")
    again = trainer.start(job)
    while not (step := trainer.resumed()):
        assert again.poll() is None, trainer.log
        time.sleep(0.1)
    assert marker.parent.name == f"step-{step:08d}"
    trainer.signal_rank(1, signal.SIGKILL)
    assert again.wait(timeout=60) == ExitCode.INTERNAL
    assert trainer.outcome["reason"] == "RankKilled"


def test_stop_signal_during_the_imports_is_heard(corpus: Path, tmp_path: Path) -> None:
    """SIGTERM while torch is being imported: nothing to save, but the pod ends at once, as one that was suspended."""
    trainer = Trainer(tmp_path, {}, cold=True)
    process = trainer.start(pretrain(corpus))
    maps = Path(f"/proc/{process.pid}/maps")
    deadline = time.monotonic() + 60
    while "libtorch" not in maps.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=30) == 23
    assert trainer.outcome["reason"] == "Suspended"


def test_artifact_loads_in_transformers_with_the_same_answers(undisturbed: Trainer) -> None:
    """The encoder is a BERT: transformers' own model and the ONNX graph give the same logits for the weights."""
    manifest = verify(undisturbed.artifact)
    assert manifest.task is Task.FILL_MASK
    assert manifest.lineage.job == "tests/small"
    model = AutoModelForMaskedLM.from_pretrained(undisturbed.artifact).eval()
    tokenizer = AutoTokenizer.from_pretrained(undisturbed.artifact)
    inputs = tokenizer(["Return the [MASK] of the file.", "a longer [MASK] of text"], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected_BTV = model(**inputs).logits.numpy()
    session = onnxruntime.InferenceSession(undisturbed.artifact / "model.onnx")
    names = ("input_ids", "attention_mask", "token_type_ids")
    (actual_BTV,) = session.run(None, {name: inputs[name].numpy() for name in names})
    real_BT = inputs["attention_mask"].numpy().astype(bool)
    assert np.allclose(actual_BTV[real_BT], expected_BTV[real_BT], atol=1e-4)


def test_loss_falls_on_real_text(undisturbed: Trainer) -> None:
    """Sixty steps are enough to know more than nothing."""
    assert verify(undisturbed.artifact).evaluation["masked_loss"] < 0.93 * np.log(800)


def test_version_is_registered_exactly_once(corpus: Path, undisturbed: Trainer, mlflow: str) -> None:
    """A pod that starts again after the registration, even one that lost its note of it, adds no second version."""
    (version,) = versions(mlflow, "small")
    assert {tag["key"]: tag["value"] for tag in version["tags"]}["cloze.dev/digest"] == undisturbed.outcome[
        "modelDigest"
    ]
    for note in (undisturbed.folder / "workspace").glob("*outcome.json*"):
        note.unlink()
    assert undisturbed.run(pretrain(corpus)) == 0, undisturbed.log
    assert [entry["version"] for entry in versions(mlflow, "small")] == [version["version"]]
    assert undisturbed.outcome["modelVersion"] == version["version"]


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"corpus": [{"uri": "file:///nowhere/text.txt"}]}, "SourceNotFound", "/nowhere/text.txt"),
        ({"model": {"hiddenSize": 33, "heads": 2}}, "JobInvalid", "spec.model.hiddenSize must be a multiple"),
        ({"optimisation": {}}, "JobInvalid", "spec.optimisation"),
    ],
)
def test_wrong_job_ends_with_a_sentence(
    corpus: Path, tmp_path: Path, change: dict[str, Any], reason: str, words: str
) -> None:
    """Exit code 10, a reason and a message in the termination message; no stack trace."""
    trainer = Trainer(tmp_path, {})
    job = pretrain(corpus)
    job["spec"] |= change
    assert trainer.run(job) == 10
    assert trainer.outcome["reason"] == reason
    assert words in trainer.outcome["message"]
    assert "Traceback" not in trainer.log
