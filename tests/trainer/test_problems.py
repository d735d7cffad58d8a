"""Several labels for a text, or a number: figures equal scikit-learn's and scipy's, replies those of transformers."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score, f1_score, root_mean_squared_error
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from tuning import ALONE

from cloze_api.evaluation import Evaluation
from cloze_api.manifest import verify
from cloze_api.task import Problem, Task
from cloze_trainer import tasks
from cloze_trainer.errors import InputError
from cloze_trainer.quality import judgement
from cloze_trainer.quality.assessment import assess
from cloze_trainer.quality.scores import correlation
from cloze_trainer.tasks.several_labels import Marked

TEXTS = Task.SEQUENCE_CLASSIFICATION
TOPICS = {"boat": "sea", "ship": "sea", "rain": "weather", "storm": "weather", "train": "travel", "road": "travel"}
MARKED = [
    {"text": f"the {one} and the {other}", "labels": sorted({TOPICS[one], TOPICS[other]})}
    for one in TOPICS
    for other in TOPICS
    if one < other
] + [{"text": "nothing at all", "labels": []}, {"text": "nothing here", "labels": []}]
RATED = [{"text": " ".join(["good"] * good + ["bad"] * (6 - good)), "score": good / 2 - 1} for good in range(7)]
LINES = {Problem.MULTI_LABEL: MARKED, Problem.REGRESSION: RATED}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("seed", range(5))
def test_figures_of_several_labels_equal_scikit_learn(seed: int) -> None:
    """Over all labels, over the labels that occur, of each, and the mean average precision; one never occurs."""
    random = np.random.default_rng(seed)
    truth_EC = random.random((50, 4)) < [0.5, 0.2, 0.1, 0]
    logits_EC = (random.normal(0, 1, (50, 4)) + truth_EC).astype(np.float32)
    logits_EC[:, 3] = -1
    labels = ["a", "b", "c", "never"]
    figures = judgement.judge(
        Marked(logits_EC, truth_EC), labels, Evaluation(), task=TEXTS, problem=Problem.MULTI_LABEL
    ).figures
    predicted_EC = logits_EC >= 0
    assert figures["micro_f1"] == pytest.approx(f1_score(truth_EC, predicted_EC, average="micro", zero_division=0))
    seen = slice(0, 3)
    macro = f1_score(truth_EC[:, seen], predicted_EC[:, seen], average="macro", zero_division=0)
    assert figures["macro_f1"] == pytest.approx(macro)
    precision = average_precision_score(truth_EC[:, seen], logits_EC[:, seen], average="macro")
    assert figures["average_precision"] == pytest.approx(precision)
    each = f1_score(truth_EC, predicted_EC, average=None, zero_division=0)
    assert [figures[f"f1_{label}"] for label in labels] == pytest.approx(each)
    assert figures["exact_match"] == pytest.approx((truth_EC == predicted_EC).all(1).mean())


def test_correlations_of_numbers_far_from_zero_are_pearsons() -> None:
    """What tells them apart isn't lost in their squares."""
    random = np.random.default_rng(0)
    one_E = 1e7 + random.normal(size=40)
    other_E = one_E + random.normal(size=40)
    assert correlation(one_E, other_E).figure == pytest.approx(pearsonr(one_E, other_E).statistic, rel=1e-6)


@pytest.mark.parametrize(
    ("problem", "row", "reason"),
    [
        (Problem.MULTI_LABEL, {"text": "a", "label": "x"}, "LabelMissing"),
        (Problem.MULTI_LABEL, {"text": "a", "labels": ["x", "x"]}, "LabelRepeated"),
        (Problem.MULTI_LABEL, {"text": "a", "labels": [""]}, "LabelInvalid"),
        (Problem.MULTI_LABEL, {"labels": ["x"]}, "TextFieldMissing"),
        (Problem.REGRESSION, {"text": "a", "score": "1"}, "ScoreInvalid"),
        (Problem.REGRESSION, {"text": "a", "score": True}, "ScoreInvalid"),
        (Problem.REGRESSION, {"text": "a", "score": float("nan")}, "ScoreInvalid"),
        # More than a float is; more than float32 is, or than errors whose squares are.
        (Problem.REGRESSION, {"text": "a", "score": 10**400}, "ScoreInvalid"),
        (Problem.REGRESSION, {"text": "a", "score": -1e39}, "ScoreInvalid"),
        (Problem.REGRESSION, {"text": "a", "score": 1e20}, "ScoreInvalid"),
        (Problem.REGRESSION, {"score": 1}, "TextFieldMissing"),
    ],
)
def test_a_wrong_line_is_told_by_its_place(tmp_path: Path, problem: Problem, row: dict[str, Any], reason: str) -> None:
    """Before anything is trained."""
    path = write(tmp_path / "data.jsonl", [LINES[problem][0], row])
    with pytest.raises(InputError, match=f"{path}:2 ") as refused:
        tasks.of(TEXTS, problem).read([path])
    assert refused.value.reason == reason


@pytest.mark.parametrize("same", [(), ("x",), ("x", "y")])
def test_labels_that_are_always_the_same_are_refused(tmp_path: Path, same: Sequence[str]) -> None:
    """In whichever order they stand: they tell nothing apart."""
    rows = [{"text": "a", "labels": [*same]}, {"text": "b", "labels": [*reversed(same)]}]
    kind = tasks.of(TEXTS, Problem.MULTI_LABEL)
    lines = kind.read([write(tmp_path / "data.jsonl", rows)])
    with pytest.raises(InputError) as refused:
        kind.labels(lines, lines, same if len(same) > 1 else ())
    assert refused.value.reason == "LabelsAllEqual"


