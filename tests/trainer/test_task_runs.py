"""Whole runs of `cloze-train` for tasks, from an encoder to a registered model, as processes."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
import torch
from families import PAIRED
from mlflow import MlflowClient
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from whole_runs import HAM, SPAM, Trainer, finetune, kill_after, pretrain, versions, weights

from cloze_api.manifest import verify
from cloze_api.names import TAG_JOB
from cloze_api.progress import ExitCode
from cloze_api.task import Task

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def base(corpus: Path, mlflow: str, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A registered encoder that has seen a few batches, and a little of words."""
    trainer = Trainer(tmp_path_factory.mktemp("base"), {"MLFLOW_TRACKING_URI": mlflow})
    short = {"steps": 20, "batchSequences": 8, "warmupSteps": 5, "learningRate": 2e-3}
    assert trainer.run(pretrain(corpus, optimization=short, topology={}, registry={"name": "base"})) == 0, trainer.log
    return trainer


def test_finetuned_classifier_is_registered_with_its_lineage(base: Trainer, mlflow: str, tmp_path: Path) -> None:
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
    assert manifest.lineage.base == "base/1"
    assert manifest.lineage.base_digest == base.outcome["modelDigest"]
    model = AutoModelForSequenceClassification.from_pretrained(trainer.artifact).eval()
    tokenizer = AutoTokenizer.from_pretrained(trainer.artifact)
    with torch.no_grad():
        logits_BC = model(**tokenizer([text for text, _ in SPAM + HAM], return_tensors="pt", padding=True)).logits
    right = (logits_BC.argmax(dim=-1) == torch.tensor([1, 1, 0, 0])).float().mean()
    assert manifest.evaluation["accuracy"] == pytest.approx(float(right))
    (version,) = versions(mlflow, "filter")
    assert {tag["key"]: tag["value"] for tag in version["tags"]}["cloze.dev/precisions"] == "fp32, int8"


def test_a_model_that_fails_a_gate_is_not_registered(base: Trainer, mlflow: str, tmp_path: Path) -> None:
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
    kept = verify(trainer.artifact)
    client = MlflowClient(mlflow)
    experiment = client.get_experiment_by_name("filter").experiment_id
    (refused,) = client.search_runs([experiment], filter_string=f"tags.`{TAG_JOB}` = 'tests/worse'")
    assert refused.info.status == "FAILED"
    assert kept.evaluation.items() <= refused.data.metrics.items()


