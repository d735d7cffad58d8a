"""Whole runs of `cloze-train` as processes: artifact, resume after kills, registration, fine-tuning, refusals."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from cloze_api.manifest import verify
from cloze_api.progress import ExitCode
from cloze_api.task import Task

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True, slots=True)
class Trainer:
    """Runs `cloze-train` on a job, in a folder of its own."""

    folder: Path
    environment: dict[str, str]

    def start(self, job: dict[str, Any]) -> subprocess.Popen[str]:
        """The process, which leads a process group of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("cloze-train")), "run", str(file)]
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                command,
                # Another test's MLflow client leaves its server's address in this process's environment.
                env={name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
                | {"CLOZE_WORKSPACE": str(self.folder / "workspace"), "PYTHONWARNINGS": "ignore"}
                | self.environment
                | {"CLOZE_TERMINATION_LOG": str(self.folder / "termination")},
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def run(self, job: dict[str, Any]) -> int:
        """The exit code of a whole run."""
        process = self.start(job)
        try:
            return process.wait(timeout=240)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill every process of the run. The ranks lead sessions of their own: their folder tells them."""
        mark = f"CLOZE_WORKSPACE={self.folder}/workspace\0".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue  # it ended meanwhile, or isn't ours to look at

    @property
    def artifact(self) -> Path:
        return self.folder / "workspace" / "artifact"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    def resumed(self) -> int:
        """Step from which the newest start went on; 0 when none did."""
        events = [json.loads(line) for line in self.log.splitlines() if line.startswith('{"time"')]
        return max((event["step"] for event in events if event["event"] == "resumed"), default=0)

    @property
    def outcome(self) -> dict[str, Any]:
        """The termination message."""
        outcome: dict[str, Any] = json.loads((self.folder / "termination").read_text(encoding="utf-8"))
        return outcome


def pretrain(corpus: Path, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": "small", "namespace": "tests", "uid": "11111111-2222-3333-4444-555555555555"},
        "spec": {
            "corpus": [{"uri": f"file://{corpus}"}],
            "tokenizer": {"vocabSize": 800},
            "model": {"layers": 2, "hiddenSize": 32, "heads": 2, "intermediateSize": 64, "maxLength": 32},
            "optimization": {
                "steps": 60,
                "batchSequences": 8,
                "batchWarmup": {"fromSequences": 4, "steps": 20},
                "warmupSteps": 5,
                "learningRate": 2e-3,
            },
            "topology": {"processesPerNode": 2},
            "checkpoint": {"everySteps": 7},
            "evaluation": {"heldOutFraction": 0.1},
            "registry": {"name": "small"},
            **spec,
        },
    }


def weights(trainer: Trainer) -> str:
    """SHA-256 of the artifact's weights."""
    return verify(trainer.artifact).files["model.safetensors"]


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, mlflow: str, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A registered pretraining run of two ranks that nothing happened to."""
    trainer = Trainer(tmp_path_factory.mktemp("undisturbed"), {"MLFLOW_TRACKING_URI": mlflow})
    assert trainer.run(pretrain(corpus)) == 0, trainer.log
    return trainer


def kill_after(trainer: Trainer, job: dict[str, Any], step: int, *, saving: bool = False) -> bool:
    """Start a run and kill all its processes once a checkpoint of at least this step is complete.

    saving: while the next one is being written. Whether it was.
    """
    process = trainer.start(job)
    folder = trainer.folder / "workspace" / "checkpoints"

    def newest() -> int:
        return max((int(path.parent.name[5:]) for path in folder.glob("step-*/COMPLETE")), default=0)

    deadline = time.monotonic() + 240
    while newest() < step:
        assert process.poll() is None, trainer.log
        assert time.monotonic() < deadline, trainer.log
        time.sleep(0.02)
    while saving and not list(folder.glob(".step-*.staging")):
        assert process.poll() is None, trainer.log
    trainer.kill()
    process.wait()
    return bool(list(folder.glob(".step-*.staging")))


def test_killed_and_resumed_run_has_the_same_bits(corpus: Path, undisturbed: Trainer, tmp_path: Path) -> None:
    """All processes killed in the middle, started again: the weights are those of the undisturbed run, bit for bit."""
    trainer = Trainer(tmp_path, {})
    kill_after(trainer, pretrain(corpus), 14)
    assert trainer.run(pretrain(corpus)) == 0, trainer.log
    assert trainer.resumed() >= 14
    assert weights(trainer) == weights(undisturbed)


def test_a_run_goes_on_with_another_number_of_ranks(corpus: Path, undisturbed: Trainer, tmp_path: Path) -> None:
    """One, two, one: each step has the same batch and the same masks, so that the end is the same but for rounding."""
    trainer = Trainer(tmp_path, {})
    kill_after(trainer, pretrain(corpus, topology={"processesPerNode": 1}), 14)
    kill_after(trainer, pretrain(corpus, topology={"processesPerNode": 2}), 35)
    assert trainer.run(pretrain(corpus, topology={"processesPerNode": 1})) == 0, trainer.log
    assert trainer.resumed() >= 35
    resized, steady = (verify(each.artifact).evaluation for each in (trainer, undisturbed))
    # Dropout differs with the number of ranks.
    assert resized["masked_loss"] == pytest.approx(steady["masked_loss"], abs=0.03)
    assert resized["data_tokens"] == steady["data_tokens"]


@pytest.mark.full
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("ranks", [1, 2])
def test_kills_at_many_moments_change_no_bit(corpus: Path, tmp_path: Path, ranks: int) -> None:
    """Ten kills each, at random steps, half of them while a checkpoint is written."""
    job = pretrain(corpus, topology={"processesPerNode": ranks}, checkpoint={"everySteps": 3})
    steady = Trainer(tmp_path / "steady", {})
    assert steady.run(job) == 0
    torn = 0
    for number in range(10):
        trainer = Trainer(tmp_path / str(number), {})
        step = random.Random(number).randint(1, 50)  # noqa: S311 - a reproducible test
        torn += kill_after(trainer, job, step, saving=number % 2 == 0)
        assert trainer.run(job) == 0, trainer.log
        assert trainer.resumed() >= step
        assert weights(trainer) == weights(steady), number
    # One may have been renamed in the moment of the kill.
    assert torn >= 3


@pytest.mark.full
def test_a_run_with_its_checkpoints_in_a_bucket_outlives_its_machine_and_its_store(
    corpus: Path, undisturbed: Trainer, s3: Any, tmp_path: Path
) -> None:
    """Killed in mid-upload with all it had on its disk, and without its store for a while: the same bits come out."""
    job = pretrain(corpus, checkpoint={"everySteps": 7, "uri": "s3://runs/cloze"}, storage={"ephemeral": True})
    first = Trainer(tmp_path / "first", s3.access)

    def newest() -> int:
        return max(
            (int(key.split("/step-")[1][:8]) for key in s3.keys("cloze/") if key.endswith("/COMPLETE")), default=0
        )

    def until(happened: Callable[[], object], trainer: Trainer, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 240
        while not happened():
            assert process.poll() is None, trainer.log
            assert time.monotonic() < deadline, trainer.log
            time.sleep(0.02)

    def frozen_in_mid_upload() -> bool:
        folder = first.folder / "workspace" / "checkpoints"
        if list(folder.glob(".step-*.staging")):
            s3.signal(signal.SIGSTOP)
            if list(folder.glob(".step-*.staging")):
                return True
            s3.signal(signal.SIGCONT)
        return False

    process = first.start(job)
    until(lambda: newest() >= 14, first, process)
    until(frozen_in_mid_upload, first, process)
    first.kill()
    process.wait()
    s3.signal(signal.SIGCONT)

    second = Trainer(tmp_path / "second", s3.access)
    process = second.start(job)
    until(lambda: newest() >= 28, second, process)
    s3.kill()
    until(lambda: '"event": "checkpoint not stored"' in second.log, second, process)
    s3.start()
    assert process.wait(timeout=240) == 0, second.log
    assert second.resumed() >= 14
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
        mark = f"CLOZE_WORKSPACE={trainer.folder}/workspace\0".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (entry / "environ").read_bytes()
                if mark in environment and b"\0RANK=1\0" in environment:
                    os.kill(int(entry.name), signal.SIGSTOP)
        assert process.wait(timeout=120) == ExitCode.PEER_LOST, trainer.log
    finally:
        trainer.kill()
    assert trainer.outcome["reason"] == "RankStuck"
    assert f"rank 1 on {socket.gethostname()} doesn't respond" in trainer.outcome["message"]
    assert trainer.run(job) == 0, trainer.log
    assert weights(trainer) == weights(undisturbed)


def test_stop_signal_saves_and_says_suspended(corpus: Path, tmp_path: Path) -> None:
    """SIGTERM: a checkpoint of the step that was reached, the code for a suspended run; started again it goes on."""
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
    trainer.kill()
    again.wait()
    assert marker.parent.name == f"step-{step:08d}"


def test_stop_signal_during_the_imports_is_heard(corpus: Path, tmp_path: Path) -> None:
    """SIGTERM while torch is being imported: nothing to save, but the pod ends at once, as one that was suspended."""
    trainer = Trainer(tmp_path, {})
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


def versions(mlflow: str, name: str) -> list[dict[str, Any]]:
    reply = httpx.get(f"{mlflow}/api/2.0/mlflow/model-versions/search", params={"filter": f"name='{name}'"})
    found: list[dict[str, Any]] = reply.json().get("model_versions", [])
    return found


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


SPAM = [("win a free prize now", "spam"), ("cheap offer click here", "spam")]
HAM = [("the report is attached", "ham"), ("lunch at noon", "ham")]


def finetune(folder: Path, **spec: Any) -> dict[str, Any]:
    rows = [{"text": text, "label": label} for text, label in SPAM + HAM]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 8), encoding="utf-8")
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "filter", "namespace": "tests", "uid": "99999999-2222-3333-4444-555555555555"},
        "spec": {
            "base": {"model": {"name": "small", "version": "1"}},
            "task": "sequence-classification",
            "dataset": {"train": f"file://{folder}/train.jsonl", "test": f"file://{folder}/test.jsonl"},
            "optimization": {"epochs": 6, "batchSequences": 4, "learningRate": 5e-3},
            "registry": {"name": "filter"},
            **spec,
        },
    }


def test_finetuned_classifier_is_registered_with_its_lineage(undisturbed: Trainer, mlflow: str, tmp_path: Path) -> None:
    """From the registered encoder to a registered classifier that names its base and answers in transformers."""
    trainer = Trainer(tmp_path / "run", {"MLFLOW_TRACKING_URI": mlflow})
    judged = {"gates": [{"figure": "accuracy", "minimum": 0.5}], "champion": {}, "abstainBelowPrecision": 0.9}
    job = finetune(tmp_path, evaluation=judged, export={"precisions": ["int8"], "maxAccuracyLoss": 1})
    assert trainer.run(job) == 0, trainer.log
    manifest = verify(trainer.artifact)
    assert manifest.calibration is not None
    assert set(manifest.calibration.thresholds) == {"ham", "spam"}
    assert (
        manifest.evaluation["lower_accuracy"]
        <= manifest.evaluation["accuracy"]
        <= manifest.evaluation["upper_accuracy"]
    )
    report = json.loads((trainer.artifact / "evaluation.json").read_text())
    assert [gate["gate"] for gate in report["gates"]] == ["accuracy"]
    assert manifest.labels == ["ham", "spam"]
    assert manifest.precisions["int8"].fp32 == manifest.evaluation["accuracy"]
    assert manifest.precisions["int8"].value == manifest.evaluation["accuracy_int8"]
    assert manifest.lineage.base == "small/1"
    assert manifest.lineage.base_digest == undisturbed.outcome["modelDigest"]
    model = AutoModelForSequenceClassification.from_pretrained(trainer.artifact).eval()
    tokenizer = AutoTokenizer.from_pretrained(trainer.artifact)
    with torch.no_grad():
        logits_BC = model(**tokenizer([text for text, _ in SPAM + HAM], return_tensors="pt", padding=True)).logits
    right = (logits_BC.argmax(dim=-1) == torch.tensor([1, 1, 0, 0])).float().mean()
    assert manifest.evaluation["accuracy"] == pytest.approx(float(right))
    (version,) = versions(mlflow, "filter")
    assert {tag["key"]: tag["value"] for tag in version["tags"]}["cloze.dev/precisions"] == "fp32, int8"


def test_a_model_that_fails_a_gate_is_not_registered(undisturbed: Trainer, mlflow: str, tmp_path: Path) -> None:
    """The job fails with the reason and the figures, also when its pod starts again; the model is kept, and no version
    is made of it. The champion has answered the same examples.
    """
    httpx.post(
        f"{mlflow}/api/2.0/mlflow/registered-models/alias",
        json={"name": "filter", "alias": "champion", "version": "1"},
    ).raise_for_status()
    trainer = Trainer(tmp_path / "run", {"MLFLOW_TRACKING_URI": mlflow})
    job = finetune(
        tmp_path,
        optimization={"epochs": 1, "batchSequences": 4, "learningRate": 1e-9},
        evaluation={"champion": {"maxLoss": 1}, "gates": [{"figure": "accuracy", "minimum": 0.9}]},
    )
    job["metadata"] |= {"name": "worse", "uid": "88888888-2222-3333-4444-555555555555"}
    for _ in range(2):
        assert trainer.run(job) == ExitCode.GATE_FAILED, trainer.log
        assert trainer.outcome["reason"] == "GateFailed"
        assert "accuracy is 0.5000, and must be at least 0.9" in trainer.outcome["message"]
        assert trainer.outcome["metrics"]["accuracy"] == 0.5
    assert trainer.log.count('"event": "training"') == 1
    assert "that of filter/1 " in trainer.log
    assert len(versions(mlflow, "filter")) == 1
    verify(trainer.artifact)


def test_a_student_learns_from_a_registered_teacher_and_is_told_beside_it(
    undisturbed: Trainer, mlflow: str, tmp_path: Path
) -> None:
    """Half the teacher's layers, its answers and its relations; killed, and resumed after the teacher's alias has gone,
    without asking the teacher once more. Both models' figures are side by side, and one of them is a gate's.
    """
    httpx.post(
        f"{mlflow}/api/2.0/mlflow/registered-models/alias",
        json={"name": "filter", "alias": "teacher", "version": "1"},
    ).raise_for_status()
    taught = {"teacher": {"model": {"name": "filter", "alias": "teacher"}}, "relation": {"heads": 4}, "layers": [1]}
    job = finetune(
        tmp_path,
        distillation=taught,
        evaluation={"gates": [{"figure": "teacher_share", "minimum": 0.5}]},
        checkpoint={"everySteps": 5},
    )
    job["metadata"] |= {"name": "student", "uid": "77777777-2222-3333-4444-555555555555"}
    job["spec"]["registry"] = {"name": "student"}
    trainer = Trainer(tmp_path / "run", {"MLFLOW_TRACKING_URI": mlflow})
    kill_after(trainer, job, 10)
    httpx.request(
        "DELETE",
        f"{mlflow}/api/2.0/mlflow/registered-models/alias",
        json={"name": "filter", "alias": "teacher"},
    ).raise_for_status()
    assert trainer.run(job) == 0, trainer.log
    assert trainer.resumed() >= 10
    assert trainer.log.count('"event": "teacher answered"') == 1

    manifest = verify(trainer.artifact)
    assert manifest.lineage.teacher == "filter/1"
    assert manifest.lineage.teacher_digest is not None
    assert manifest.evaluation["teacher_share"] == pytest.approx(
        manifest.evaluation["accuracy"] / manifest.evaluation["teacher_accuracy"]
    )
    assert manifest.evaluation["parameters"] < manifest.evaluation["teacher_parameters"]
    assert trainer.outcome["metrics"]["teacher_latency_ms"] > 0
    report = json.loads((trainer.artifact / "evaluation.json").read_text())
    assert report["teacher"] == {"model": "filter/1", "digest": manifest.lineage.teacher_digest}
    assert report["figures"]["teacher_speedup"] > 0
    assert [gate["gate"] for gate in report["gates"]] == ["teacher_share"]
    student = AutoModelForSequenceClassification.from_pretrained(trainer.artifact)
    assert student.config.num_hidden_layers == 1


def test_a_private_run_spends_its_budget_and_goes_on_with_the_same_noise(
    undisturbed: Trainer, mlflow: str, tmp_path: Path
) -> None:
    """Killed and resumed in its volume: the noise goes on from the same key, which is gone in the end. What was spent
    is in the status and the manifest, and no more than was asked for.
    """
    job = finetune(tmp_path, privacy={"epsilon": 4, "delta": 0.01}, checkpoint={"everySteps": 5})
    job["metadata"] |= {"name": "private", "uid": "66666666-2222-3333-4444-555555555555"}
    job["spec"]["registry"] = {"name": "private"}
    trainer = Trainer(tmp_path / "run", {"MLFLOW_TRACKING_URI": mlflow})
    kill_after(trainer, job, 10)
    key = trainer.folder / "workspace" / "privacy.key"
    before = key.read_bytes()
    process = trainer.start(job)
    while process.poll() is None and not trainer.resumed():
        assert key.read_bytes() == before
    assert process.wait(timeout=240) == 0, trainer.log
    assert trainer.resumed() >= 10
    assert not key.exists()
    figures = verify(trainer.artifact).evaluation
    assert 3.8 < figures["epsilon_spent"] <= 4
    assert trainer.outcome["metrics"]["epsilon_spent"] == figures["epsilon_spent"]
    assert figures["noise_multiplier"] > 0.3


def test_token_classifier_is_published_with_a_score_for_each_label(
    undisturbed: Trainer, mlflow: str, tmp_path: Path
) -> None:
    """From words with labels to an artifact that labels words as transformers' own class does."""
    rows = [
        {"tokens": ["Return", "the", "path", "of", "the", "file"], "labels": ["V", "O", "N", "O", "O", "N"]},
        {"tokens": ["Close", "the", "file"], "labels": ["V", "O", "N"]},
    ]
    job = finetune(tmp_path, task="token-classification", registry={"name": "words"})
    for name, times in (("train", 12), ("test", 1)):
        lines = "".join(json.dumps(row) + "\n" for row in rows * times)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    trainer = Trainer(tmp_path / "run", {"MLFLOW_TRACKING_URI": mlflow})
    assert trainer.run(job) == 0, trainer.log
    manifest = verify(trainer.artifact)
    assert manifest.task is Task.TOKEN_CLASSIFICATION
    assert manifest.labels == ["N", "O", "V"]
    assert {"f1_N", "f1_O", "f1_V"} < manifest.evaluation.keys()
    assert manifest.evaluation["data_test_seen_share"] == 1.0
    model = AutoModelForTokenClassification.from_pretrained(trainer.artifact).eval()
    tokenizer = AutoTokenizer.from_pretrained(trainer.artifact)
    right = total = 0
    for row in rows:
        encoded = tokenizer(row["tokens"], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            classes_T = model(**encoded).logits[0].argmax(dim=-1).tolist()
        words = encoded.word_ids()
        for number, label in enumerate(row["labels"]):
            right += manifest.labels[classes_T[words.index(number)]] == label
            total += 1
    assert manifest.evaluation["accuracy"] == pytest.approx(right / total)


@pytest.mark.parametrize(
    ("architecture", "algorithm"),
    [
        ("modernbert", "byte-level-bpe"),
        pytest.param("roberta", "byte-level-bpe", marks=pytest.mark.full),
        pytest.param("distilbert", "wordpiece", marks=pytest.mark.full),
    ],
)
def test_other_architectures_go_the_whole_way(
    corpus: Path, mlflow: str, tmp_path: Path, architecture: str, algorithm: str
) -> None:
    """From text to an encoder and on to a classifier, each of which answers in transformers as its graph does."""
    model = pretrain(corpus)["spec"]["model"] | {"architecture": architecture}
    tokens = {"algorithm": algorithm, "vocabSize": 800}
    job = pretrain(corpus, model=model, tokenizer=tokens, registry={"name": architecture})
    job["metadata"]["uid"] = f"11111111-{architecture}"
    first = Trainer(tmp_path / "base", {"MLFLOW_TRACKING_URI": mlflow})
    assert first.run(job) == 0, first.log
    fine = finetune(tmp_path, base={"model": {"name": architecture, "version": "1"}}, registry={"name": "mine"})
    second = Trainer(tmp_path / "classifier", {"MLFLOW_TRACKING_URI": mlflow})
    assert second.run(fine) == 0, second.log
    for trainer, auto in ((first, AutoModelForMaskedLM), (second, AutoModelForSequenceClassification)):
        manifest = verify(trainer.artifact)
        assert manifest.inputs == ["input_ids", "attention_mask"]
        tokenizer = AutoTokenizer.from_pretrained(trainer.artifact)
        theirs = auto.from_pretrained(trainer.artifact).eval()
        assert type(theirs).__name__ == manifest.architecture
        inputs = tokenizer(["Return the [MASK] of the file.", "a longer text"], return_tensors="pt", padding=True)
        with torch.no_grad():
            expected = theirs(**inputs).logits.numpy()
        session = onnxruntime.InferenceSession(trainer.artifact / "model.onnx")
        (actual,) = session.run(None, {name: inputs[name].numpy() for name in manifest.inputs})
        real = inputs["attention_mask"].numpy().astype(bool) if actual.ndim > 2 else slice(None)
        assert np.allclose(actual[real], expected[real], atol=1e-4)
    evaluation = verify(first.artifact).evaluation
    assert evaluation["masked_loss"] < 0.95 * np.log(800)
    assert 0 < evaluation["data_rare_token_share"] < 1
    assert ("data_single_byte_share" in evaluation) == (algorithm == "byte-level-bpe")


@pytest.mark.full
def test_a_model_of_elsewhere_is_continued_and_fine_tuned(mlflow: str, tmp_path: Path, tiny: Any) -> None:
    """By two ranks, with the ids of its own special tokens, from a folder to a registered encoder and a classifier."""
    tiny.save(tmp_path / "model", "roberta", Task.FILL_MASK)
    corpus = tmp_path / "text.txt"
    corpus.write_text("\n\n".join(f"number {number} tells what the ships carry" for number in range(200)))
    job = pretrain(corpus, base={"uri": f"file://{tmp_path}/model"}, registry={"name": "continued"})
    del job["spec"]["model"], job["spec"]["tokenizer"]
    job["spec"]["optimization"] |= {"steps": 8}
    job["metadata"]["uid"] = "11111111-continued"
    first = Trainer(tmp_path / "continued", {"MLFLOW_TRACKING_URI": mlflow})
    assert first.run(job) == 0, first.log
    fine = finetune(tmp_path, base={"model": {"name": "continued", "version": "1"}}, registry={"name": "mine"})
    fine["metadata"]["uid"] = "11111111-classifier"
    fine["spec"]["optimization"]["epochs"] = 1
    second = Trainer(tmp_path / "classifier", {"MLFLOW_TRACKING_URI": mlflow})
    assert second.run(fine) == 0, second.log
    for trainer, auto in ((first, AutoModelForMaskedLM), (second, AutoModelForSequenceClassification)):
        assert verify(trainer.artifact).special_tokens.mask == 4
        inputs = AutoTokenizer.from_pretrained(trainer.artifact)(["a text", "more"], return_tensors="pt", padding=True)
        assert int(inputs["input_ids"][1, -1]) == 1
        session = onnxruntime.InferenceSession(trainer.artifact / "model.onnx")
        names = [given.name for given in session.get_inputs()]
        (actual,) = session.run(None, {name: inputs[name].numpy() for name in names})
        with torch.no_grad():
            expected = auto.from_pretrained(trainer.artifact).eval()(**inputs).logits.numpy()
        real = inputs["attention_mask"].numpy().astype(bool) if actual.ndim > 2 else slice(None)
        assert np.allclose(actual[real], expected[real], atol=1e-4)


def test_base_with_another_digest_is_refused(undisturbed: Trainer, mlflow: str, tmp_path: Path) -> None:
    """The digest that the operator decided on must be the registry's; nothing is trained on anything else."""
    environment = {"MLFLOW_TRACKING_URI": mlflow, "CLOZE_BASE_DIGEST": "sha256:" + "0" * 64}
    trainer = Trainer(tmp_path / "run", environment)
    assert trainer.run(finetune(tmp_path)) == 12
    assert trainer.outcome["reason"] == "BaseDigestMismatch"


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
