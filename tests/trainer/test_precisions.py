"""An artifact's graphs besides fp32's: measured on examples, kept when they are accurate enough."""

import json
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import word_graphs
from families import FAMILIES

from cloze_api.finetune import FineTuneJobSpec
from cloze_api.manifest import Manifest, verify, version_tags
from cloze_api.names import TAG_PRECISIONS
from cloze_api.precision import Measured, Precision, graph_file
from cloze_api.privacy import Privacy
from cloze_api.profile import PROFILE_FILE, Profile
from cloze_api.task import Task
from cloze_trainer import artifact, import_options, importing, precisions, sample
from cloze_trainer.base import BaseModel
from cloze_trainer.data.examples import Row, batches
from cloze_trainer.data.labelled import Labelled
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.errors import InputError
from cloze_trainer.finetune import FineTuning
from cloze_trainer.model import build
from cloze_trainer.preparation import PreparedDataset
from cloze_trainer.quality.judgement import Judgement
from cloze_trainer.tasks import rows
from cloze_trainer.trial import Trial

TEXTS = ["Ada Lovelace lived in London.", "hello", "where is it? in a garden", "no."]
LABELS = ["O", "B-PER", "I-PER"]
EXAMPLES: dict[Task, list[dict[str, Any]]] = {
    Task.SEQUENCE_CLASSIFICATION: [{"text": text, "label": LABELS[len(text) % 3]} for text in TEXTS],
    Task.TOKEN_CLASSIFICATION: [{"tokens": text.split(), "labels": ["O"] * len(text.split())} for text in TEXTS],
    Task.FILL_MASK: [{"text": text} for text in TEXTS],
    Task.EMBEDDING: [{"text": text} for text in TEXTS],
    Task.QUESTION_ANSWERING: [{"question": "who?", "context": text * 3} for text in TEXTS],
}
METRICS = {
    Task.SEQUENCE_CLASSIFICATION: "accuracy",
    Task.TOKEN_CLASSIFICATION: "entity_f1",
    Task.FILL_MASK: "accuracy",
    Task.EMBEDDING: "cosine",
    Task.QUESTION_ANSWERING: "span_f1",
}
BOTH = (Precision.INT8, Precision.FP16)