def test_numbers_that_are_always_the_same_are_refused(tmp_path: Path) -> None:
    """As they are in JSON, with or without a point; two different ones are enough."""
    kind = tasks.of(TEXTS, Problem.REGRESSION)
    rows: list[dict[str, Any]] = [{"text": "a", "score": 2}, {"text": "b", "score": 2.0}]
    same, test = (kind.read([write(tmp_path / name, rows)]) for name in ("train.jsonl", "test.jsonl"))
    with pytest.raises(InputError) as refused:
        kind.labels(same, test, ())
    assert refused.value.reason == "ScoresAllEqual"
    other = kind.read([write(tmp_path / "train.jsonl", [*rows, {"text": "c", "score": 3}])])
    assert kind.labels(other, test, ()) == ("score",)


def test_the_largest_numbers_that_are_taken_are_learnt_from(tuned: Callable[..., Any]) -> None:
    """Losses, gradients and figures are finite: a larger one would make steps that are left out."""
    rows = [{"text": f"the number {number}", "score": (-1) ** number * 1e15} for number in range(8)]
    made = tuned(TEXTS, rows, rows, problem=Problem.REGRESSION)
    (chunk,) = made.workload.share(0, 0, 1, 0.0)
    loss = made.workload.loss_sum(made.model, chunk)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([each.grad for each in made.model.parameters() if each.grad is not None])
    assert np.isfinite([float(loss.detach()), float(norm), *made.judge().figures.values()]).all()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("problem", "abstention"),
    [
        (Problem.MULTI_LABEL, "abstainBelowPrecision"),
        (Problem.MULTI_LABEL, "abstainKeepingRecall"),
        (Problem.REGRESSION, ""),
    ],
)
async def test_a_trained_model_answers_as_transformers_pipeline_does(
    tuned: Callable[..., Any], tmp_path: Path, problem: Problem, abstention: str
) -> None:
    """From lines to a served artifact with the same figures: sigmoid of each label, or the number itself."""
    rows = LINES[problem]
    asked = {"evaluation": {abstention: 0.9, "calibrate": False}} if abstention else {}
    made = tuned(
        TEXTS, rows, rows, steps=60, problem=problem, export={"precisions": ["int8"], "maxAccuracyLoss": 1}, **asked
    )
    judged = made.judge()
    kind = tasks.of(TEXTS, problem)
    told, others = kind.figure_names(made.workload.labels)
    others += kind.thresholded if abstention else []
    assert {name for name in judged.figures if not name.startswith(("lower_", "upper_"))} == {*told, *others}
    artifact = made.publish(judged)
    manifest = verify(artifact)
    assert manifest.problem is problem
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(artifact),
        AutoTokenizer.from_pretrained(artifact),
    )
    theirs = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None, device="cpu")
    texts = [row["text"] for row in rows]
    async with made.serving(artifact) as client:
        results = (await client.post("/v1/classify", json={"inputs": texts})).json()["results"]
        metrics = (await client.get("/metrics")).text
    for result, expected in zip(results, theirs(texts), strict=True):
        given = {each["label"]: each["score"] for each in result["predictions"]}
        assert given == pytest.approx({each["label"]: each["score"] for each in expected}, abs=1e-4)
    read = kind.read([write(tmp_path / "data.jsonl", rows)])
    found = kind.statistics(assess(artifact, manifest, read, manifest.labels), manifest.labels)
    assert {name: each.figure for name, each in found.items()} == pytest.approx(
        {n: judged.figures[n] for n in found}, abs=1e-4
    )
    if problem is Problem.REGRESSION:
        scores = [result["predictions"][0]["score"] for result in results]
        true = [row["score"] for row in rows]
        assert judged.figures["spearman"] == pytest.approx(spearmanr(scores, true).statistic)
        assert judged.figures["pearson"] == pytest.approx(pearsonr(scores, true).statistic, abs=1e-4)
        assert judged.figures["rmse"] == pytest.approx(root_mean_squared_error(true, scores), abs=1e-4)
        assert judged.figures["rmse"] < 0.5
        assert "cloze_prediction_confidence_count" not in metrics or " 0.0" in metrics
        return
    assert judged.figures["micro_f1"] > 0.9
    assert manifest.calibration is not None
    bounds = manifest.calibration.thresholds
    assert isinstance(bounds, dict)
    for result in results:
        assert all(each["applies"] == (each["score"] >= bounds[each["label"]]) for each in result["predictions"])


def test_equal_texts_share_a_rank_in_whatever_batches(tuned: Callable[..., Any], tmp_path: Path) -> None:
    """Each alone, or beside others, in the training's evaluation; and in the gate command's."""
    random = np.random.default_rng(0)
    texts = ["good bad", "bad good good", "good good bad bad good bad"]
    rows = [{"text": texts[number % 3], "score": float(random.normal())} for number in range(36)]
    made = tuned(TEXTS, rows, rows, steps=5, problem=Problem.REGRESSION)
    test, figures = made.workload.test, []
    for tokens in (1, 20, 50, 90, 1000):
        made.workload.chunk_tokens = tokens
        outputs_N1 = made.workload.outputs(made.model, test, ALONE)
        figures.append(made.workload.scores_of(outputs_N1).found["spearman"].figure)
        if tokens == 1:
            expected = spearmanr(outputs_N1[:, 0], [row["score"] for row in rows]).statistic
    assert figures == pytest.approx([expected] * 5, abs=1e-9)
    artifact = made.publish(made.judge())
    lines = tasks.of(TEXTS, Problem.REGRESSION).read([write(tmp_path / "data.jsonl", rows)])
    answers: Any = assess(artifact, verify(artifact), lines, ("score",))
    assert answers.found["spearman"].figure == pytest.approx(expected, abs=1e-9)
