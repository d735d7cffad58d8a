"""`cloze-train gate` says of an artifact what transformers' model of it does, and whether that is enough."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch
import whole_runs
from remote_stores import KEYS, serving

from cloze_api.manifest import Calibration, digest_files, verify, write_manifest
from cloze_api.precision import Measured, Precision, graph_file
from cloze_api.progress import ExitCode
from cloze_api.task import Problem, Task
from cloze_trainer import import_options, importing, tasks
from cloze_trainer.errors import GateError, InputError
from cloze_trainer.quality import command
from cloze_trainer.quality.assessment import assess

LABELS = ["O", "B-PER", "I-PER"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module", params=["bert", "roberta"])
def model(request: pytest.FixtureRequest, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder in Hugging Face's format, its artifact, and the model itself, of texts."""
    return _made(tmp_path_factory.mktemp(request.param), tiny, request.param, Task.SEQUENCE_CLASSIFICATION)


def _made(
    folder: Path, tiny: Any, family: str, task: Task, problem: Problem = Problem.SINGLE_LABEL, **settings: Any
) -> Any:
    made, tokenizer = tiny.save(folder / "source", family, task, **settings)
    importing.run(
        import_options.Asked(
            source=str(folder / "source"),
            output=folder / "artifact",
            task=task,
            name="tiny",
            register=False,
            pooling=None,
            normalize=False,
            matryoshka=[],
            problem=problem if task is Task.SEQUENCE_CLASSIFICATION else None,
        )
    )
    return folder / "artifact", made, tokenizer


def texts(count: int, seed: int = 0) -> list[str]:
    """Words of letters, of many lengths."""
    random = np.random.default_rng(seed)
    return [
        " ".join("".join(random.choice(list(LETTERS), 3)) for _ in range(random.integers(1, 6))) for _ in range(count)
    ]


def answers(made: Any, tokenizer: Any, inputs: list[str]) -> Any:
    """What transformers' model says of each text."""
    with torch.no_grad():
        encoded = [tokenizer(text, return_tensors="pt") for text in inputs]
        return torch.cat([made(**each).logits for each in encoded])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_texts_are_judged_as_transformers_answers(model: Any, tmp_path: Path) -> None:
    """Logits, and accuracy with half of the labels right, of texts of different lengths in one batch."""
    artifact, made, tokenizer = model
    inputs = texts(24)
    expected = answers(made, tokenizer, inputs)
    best = expected.argmax(-1).tolist()
    rows = [
        {"text": text, "label": LABELS[(number + place % 2) % 3], "metadata": {"half": "ab"[place % 2]}}
        for place, (text, number) in enumerate(zip(inputs, best, strict=True))
    ]
    data = write(tmp_path / "data.jsonl", rows)
    scores = assess(
        artifact, verify(artifact), tasks.of(Task.SEQUENCE_CLASSIFICATION, Problem.SINGLE_LABEL).read([data]), LABELS
    )
    assert np.allclose(scores.logits_NC, expected.numpy(), atol=1e-4)
    outcome = command.run(
        command.parse([str(artifact), str(data), "--minimum", "accuracy=0.5", "--min-slice-examples=2"])
    )
    assert outcome.metrics["accuracy"] == 0.5
    assert outcome.metrics["worst_slice_accuracy"] == 0
    with pytest.raises(GateError) as refused:
        command.run(command.parse([str(artifact), str(data), "--minimum", "accuracy=0.51"]))
    assert refused.value.message == "accuracy is 0.5000, and must be at least 0.51"


def test_another_order_of_labels_is_the_same_model(model: Any, tmp_path: Path) -> None:
    """Classes are put in the order of the examples' labels."""
    artifact, made, tokenizer = model
    inputs = texts(4, seed=1)
    data = write(tmp_path / "data.jsonl", [{"text": text, "label": "O"} for text in inputs])
    examples = tasks.of(Task.SEQUENCE_CLASSIFICATION, Problem.SINGLE_LABEL).read([data])
    scores = assess(artifact, verify(artifact), examples, ["I-PER", "O", "B-PER"])
    assert np.allclose(scores.logits_NC, answers(made, tokenizer, inputs).numpy()[:, [2, 0, 1]], atol=1e-4)