def test_a_student_learns_from_a_registered_teacher_and_is_told_beside_it(
    base: Trainer, mlflow: str, tmp_path: Path
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


@pytest.mark.full
def test_a_figure_that_is_luck_fails_its_gate(base: Trainer, mlflow: str, tmp_path: Path) -> None:
    """Each seed's figures are those of a job with that seed, also where the run was killed within one; the model is the
    stated seed's, and no version is made of it where too much depends on the seed.
    """
    gates = [{"figure": "seed_deviation_log_loss", "maximum": 1e-6}]
    job = finetune(
        tmp_path,
        evaluation={"seeds": 3, "gates": gates},
        optimization={"epochs": 2, "batchSequences": 4, "seed": 4},
        checkpoint={"everySteps": 5},
    )
    job["metadata"] |= {"name": "luck", "uid": "44444444-2222-3333-4444-555555555555"}
    job["spec"]["registry"] = {"name": "luck"}
    trainer = Trainer(tmp_path / "run", {"MLFLOW_TRACKING_URI": mlflow})
    kill_after(trainer, job, 10, where="seeds/5/checkpoints")
    assert trainer.run(job) == ExitCode.GATE_FAILED, trainer.log
    assert trainer.resumed() >= 10
    assert trainer.log.count('"event": "evaluated from another seed"') == 2
    assert "seed_deviation_log_loss is " in trainer.outcome["message"]
    found = verify(trainer.artifact).evaluation
    losses = [found[f"seed_{seed}_log_loss"] for seed in (4, 5, 6)]
    assert found["log_loss"] == losses[0] == trainer.outcome["metrics"]["seed_4_log_loss"]
    assert found["seed_deviation_log_loss"] == pytest.approx(np.std(losses, ddof=1))
    assert found["seed_range_log_loss"] == max(losses) - min(losses)
    assert found["seed_least_accuracy"] == min(found[f"seed_{seed}_accuracy"] for seed in (4, 5, 6))
    report = json.loads((trainer.artifact / "evaluation.json").read_text())
    assert set(report["seeds"]) == {"4", "5", "6"}
    assert not versions(mlflow, "luck")
    assert not list((trainer.folder / "workspace" / "seeds").glob("*/checkpoints"))

    job["spec"] |= {"optimization": {"epochs": 2, "batchSequences": 4, "seed": 5}, "evaluation": {}}
    job["metadata"]["uid"] = "33333333-2222-3333-4444-555555555555"
    alone = Trainer(tmp_path / "alone", {"MLFLOW_TRACKING_URI": mlflow})
    assert alone.run(job) == 0, alone.log
    assert verify(alone.artifact).evaluation["log_loss"] == losses[1]


def test_a_private_run_spends_its_budget_and_goes_on_with_the_same_noise(
    base: Trainer, mlflow: str, tmp_path: Path
) -> None:
    """Killed and resumed in its volume by one rank more: the noise goes on from the same key, which is gone in the end.
    What was spent is in the status and the manifest, and no more than was asked for. Of the encoder small matrices
    alone were trained, and they are merged into its own.
    """
    job = finetune(
        tmp_path,
        privacy={"epsilon": 4, "delta": 0.01},
        optimization={"epochs": 6, "batchSequences": 4, "learningRate": 5e-3, "lora": {"rank": 2, "dropout": 0.1}},
        checkpoint={"everySteps": 5},
    )
    job["metadata"] |= {"name": "private", "uid": "66666666-2222-3333-4444-555555555555"}
    job["spec"]["registry"] = {"name": "private"}
    trainer = Trainer(tmp_path / "run", {"MLFLOW_TRACKING_URI": mlflow})
    kill_after(trainer, job, 10)
    key = trainer.folder / "workspace" / "privacy.key"
    drawn = key.read_bytes()
    job["spec"]["topology"] = {"processesPerNode": 2}
    process = trainer.start(job)
    while process.poll() is None and not trainer.resumed():
        assert key.read_bytes() == drawn
    assert process.wait(timeout=240) == 0, trainer.log
    assert trainer.resumed() >= 10
    assert not key.exists()
    figures = verify(trainer.artifact).evaluation
    assert 3.8 < figures["epsilon_spent"] <= 4
    assert trainer.outcome["metrics"]["epsilon_spent"] == figures["epsilon_spent"]
    assert figures["noise_multiplier"] > 0.3
    before, after = (load_file(each.artifact / "model.safetensors") for each in (base, trainer))
    matrices = {name for name in after if re.search(r"attention\.(self\.\w+|output\.dense)\.weight", name)}
    assert len(matrices) == 2 * 4
    assert not any(torch.equal(after[name], before[name]) for name in matrices)
    kept = before.keys() & after.keys() - matrices
    assert "bert.embeddings.word_embeddings.weight" in kept
    assert all(torch.equal(after[name], before[name]) for name in kept)
    model = AutoModelForSequenceClassification.from_pretrained(trainer.artifact).eval()
    tokenizer = AutoTokenizer.from_pretrained(trainer.artifact)
    with torch.no_grad():
        logits_BC = model(**tokenizer([text for text, _ in SPAM + HAM], return_tensors="pt", padding=True)).logits
    right = (logits_BC.argmax(dim=-1) == torch.tensor([1, 1, 0, 0])).float().mean()
    assert figures["accuracy"] == pytest.approx(float(right))


def test_token_classifier_is_published_with_a_score_for_each_label(base: Trainer, mlflow: str, tmp_path: Path) -> None:
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
        pytest.param("xlm-roberta", "unigram", marks=pytest.mark.full),
        pytest.param("electra", "wordpiece", marks=pytest.mark.full),
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
        assert ("token_type_ids" in manifest.inputs) == (architecture in PAIRED)
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


@pytest.mark.full
def test_a_killed_run_takes_the_same_step(tmp_path: Path, tiny: Any) -> None:
    """By two ranks: the best step's weights are in the artifact, and the outcome says which one it was and why."""
    tiny.save(tmp_path / "model", "bert", Task.FILL_MASK)
    early = {"figure": "log_loss", "patience": 2}
    job = finetune(
        tmp_path,
        base={"uri": f"file://{tmp_path}/model"},
        optimization={"epochs": 40, "batchSequences": 4, "learningRate": 2e-2, "earlyStopping": early},
        topology={"processesPerNode": 2},
        checkpoint={"everySteps": 5},
    )
    job["spec"]["dataset"]["validationFraction"] = 0.3
    steady, killed = (Trainer(tmp_path / name, {}) for name in ("steady", "killed"))
    assert steady.run(job) == 0, steady.log
    kill_after(killed, job, 10)
    assert killed.run(job) == 0, killed.log
    assert killed.resumed() >= 10
    assert weights(killed) == weights(steady)
    manifest = verify(steady.artifact)
    best, last = (int(manifest.evaluation[name]) for name in ("best_step", "last_step"))
    assert 0 < best < last < 240
    assert steady.outcome["metrics"]["best_step"] == killed.outcome["metrics"]["best_step"] == best
    assert f"step {best} is taken, of the best validation log_loss" in steady.outcome["message"]
    assert f"the training ended at step {last} of 240" in steady.outcome["message"]
    assert manifest.evaluation["validation_log_loss"] > 0
    assert json.loads((steady.artifact / "evaluation.json").read_text())["selection"]["step"] == best


def test_base_with_another_digest_is_refused(base: Trainer, mlflow: str, tmp_path: Path) -> None:
    """The digest that the operator decided on must be the registry's; nothing is trained on anything else."""
    environment = {"MLFLOW_TRACKING_URI": mlflow, "CLOZE_BASE_DIGEST": "sha256:" + "0" * 64}
    trainer = Trainer(tmp_path / "run", environment)
    assert trainer.run(finetune(tmp_path)) == 12
    assert trainer.outcome["reason"] == "BaseDigestMismatch"
