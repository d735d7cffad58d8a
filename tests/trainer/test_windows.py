"""Texts that are longer than the model: read in windows, trained on, scored and answered as a server answers them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuning import ALONE

from cloze_api.finetune import Truncation
from cloze_api.manifest import verify
from cloze_api.task import Problem, Task
from cloze_server import windows as served
from cloze_trainer import tasks
from cloze_trainer.data import labelled, tokenizer
from cloze_trainer.data.labelled import IGNORED, Example
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.data.windows import own, windows
from cloze_trainer.quality import command, gates, judgement
from cloze_trainer.quality.assessment import assess
from cloze_trainer.tasks.kind import Reader
from cloze_trainer.tasks.pooling import pooled
from cloze_trainer.tasks.rows import Rows, save

TEXTS = Task.SEQUENCE_CLASSIFICATION
# One for each text: numbers for the same text twice would be ranked by how they are rounded.
TOWNS = ["london", "paris", "rome", "oslo", "vienna", "madrid", "lisbon", "dublin"]


@given(st.integers(0, 3000), st.integers(1, 600))
def test_windows_are_the_servers(length: int, room: int) -> None:
    """Where a request says nothing of their overlap."""
    planned = served.plan(length, room, "window", served.default_stride(room))
    read = windows(length, room)
    assert [(part.start, part.stop) for part in read] == [(each.start, each.stop) for each in planned]
    assert [(part.start, part.stop) for part in own(read)] == [(each.first, each.last) for each in planned]


def text(number: int) -> str:
    """Of thirty words, of which those in the last third tell where it is about."""
    return " ".join(["a", "letter"] * 10 + [TOWNS[number]] * 10)


LINES: dict[Problem, list[dict[str, Any]]] = {
    Problem.SINGLE_LABEL: [{"text": text(number), "label": "ab"[number % 2]} for number in range(8)],
    Problem.MULTI_LABEL: [
        {"text": text(number), "labels": [["a"], ["a", "b"], [], ["b"]][number % 4]} for number in range(8)
    ],
    Problem.REGRESSION: [{"text": text(number), "score": number / 4} for number in range(8)],
}
SHORT: dict[str, Any] = {"text": "a letter", "label": "a", "labels": [], "score": 0.5}


@pytest.mark.anyio
@pytest.mark.parametrize("problem", Problem)
async def test_a_long_text_is_scored_as_a_server_answers_it(
    tuned: Callable[..., Any], tmp_path: Path, problem: Problem
) -> None:
    """By the mean of its windows' outputs; so are the artifact's graph, and the gates of the command line."""
    rows = [*LINES[problem], SHORT]
    made = tuned(TEXTS, rows, rows, max_length=16, steps=100, problem=problem, truncate="window")
    workload = made.workload
    assert workload.report["truncated"] == workload.report["truncated_test"] == 0
    assert len(workload.train) == 8 * 3 + 1
    assert workload.report["examples"] == len(rows)
    judged = made.judge()
    artifact = made.publish(judged)
    manifest = verify(artifact)
    outputs_RK = workload.outputs(made.model, workload.test, ALONE)
    expected_EK, _ = pooled(outputs_RK, workload.test)
    async with made.serving(artifact) as client:
        body = {"inputs": [row["text"] for row in rows], "truncate": "window"}
        reply = (await client.post("/v1/classify", json=body)).json()
    assert reply["windows"] == len(workload.test)
    answers_EK = [
        [{each["label"]: each["score"] for each in result["predictions"]}[label] for label in manifest.labels]
        for result in reply["results"]
    ]
    if problem is not Problem.REGRESSION:
        assert manifest.calibration is not None
        expected_EK = expected_EK / manifest.calibration.temperature
    if problem is Problem.SINGLE_LABEL:
        powers_EK = np.exp(expected_EK)
        expected_EK = powers_EK / powers_EK.sum(-1, keepdims=True)
    if problem is Problem.MULTI_LABEL:
        expected_EK = 1 / (1 + np.exp(-expected_EK))
    np.testing.assert_allclose(answers_EK, expected_EK, atol=1e-4)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    kind = tasks.of(TEXTS, problem)
    found = {}
    for truncation in Truncation:
        scores = assess(artifact, manifest, kind.read([data]), manifest.labels, truncation)
        found[truncation] = {name: each.figure for name, each in kind.statistics(scores, manifest.labels).items()}
    assert found[Truncation.WINDOW] == pytest.approx({n: judged.figures[n] for n in found[Truncation.WINDOW]}, abs=1e-4)
    main = kind.main[0]
    # Nothing of what tells the texts apart is in their beginnings.
    assert found[Truncation.RIGHT][main] < 0.8 < found[Truncation.WINDOW][main]
    bound = ["--minimum", f"{main}={found[Truncation.WINDOW][main] - 0.01}"]
    judging = command.parse([str(artifact), str(data), "--truncate", "window", *bound])
    assert command.run(judging).message == "1 gates pass"


def test_a_text_without_tokens_has_an_answer_of_its_own() -> None:
    """And one of a single window has that window's, to the bit."""
    lengths = np.array([2, 10, 12, 12, 5])
    ids = [np.arange(length) for length in lengths]
    places = np.array([(0, 0, 0), (1, 0, 0), (2, 0, 0), (2, 0, 8), (2, 0, 16)])
    arrays = {
        "ids": np.concatenate(ids),
        "lengths": lengths,
        "targets": np.array([0, 1, 1, 1, 1]),
        "places": places,
    }
    outputs_RK = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    outputs_EK, truth_E = pooled(outputs_RK, Rows(arrays, per_token=False, pad=0))
    assert truth_E.tolist() == [0, 1, 1]
    assert np.array_equal(outputs_EK[:2], outputs_RK[:2])
    np.testing.assert_allclose(outputs_EK[2], np.average(outputs_RK[2:], axis=0, weights=[10, 10, 3]), rtol=1e-6)