def test_words_are_judged_by_their_first_piece(tiny: Any, tmp_path: Path) -> None:
    """Of texts with different numbers of words, in one batch."""
    artifact, made, tokenizer = _made(tmp_path, tiny, "bert", Task.TOKEN_CLASSIFICATION)
    inputs = [text.split() for text in texts(12, seed=2)]
    expected = []
    for sentence in inputs:
        encoded = tokenizer(sentence, is_split_into_words=True, return_tensors="pt")
        words = encoded.word_ids()
        with torch.no_grad():
            logits = made(**encoded).logits[0]
        expected += [logits[words.index(place)] for place in range(len(sentence))]
    rows = [{"tokens": sentence, "labels": ["O"] * len(sentence)} for sentence in inputs]
    data = write(tmp_path / "data.jsonl", rows)
    scores = assess(
        artifact, verify(artifact), tasks.of(Task.TOKEN_CLASSIFICATION, Problem.SINGLE_LABEL).read([data]), LABELS
    )
    assert np.allclose(scores.logits_NC, torch.stack(expected).numpy(), atol=1e-4)
    assert [int((scores.example_N == place).sum()) for place in range(12)] == [len(sentence) for sentence in inputs]


def test_a_model_is_no_worse_than_itself(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also when it may lose nothing; the table has figures with their intervals."""
    artifact, made, tokenizer = model
    inputs = texts(12, seed=3)
    rows = [
        {"text": text, "label": LABELS[int(number)]}
        for text, number in zip(inputs, answers(made, tokenizer, inputs).argmax(-1), strict=True)
    ]
    data = write(tmp_path / "data.jsonl", [*rows[:-1], {**rows[-1], "label": "B-PER"}])
    command.run(command.parse([str(artifact), str(data), "--against", str(artifact), "--max-loss", "0"]))
    shown = capsys.readouterr().out
    assert "accuracy  " in shown
    assert " to " in shown
    assert "ok   accuracy is" in shown


@pytest.mark.parametrize("model", ["bert"], indirect=True)
def test_the_precision_that_is_served_can_be_judged(model: Any, tmp_path: Path) -> None:
    """Of the model itself, beside another in fp32; one that the model hasn't is told with those that it has."""
    whole, made, tokenizer = model
    folder = tmp_path / "artifact"
    shutil.copytree(whole, folder)
    manifest = verify(folder)
    opposite = onnx.load(folder / graph_file(Precision.FP32))
    (last,) = [node for node in opposite.graph.node if manifest.output in node.output]
    last.output[0] = "said"
    opposite.graph.node.append(onnx.helper.make_node("Neg", ["said"], [manifest.output]))
    onnx.save(opposite, folder / graph_file(Precision.INT8))
    precisions = {Precision.INT8: Measured(difference=1)}
    write_manifest(folder, manifest.model_copy(update={"precisions": precisions, "files": digest_files(folder)}))
    inputs = texts(12, seed=4)
    rows = [
        {"text": text, "label": LABELS[number]}
        for text, number in zip(inputs, answers(made, tokenizer, inputs).argmax(-1).tolist(), strict=True)
    ]
    asked = [str(folder), str(write(tmp_path / "data.jsonl", rows))]
    assert command.run(command.parse(asked)).metrics["accuracy"] == 1
    assert command.run(command.parse([*asked, "--precision=int8"])).metrics["accuracy"] == 0
    with pytest.raises(GateError, match=r"accuracy is 0\.0000, that of .* 1\.0000"):
        command.run(command.parse([*asked, "--precision=int8", "--against", str(folder)]))
    with pytest.raises(InputError, match=r"no graph in fp16; .* fp32, int8") as refused:
        command.run(command.parse([*asked, "--precision=fp16"]))
    assert refused.value.reason == "PrecisionMissing"


@pytest.mark.parametrize("model", ["bert"], indirect=True)
def test_what_the_models_own_thresholds_let_through_is_told(model: Any, tmp_path: Path) -> None:
    """With its temperature, as a server answers; a model without thresholds has no such figures, nor gates on them."""
    whole, made, tokenizer = model
    inputs = texts(30, seed=6)
    logits = answers(made, tokenizer, inputs)
    chosen = logits.argmax(-1).tolist()
    rows = [{"text": text, "label": LABELS[number]} for text, number in zip(inputs, chosen, strict=True)]
    data = str(write(tmp_path / "data.jsonl", rows))
    folder = tmp_path / "artifact"
    shutil.copytree(whole, folder)
    sure = torch.softmax(logits / 3, -1).max(-1).values
    bound = float(sure.median())
    calibrated = verify(folder).model_copy(update={"calibration": Calibration(temperature=3, thresholds=bound)})
    write_manifest(folder, calibrated)
    found = command.run(command.parse([str(folder), data, "--minimum", "answered_share=0.4"])).metrics
    assert found["answered_share"] == pytest.approx(float((sure >= bound).float().mean()), abs=0.05)
    assert found["answered_accuracy"] == 1
    assert found["log_loss"] == pytest.approx(float(-sure.log().mean()), abs=1e-3)
    with pytest.raises(InputError, match="answered_share") as refused:
        command.run(command.parse([str(whole), data, "--minimum", "answered_share=0.4"]))
    assert refused.value.reason == "GateFigureUnknown"


@pytest.mark.parametrize("model", ["bert"], indirect=True)
def test_the_worse_of_two_models_is_refused(model: Any, tiny: Any, tmp_path: Path) -> None:
    """By the figures of both on the same examples, the labels of which are one model's answers; not the other way."""
    right, made, tokenizer = model
    wrong, *_ = _made(tmp_path, tiny, "bert", Task.SEQUENCE_CLASSIFICATION, num_hidden_layers=1)
    inputs = texts(40, seed=5)
    best = answers(made, tokenizer, inputs).argmax(-1).tolist()
    rows = [{"text": text, "label": LABELS[number]} for text, number in zip(inputs, best, strict=True)]
    data = str(write(tmp_path / "data.jsonl", rows))
    with pytest.raises(GateError, match=f"accuracy is 0\\..*, that of {right} 1.0000 on the same examples"):
        command.run(command.parse([str(wrong), data, "--against", str(right)]))
    assert command.run(command.parse([str(right), data, "--against", str(wrong)])).message == "1 gates pass"


@pytest.mark.parametrize("model", ["bert"], indirect=True)
@pytest.mark.parametrize(
    ("task", "problem", "labels", "reason"),
    [
        (Task.SEQUENCE_CLASSIFICATION, Problem.MULTI_LABEL, LABELS, "TaskDiffers"),
        (Task.TOKEN_CLASSIFICATION, Problem.SINGLE_LABEL, LABELS, "TaskDiffers"),
        (Task.SEQUENCE_CLASSIFICATION, Problem.SINGLE_LABEL, ["O", "B-PER", "X"], "LabelsDiffer"),
    ],
)
def test_models_that_answer_other_questions_are_not_compared(
    model: Any, tiny: Any, tmp_path: Path, task: Task, problem: Problem, labels: list[str], reason: str
) -> None:
    """Another task or problem, and other labels: told as wrong input, and nothing is judged."""
    named = {"id2label": dict(enumerate(labels)), "label2id": {name: place for place, name in enumerate(labels)}}
    other, *_ = _made(tmp_path, tiny, "bert", task, problem, **named)
    data = write(tmp_path / "data.jsonl", [{"text": text, "label": "O"} for text in texts(5)])
    with pytest.raises(InputError, match="can be compared") as refused:
        command.run(command.parse([str(model[0]), str(data), "--against", str(other)]))
    assert (refused.value.reason, refused.value.exit_code) == (reason, ExitCode.INVALID_INPUT)


def test_numbers_are_compared_whatever_their_label_is_called(
    tuned: Callable[..., Any], tiny: Any, tmp_path: Path
) -> None:
    """One that was trained here and one that was imported, either way round; each has the figure that it has alone."""
    rows = [{"text": text, "score": float(len(text))} for text in texts(12)]
    made = tuned(Task.SEQUENCE_CLASSIFICATION, rows, rows, problem="regression", evaluation={"calibrate": False})
    ours = made.publish(made.judge())
    named = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    theirs, *_ = _made(tmp_path, tiny, "bert", Task.SEQUENCE_CLASSIFICATION, Problem.REGRESSION, **named)
    assert verify(ours).labels != verify(theirs).labels
    data = str(write(tmp_path / "data.jsonl", rows))
    found = [command.run(command.parse([str(each), data])).metrics["spearman"] for each in (ours, theirs)]
    for (new, old), (own, other) in zip(((ours, theirs), (theirs, ours)), (found, found[::-1]), strict=True):
        with pytest.raises(GateError) as refused:
            command.run(command.parse([str(new), data, "--against", str(old), "--max-loss=0", "--confidence=0.999"]))
        said = f"spearman is {own:.4f}, that of {old} {other:.4f} on the same examples"
        assert said in refused.value.message


@pytest.mark.parametrize("model", ["bert"], indirect=True)
def test_ci_gets_an_exit_code_and_junit(model: Any, tmp_path: Path) -> None:
    """One test case for each gate; a figure that doesn't exist is told with those that do."""
    artifact, *_ = model
    data = write(tmp_path / "data.jsonl", [{"text": text, "label": "O"} for text in texts(5)])
    gates = ("--minimum", "accuracy=0", "--maximum", "log_loss=0", "--junit", f"{tmp_path}/gates.xml")
    code, said = whole_runs.command(tmp_path, "gate", f"{artifact}", f"{data}", *gates)
    assert code == ExitCode.GATE_FAILED, said
    suite = ElementTree.parse(tmp_path / "gates.xml").getroot()  # noqa: S314 - our own
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.get("name") for case in suite if len(case)] == ["log_loss"]
    code, said = whole_runs.command(tmp_path, "gate", f"{artifact}", f"{data}", "--minimum", "acuracy=0.5")
    assert code == ExitCode.INVALID_INPUT
    assert "there is no figure 'acuracy'; there are accuracy" in said