def examples(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A file of examples."""
    path = folder / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def convert(tmp_path: Path, task: Task, **options: Any) -> Manifest:
    """Import the folder `model`; the verified manifest."""
    given = {"name": "tiny", "register": False, "pooling": None, "normalize": False, "matryoshka": []}
    given |= {"max_accuracy_loss": 1.0} | options
    importing.run(
        import_options.Asked(source=str(tmp_path / "model"), output=tmp_path / "artifact", task=task, **given)
    )
    return verify(tmp_path / "artifact")


def outputs(folder: Path, manifest: Manifest, precision: Precision, ids: Any, mask: Any) -> Any:
    """What a graph gives."""
    session = onnxruntime.InferenceSession(str(folder / graph_file(precision)), providers=["CPUExecutionProvider"])
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return session.run([manifest.output], {name: given[name] for name in manifest.inputs})[0]


@pytest.mark.parametrize(
    ("family", "task"),
    [
        *(("bert", task) for task in EXAMPLES),
        *((family, Task.SEQUENCE_CLASSIFICATION) for family in FAMILIES if family != "bert"),
    ],
)
def test_an_answer_is_close_to_fp32s_whatever_stands_beside_it(
    tmp_path: Path, tiny: Any, family: str, task: Task
) -> None:
    """For every architecture and task; the manifest tells how close, on how many examples."""
    tiny.save(tmp_path / "model", family, task)
    options = {"pooling": "mean", "normalize": True} if task is Task.EMBEDDING else {}
    path = examples(tmp_path, EXAMPLES[task])
    manifest = convert(tmp_path, task, precision=BOTH, examples=path, **options)
    assert set(manifest.precisions) == set(BOTH)
    assert version_tags(manifest)[TAG_PRECISIONS] == "fp32, int8, fp16"
    for precision, tolerance in ((Precision.INT8, 0.3), (Precision.FP16, 0.02)):
        measured = manifest.precisions[precision]
        assert 0 < measured.difference < tolerance
        assert (measured.metric, measured.examples) == (METRICS[task], len(TEXTS))
        assert measured.fp32 is not None
        ids = np.array([[2, 7, 9, 8, 12, 3], [2, 11, 3, 0, 0, 0], [2, 6, 6, 6, 6, 3]])
        mask = np.array([[1] * 6, [1, 1, 1, 0, 0, 0], [1] * 6])
        together = outputs(tmp_path / "artifact", manifest, precision, ids, mask)
        alone = outputs(tmp_path / "artifact", manifest, precision, ids[:1], mask[:1])
        # To what the order of a sum changes, and a value that this moves over the edge to the next integer.
        np.testing.assert_allclose(together[0], alone[0], atol=2e-3)
    assert np.abs(manifest.precisions[Precision.INT8].difference) > manifest.precisions[Precision.FP16].difference


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 8-bit graphs forget their weights."""

    def forget(model: onnx.ModelProto) -> int:
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 2:
                zeros = np.zeros(tensor.dims, np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
        return 1

    monkeypatch.setattr(precisions, "quantize", forget)


def test_one_that_is_not_accurate_enough_ends_an_import(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left behind, and the message has the figures."""
    tiny.save(tmp_path / "model", "bert", Task.EMBEDDING)
    spoil(monkeypatch)
    path = examples(tmp_path, EXAMPLES[Task.EMBEDDING])
    options = {"pooling": "mean", "precision": (Precision.INT8,), "examples": path, "max_accuracy_loss": 0.005}
    with pytest.raises(InputError, match=r"int8 has cosine .* where fp32 has 1\.0000") as refused:
        convert(tmp_path, Task.EMBEDDING, **options)
    assert refused.value.reason == "PrecisionInaccurate"
    assert not (tmp_path / "artifact").exists()


def test_sixteen_bits_need_no_examples(tmp_path: Path, tiny: Any) -> None:
    """Their outputs are compared on made-up texts; int8's can't be judged so."""
    tiny.save(tmp_path / "model", "bert", Task.FILL_MASK)
    with pytest.raises(InputError, match="--examples"):
        convert(tmp_path, Task.FILL_MASK, precision=(Precision.INT8,))
    measured = convert(tmp_path, Task.FILL_MASK, precision=(Precision.FP16,)).precisions[Precision.FP16]
    assert measured.difference < 0.01
    assert (measured.metric, measured.value) == ("", None)


@pytest.mark.parametrize(
    ("options", "rows", "reason"),
    [
        ({"max_accuracy_loss": 2.0}, EXAMPLES[Task.SEQUENCE_CLASSIFICATION], "LossInvalid"),
        ({}, [{"text": "hello", "label": "unheard-of"}], "LabelUnknown"),
        ({}, [], "DatasetEmpty"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, tiny: Any, options: dict[str, Any], rows: list[dict[str, Any]], reason: str
) -> None:
    """Before anything is published."""
    tiny.save(tmp_path / "model", "bert", Task.SEQUENCE_CLASSIFICATION)
    given = {"precision": (Precision.INT8,), "examples": examples(tmp_path, rows)} | options
    with pytest.raises(InputError) as refused:
        convert(tmp_path, Task.SEQUENCE_CLASSIFICATION, **given)
    assert refused.value.reason == reason
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize("task", EXAMPLES)
def test_an_import_is_tried_by_slices(tmp_path: Path, tiny: Any, task: Task) -> None:
    """Those that have enough examples, whichever the task."""
    tiny.save(tmp_path / "model", "bert", task)
    rows = [
        {**row, "metadata": {"language": language}}
        for language, count in (("de", 30), ("en", 31), ("fr", 29))
        for row in islice(cycle(EXAMPLES[task]), count)
    ]
    options = {"pooling": "mean"} if task is Task.EMBEDDING else {}
    given = {"precision": (Precision.INT8,), "examples": examples(tmp_path, rows), "max_accuracy_loss": 1.0}
    worst = convert(tmp_path, task, **given, **options).precisions[Precision.INT8].worst_slice
    assert worst is not None
    assert (worst.name, worst.examples) in (("language=de", 30), ("language=en", 31))


def test_tokens_that_are_hidden_count_as_what_they_were(tmp_path: Path, tiny: Any) -> None:
    """The first one is, and is all that the vocabulary lacks of this text."""
    tiny.save(tmp_path / "model", "bert", Task.FILL_MASK)
    convert(tmp_path, Task.FILL_MASK, examples=examples(tmp_path, [{"text": "☃ hello"}]))
    found = Profile.model_validate_json((tmp_path / "artifact" / PROFILE_FILE).read_bytes())
    assert found.unknown.counts[0] == 0


@pytest.mark.parametrize("task", EXAMPLES)
def test_examples_make_a_profile(tmp_path: Path, tiny: Any, task: Task) -> None:
    """Without another precision, too; what a classifier says of them is in it."""
    tiny.save(tmp_path / "model", "bert", task)
    pooling = {"pooling": "mean"} if task is Task.EMBEDDING else {}
    manifest = convert(tmp_path, task, examples=examples(tmp_path, EXAMPLES[task]), **pooling)
    assert PROFILE_FILE in manifest.files
    found = Profile.model_validate_json((tmp_path / "artifact" / PROFILE_FILE).read_bytes())
    assert found.inputs == sum(found.tokens.counts) == sum(found.unknown.counts) == len(EXAMPLES[task])
    items = {
        Task.SEQUENCE_CLASSIFICATION: len(EXAMPLES[task]),
        Task.TOKEN_CLASSIFICATION: sum(len(row.get("tokens", ())) for row in EXAMPLES[task]),
    }
    assert sum(found.predictions.values()) == items.get(task, 0)
    assert set(found.predictions) <= set(manifest.labels)


class Tuned:
    """A fine-tuning that is done: a random model of texts, and the folder of what it was made from."""

    CONFIG = EncoderConfig(
        vocab_size=60, layers=1, hidden_size=32, heads=2, intermediate_size=64, max_length=16, dropout=0
    )

    def __init__(self, folder: Path, slices: Sequence[Sequence[str]] = ((),) * 9, **export: Any) -> None:
        """slices: of each of nine test examples, of which one makes a slice."""
        spec = {
            "base": {"model": {"name": "x", "version": "1"}},
            "task": "sequence-classification",
            "dataset": {"train": "file:///a", "test": "file:///b"},
            "registry": {"name": "x"},
            "evaluation": {"minSliceExamples": 1},
            "export": export,
        }
        self.spec = FineTuneJobSpec.model_validate(spec)
        random = np.random.default_rng(0)
        lengths = random.integers(4, 16, size=9)
        part = Labelled(
            tuple(random.integers(5, 60, size=length) for length in lengths),
            tuple(random.integers(0, 2, size=1) for _ in lengths),
            lengths,
            0,
            0,
        )
        rows.save(folder, "test", part)
        # Fewer, so that it can be told which of them something was made of.
        rows.save(folder, "train", Labelled(part.ids[:5], part.targets[:5], part.lengths[:5], 0, 0))
        (folder / "test-slices.json").write_text(json.dumps(slices))
        (folder / "test-key.json").write_text("null")
        (folder / "dataset.json").write_text(json.dumps({"labels": ["ham", "spam"], "max_length": 16}))
        (folder / "tokenizer.json").write_text("{}")
        (folder / "tokenizer_config.json").write_text("{}")
        base = BaseModel(
            folder=folder,
            name="x/1",
            digest="sha256:0",
            special_tokens=SPECIAL_IDS,
            lowercase=True,
            config=self.CONFIG,
        )
        self.workload = FineTuning(self.spec, PreparedDataset(folder, base, {}), torch.device("cpu"))
        self.model = build(self.workload.task, self.CONFIG, 2)
        self.run: Any = SimpleNamespace(
            job=SimpleNamespace(spec=self.spec),
            artifact=folder / "artifact",
            label="a/b",
            identity="u",
            kind="FineTuneJob",
        )

    def publish(self) -> Manifest:
        """As the worker does after the training."""
        artifact.write(self.run, self.workload, self.model, Judgement({"accuracy": 0.5}), {})
        return verify(self.run.artifact)


def test_a_fine_tuning_publishes_the_precisions_that_it_is_asked_for(tmp_path: Path) -> None:
    """Tried on the evaluation's examples; its figures go where fp32's are."""
    tuned = Tuned(tmp_path, precisions=["int8", "fp16"], maxAccuracyLoss=1)
    manifest = tuned.publish()
    assert {*manifest.precisions} == set(BOTH)
    assert manifest.precisions[Precision.INT8].examples == 9
    assert manifest.precisions[Precision.INT8].calibration_examples == 0
    assert manifest.precisions[Precision.FP16].latency_ms == manifest.evaluation["latency_ms_fp16"]
    assert manifest.evaluation["accuracy_int8"] == manifest.precisions[Precision.INT8].value
    assert artifact.left_out(tuned.run, manifest) == ""
    # Without slices nothing is told of them, and older servers read the manifest.
    assert "worst_slice" not in (tuned.run.artifact / "manifest.json").read_text()
    ids = np.array([[2, 7, 9, 8, 12, 3]])
    fp32, int8 = (
        outputs(tuned.run.artifact, manifest, each, ids, ids * 0 + 1) for each in (Precision.FP32, Precision.INT8)
    )
    np.testing.assert_allclose(int8, fp32, atol=0.05)
    assert not np.array_equal(int8, fp32)


def test_a_fine_tuning_tells_the_slice_that_loses_most(tmp_path: Path) -> None:
    """Of the evaluation's slices, in the manifest, the figures and the card."""
    tuned = Tuned(tmp_path, [["language=de"]] * 4 + [["language=en"]] * 5, precisions=["int8"], maxAccuracyLoss=1)
    manifest = tuned.publish()
    worst = manifest.precisions[Precision.INT8].worst_slice
    assert worst is not None
    assert worst.examples == {"language=de": 4, "language=en": 5}[worst.name]
    assert manifest.evaluation["worst_slice_loss_int8"] == worst.loss
    assert f"In int8 the slice that loses most is `{worst.name}`" in (tuned.run.artifact / "README.md").read_text()


SLICED: list[tuple[Task, str, Callable[[int], dict[str, Any]], str]] = [
    (
        Task.TOKEN_CLASSIFICATION,
        "single-label",
        lambda n: {"tokens": ["x", "y"], "labels": ["C", "AB"[n % 2]]},
        "macro_f1",
    ),
    (
        Task.TOKEN_CLASSIFICATION,
        "single-label",
        lambda n: {"tokens": ["x", "y"], "labels": ["O", ["B-A", "B-B"][n % 2]]},
        "entity_f1",
    ),
    (
        Task.SEQUENCE_CLASSIFICATION,
        "multi-label",
        lambda n: {"text": "xy"[n % 2], "labels": ["A", "B"][n % 2 :]},
        "micro_f1",
    ),
    (Task.SEQUENCE_CLASSIFICATION, "regression", lambda n: {"text": "x" * (n + 1), "score": n}, "r2"),
    (
        Task.QUESTION_ANSWERING,
        "single-label",
        lambda n: {
            "id": str(n),
            "question": "who",
            "context": "Ada and Bob",
            "answers": {"text": ["Ada"], "answer_start": [0]},
        },
        "span_f1",
    ),
    (Task.EMBEDDING, "single-label", lambda n: {"text": f"{n} x", "positive": f"{n} y"}, "cosine"),
]


@pytest.mark.parametrize(("task", "problem", "line", "metric"), SLICED)
def test_each_tasks_slices_are_tried(
    tuned: Callable[..., Any], task: Task, problem: str, line: Callable[[int], dict[str, Any]], metric: str
) -> None:
    """By what all examples are judged by; where fp32 is the reference, it is perfect in a slice, too."""
    lines = [{**line(number), "metadata": {"part": "whole" if number < 6 else "few"}} for number in range(8)]
    evaluation = {"minSliceExamples": 3}
    export = {"precisions": ["int8"], "maxAccuracyLoss": 1}
    made = tuned(task, lines, lines, problem=problem, evaluation=evaluation, export=export)
    measured = verify(made.publish(Judgement({}))).precisions[Precision.INT8]
    worst = measured.worst_slice
    assert worst is not None
    assert (measured.metric, worst.name) == (metric, "part=whole")
    assert worst.examples == (12 if task is Task.EMBEDDING else 6)
    assert metric in {"macro_f1", "micro_f1", "entity_f1"} or worst.fp32 == pytest.approx(1)
    assert worst.chance >= 0


def test_a_fine_tuning_goes_on_without_one_that_is_not_accurate_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifact has the others, and the outcome says which is missing."""
    monkeypatch.setattr(precisions, "verdict", lambda precision, *_: "bad" if precision is Precision.INT8 else "")
    tuned = Tuned(tmp_path, precisions=["int8", "fp16"])
    manifest = tuned.publish()
    assert {*manifest.precisions} == {Precision.FP16}
    assert graph_file(Precision.INT8) not in manifest.files
    assert "without int8" in artifact.left_out(tuned.run, manifest)


def test_a_fine_tuning_tries_ranges_of_its_training_texts_where_each_tokens_own_are_not_accurate_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Judged by the same gate; the manifest says on how many texts it was calibrated, and what each takes."""
    monkeypatch.setattr(precisions, "verdict", lambda _, measured, *__: "" if measured.calibration_examples else "bad")
    tuned = Tuned(tmp_path, precisions=["int8"], maxAccuracyLoss=1)
    manifest = tuned.publish()
    measured = manifest.precisions[Precision.INT8]
    assert (measured.calibration_examples, measured.examples) == (5, 9)
    assert measured.latency_ms
    assert measured.fp32_latency_ms
    assert artifact.left_out(tuned.run, manifest) == ""
    assert '"event": "precision measured anew", "precision": "int8", "why": "bad"' in capfd.readouterr().err
    kinds = {node.op_type for node in onnx.load(tuned.run.artifact / graph_file(Precision.INT8)).graph.node}
    assert "DequantizeLinear" in kinds
    ids = np.array([[2, 7, 9, 8, 12, 3]])
    fp32, int8 = (
        outputs(tuned.run.artifact, manifest, each, ids, ids * 0 + 1) for each in (Precision.FP32, Precision.INT8)
    )
    np.testing.assert_allclose(int8, fp32, atol=0.05)
    assert not np.array_equal(int8, fp32)


def test_a_private_fine_tuning_tells_nothing_of_its_training_texts_by_their_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No noise covers them: an int8 that isn't accurate enough is left out at once, and log and outcome say why."""
    monkeypatch.setattr(precisions, "verdict", lambda _, measured, *__: "" if measured.calibration_examples else "bad")
    tuned = Tuned(tmp_path, precisions=["int8"], maxAccuracyLoss=1)
    tuned.run.job.spec = tuned.spec.model_copy(update={"privacy": Privacy(epsilon=8, delta=1e-5)})
    manifest = tuned.publish()
    assert manifest.precisions == {}
    why = "int8 isn't made once more from training texts, for which spec.privacy doesn't account"
    assert f'"why": "{why}"' in capfd.readouterr().err
    assert why in artifact.left_out(tuned.run, manifest)


def test_a_fine_tuning_makes_fp32_alone_where_nothing_else_is_asked_for(tmp_path: Path) -> None:
    """As before."""
    assert Tuned(tmp_path).publish().precisions == {}


@pytest.mark.parametrize(
    ("value", "allowed", "kept"), [(0.951, 0.005, False), (0.955, 0.005, True), (0.97, 0.0, True), (0.9, 0.1, True)]
)
def test_the_gate_is_the_loss_of_the_metric(value: float, allowed: float, kept: bool) -> None:
    """A gain is no loss, and the bound itself is allowed."""
    measured = Measured(difference=0.1, metric="accuracy", fp32=0.96, value=value, examples=1000)
    assert (precisions.verdict(Precision.INT8, measured, allowed) == "") == kept


VOCABULARY = {"en": 0, "de": 1, "ruined": 2}


def stand_in(folder: Path, texts: Sequence[tuple[str, str]], *, sliced: bool = True) -> Trial:
    """A graph that knows the class of texts by their second token, 1 for each, and a trial on examples of these words
    and languages.
    """
    word_graphs.write(folder / graph_file(Precision.FP32), np.array([[0, 1]] * len(VOCABULARY)))
    tried = [
        Row(np.array([0, VOCABULARY[word], 0]), np.zeros(3, np.int64), np.array([1]), (f"language={language}",))
        for word, language in texts
    ]
    return Trial(
        task=Task.SEQUENCE_CLASSIFICATION,
        inputs=["input_ids"],
        output="logits",
        labels=["ham", "spam"],
        batches=batches(tried, pad_id=0, wide=False),
        examples=len(tried),
        slices=["language=de", "language=en"] if sliced else [],
    )


def ruin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 8-bit graphs take one word for the other class."""

    def ruined(model: onnx.ModelProto) -> int:
        (table,) = [tensor for tensor in model.graph.initializer if tensor.name == "table"]
        rows = onnx.numpy_helper.to_array(table).copy()
        rows[VOCABULARY["ruined"]] = [1, 0]
        table.CopyFrom(onnx.numpy_helper.from_array(rows, "table"))
        return 1

    monkeypatch.setattr(precisions, "quantize", ruined)


SMALL = [("en", "en")] * 970 + [("de", "de")] * 18 + [("ruined", "de")] * 12


def test_one_that_ruins_a_slice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is accurate enough over all examples; the reason names the slice and both figures."""
    ruin(monkeypatch)
    added = precisions.add(tmp_path, [Precision.INT8], stand_in(tmp_path, SMALL), 0.02)
    assert (added.measured, (tmp_path / graph_file(Precision.INT8)).exists()) == ({}, False)
    assert (
        "int8 has accuracy 0.6000 where fp32 has 1.0000, on the 30 examples of the slice language=de: 40.00 points less"
        in added.refused[Precision.INT8]
    )
    # Neither where nothing is known of slices, nor where so much may be lost.
    assert not precisions.add(tmp_path, [Precision.INT8], stand_in(tmp_path, SMALL, sliced=False), 0.02).refused
    assert not precisions.add(tmp_path, [Precision.INT8], stand_in(tmp_path, SMALL), 0.4).refused


@pytest.mark.parametrize(("worse", "certain"), [(1, False), (4, False), (5, True), (30, True)])
def test_what_chance_makes_of_a_small_slice_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worse: int, certain: bool
) -> None:
    """Four answers of thirty that got worse are as likely as four heads in a row; the slice is told all the same."""
    ruin(monkeypatch)
    few = [("en", "en")] * 5970 + [("de", "de")] * (30 - worse) + [("ruined", "de")] * worse
    trial = stand_in(tmp_path, few)
    worst = precisions.add(tmp_path, [Precision.INT8], trial, 1).measured[Precision.INT8].worst_slice
    assert worst is not None
    assert (worst.name, worst.examples, worst.certain) == ("language=de", 30, certain)
    assert worst.loss == pytest.approx(worse / 30)
    assert bool(precisions.add(tmp_path, [Precision.INT8], trial, 0.005).refused) == certain


def test_a_loss_that_is_certain_is_worse_than_a_larger_one_of_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a tiny slice would hide another's."""
    ruin(monkeypatch)
    texts = [("en", "en")] * 900 + [("ruined", "en")] * 40 + [("de", "de")] * 27 + [("ruined", "de")] * 3
    worst = (
        precisions.add(tmp_path, [Precision.INT8], stand_in(tmp_path, texts), 0.05).measured[Precision.INT8].worst_slice
    )
    assert worst is not None
    assert (worst.name, worst.certain) == ("language=en", True)
    assert worst.loss < 3 / 30


def test_slices_are_tried_on_enough_of_their_examples(tmp_path: Path) -> None:
    """Also where few of them are among those that all examples are tried by; of others none are added."""
    count = 400
    part = Labelled(
        tuple(np.array([2, number, 3]) for number in range(count)), (np.array([0]),) * count, np.full(count, 3), 0, 0
    )
    slices = [["all", *(["small"] if number < 30 else ["rare"] if number < 35 else [])] for number in range(count)]
    drawn = sample.draw(rows.Rows.of(part, per_token=False, pad=0), slices, 20, 100)
    assert len(drawn.rows) == 100
    assert drawn.slices == ["all", "small"]
    together = [*drawn.rows, *drawn.beside]
    assert sum("small" in row.slices for row in together) == 20
    assert len({int(row.ids[1]) for row in together}) == len(together)
    assert all(list(row.slices) == slices[row.ids[1]] for row in together)
    assert {name for row in drawn.beside for name in row.slices} == {"all", "small"}


def test_the_command_line_says_what_precisions_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """And reads several."""
    given = ["model", "--task", "fill-mask", "--name", "x", "--output", "y"]
    assert import_options.parse([*given, "--precision", "int8,fp16"]).precision == BOTH
    with pytest.raises(SystemExit):
        import_options.parse([*given, "--precision", "int4"])
    assert "'int4' is none of int8, fp16" in capsys.readouterr().err


def test_other_examples_are_another_import(tmp_path: Path, tiny: Any) -> None:
    """The same command again finds what an earlier one has written; with other examples it isn't that."""
    tiny.save(tmp_path / "model", "bert", Task.SEQUENCE_CLASSIFICATION)
    path = examples(tmp_path, EXAMPLES[Task.SEQUENCE_CLASSIFICATION])
    options = {"precision": (Precision.INT8,), "examples": path}
    first = convert(tmp_path, Task.SEQUENCE_CLASSIFICATION, **options)
    assert convert(tmp_path, Task.SEQUENCE_CLASSIFICATION, **options) == first
    path.write_text(path.read_text() * 2)
    with pytest.raises(InputError, match="something else"):
        convert(tmp_path, Task.SEQUENCE_CLASSIFICATION, **options)