WORDS = [
    {"tokens": ["a", "letter"] * number + [TOWNS[number]] * 5, "labels": ["O", "O"] * number + ["B", *"IIII"]}
    for number in range(8)
]


@pytest.mark.anyio
async def test_each_word_of_a_long_text_is_scored_as_a_server_answers_it(tuned: Callable[..., Any]) -> None:
    """Once, in the window that it is farther from the cut of; so that none is left out of the figures."""
    made = tuned(Task.TOKEN_CLASSIFICATION, WORDS, WORDS, max_length=12, steps=30, truncate="window")
    workload = made.workload
    assert len(workload.test) > len(WORDS)
    assert workload.report["truncated_test"] == 0
    scores = workload.score(made.model, ALONE)
    words = [word for row in WORDS for word in row["tokens"]]
    assert scores.examples == len(WORDS)
    assert len(scores.truth_N) == len(words)
    assert [workload.labels[number] for number in scores.truth_N] == [each for row in WORDS for each in row["labels"]]
    judged = made.judge()
    artifact = made.publish(judged)
    labels = verify(artifact).labels
    async with made.serving(artifact) as client:
        body = {"words": [row["tokens"] for row in WORDS], "truncate": "window"}
        reply = (await client.post("/v1/token-classify", json=body)).json()
    assert reply["windows"] == len(workload.test)
    tags = [tag["label"] for result in reply["results"] for tag in result["tags"]]
    assert tags == [labels[number] for number in scores.predicted]
    assert judged.figures["accuracy"] == pytest.approx(float((scores.predicted == scores.truth_N).mean()))


def test_a_word_without_pieces_takes_nobodys_label() -> None:
    """Where a tokenizer has no token for what it doesn't know, such a word has nothing to be labelled."""
    trained = tokenizer.train(["a letter"] * 3, vocab_size=30, lowercase=True)
    example = Example("x:1", ("a", "", "a", ""), ("A", "B", "C", "D"))
    found = labelled.tokenize(
        *([example], ["A", "B", "C", "D"], trained),
        task=Task.TOKEN_CLASSIFICATION,
        max_length=8,
        special=SPECIAL_IDS.model_copy(update={"unk": None}),
    )
    assert [found.targets[0].tolist()] == [[IGNORED, 0, 2, IGNORED]]
    assert found.unread is not None
    assert found.unread.tolist() == [[0, 1, 1], [0, 3, 3]]


@pytest.mark.parametrize(("labels", "main"), [(["N", "V"] * 5, "macro_f1"), (["O", "B-X"] * 5, "entity_f1")])
def test_who_reads_less_is_not_better(tmp_path: Path, labels: list[str], main: str) -> None:
    """Of ten words a model reads all and is right in eight, and another one five and is right in them: the first one is
    the better one by each figure, and the second one doesn't pass against it.
    """
    kind, names = tasks.of(Task.TOKEN_CLASSIFICATION), sorted(set(labels))
    trained = tokenizer.train(["a letter"] * 3, vocab_size=30, lowercase=True)
    lines = [Example(f"x:{number}", ("a",) * 10, tuple(labels)) for number in range(20)]

    def answered(most: int, wrong: int) -> Any:
        """By a model of so many words, which is wrong in so many of the last."""
        part = kind.tokenize(lines, names, Reader(trained, SPECIAL_IDS, most + 2))
        save(tmp_path, f"{most}", part)
        rows = Rows.load(tmp_path, f"{most}", per_token=True, pad=0)
        said = [names.index(label) for label in labels[:most]]
        said[most - wrong :] = [1 - number for number in said[most - wrong :]]
        return kind.scored(np.eye(2, dtype=np.float32)[said * len(lines)], rows, None, ())

    def figures(scores: Any) -> dict[str, float]:
        told = {name: each.figure for name, each in kind.statistics(scores, names).items()}
        return {**told, **kind.details(scores, names)}

    whole, half = answered(10, 2), answered(5, 0)
    assert (figures(whole)["accuracy"], figures(half)["accuracy"]) == (0.8, 0.5)
    assert all(figures(whole)[name] > figure for name, figure in figures(half).items())
    asked: dict[str, Any] = {"task": Task.TOKEN_CLASSIFICATION, "against": "x/1", "confidence": 0.95}
    for new, old, passes in ((whole, half, True), (half, whole, False)):
        comparison = judgement.compare(new, old, names, **asked)
        assert gates.no_worse(comparison, max_loss=0.01, confidence=0.95).passed is passes
        assert comparison.figure == main