@pytest.mark.parametrize(
    ("data", "junit", "reason"),
    [
        ("absent.jsonl", "gates.xml", "ExamplesMissing"),
        (".", "gates.xml", "ExamplesMissing"),
        ("data.jsonl", "absent/gates.xml", "ReportUnwritable"),
        ("data.jsonl", ".", "ReportUnwritable"),
    ],
)
def test_a_wrong_path_is_told_before_anything_is_judged(tmp_path: Path, data: str, junit: str, reason: str) -> None:
    """Even before the model is looked for."""
    write(tmp_path / "data.jsonl", [{"text": "a", "label": "O"}])
    with pytest.raises(InputError) as refused:
        command.run(command.parse(["absent", str(tmp_path / data), "--junit", str(tmp_path / junit)]))
    assert refused.value.reason == reason
    assert str(tmp_path) in refused.value.message


def test_examples_may_be_behind_a_uri(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here or in a store, several files as well as one."""
    artifact, *_ = _made(tmp_path, tiny, "bert", Task.SEQUENCE_CLASSIFICATION)
    rows = [{"text": text, "label": LABELS[number % 3]} for number, text in enumerate(texts(9))]
    both = write(tmp_path / "all.jsonl", rows)
    write(tmp_path / "part-0.jsonl", rows[:4])
    write(tmp_path / "part-1.jsonl", rows[4:])
    with serving({"all.jsonl": both.read_bytes()}) as store:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": store}).items():
            monkeypatch.setenv(name, value)
        given = [str(both), f"file://{tmp_path}/part-*.jsonl", "s3://books/all.jsonl"]
        figures = [command.run(command.parse([str(artifact), data])).metrics for data in given]
    assert 0 < figures[0]["accuracy"] < 1
    assert figures[0] == figures[1] == figures[2]


@pytest.mark.parametrize("data", ["ftp://me:secret@host/data.jsonl", "file:///secret/../data.jsonl"])
def test_what_is_no_uri_of_examples_is_told_without_being_shown(data: str) -> None:
    """Before the model is looked for."""
    with pytest.raises(InputError) as refused:
        command.run(command.parse(["absent", data]))
    assert refused.value.reason == "SourceInvalid"
    assert "secret" not in refused.value.message
