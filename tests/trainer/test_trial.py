"""What a precision is judged by: each task's figure finds a graph that is of no use, and passes a faithful one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import word_graphs

from cloze_api.finetune import Export
from cloze_api.precision import Measured, Precision, graph_file
from cloze_api.task import Problem, Task
from cloze_trainer.data import examples
from cloze_trainer.data.examples import Row, batches
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.precisions import verdict
from cloze_trainer.trial import Trial, measure

Table = npt.NDArray[np.float32]

RANDOM: Final = np.random.default_rng(0)


def tried(
    folder: Path,
    task: Task,
    problem: Problem,
    rows: Sequence[Row],
    fp32: Table,
    int8: Table,
    slices: Sequence[str] = (),
) -> Measured:
    """What is measured of a graph that says the one where fp32's says the other."""
    paths = {precision: folder / graph_file(precision) for precision in (Precision.FP32, Precision.INT8)}
    for path, table in zip(paths.values(), (fp32, int8), strict=True):
        word_graphs.write(path, table, per_token=task is Task.QUESTION_ANSWERING)
    trial = Trial(
        task=task,
        problem=problem,
        inputs=["input_ids"],
        output="logits",
        labels=[],
        batches=batches(rows, pad_id=0, wide=False),
        examples=len(rows),
        slices=slices,
    )
    return measure(trial, paths, threads=1)[Precision.INT8]


def kept(measured: Measured) -> bool:
    """By the default bound."""
    return not verdict(Precision.INT8, measured, Export().max_accuracy_loss)


def text(word: int, *slices: str, target: Any = None) -> Row:
    """A text of one word."""
    return Row(np.array([0, word, 0]), np.zeros(3, np.int64), target, slices)


LABELS: Final = 300
ONE_EACH: Final = np.where(np.eye(LABELS, dtype=bool), 1, -1).astype(np.float32)
"""Logits of texts of which each has a label of its own."""


def marked(folder: Path, fp32: Table, int8: Table, *, labelled: bool) -> Measured:
    """Of texts with several labels."""
    truth = np.eye(LABELS, dtype=np.int64)
    rows = [text(word, target=truth[word : word + 1] if labelled else None) for word in range(LABELS)]
    return tried(folder, Task.SEQUENCE_CLASSIFICATION, Problem.MULTI_LABEL, rows, fp32, int8)


@pytest.mark.parametrize("labelled", [True, False])
def test_labels_that_are_never_given_are_lost(tmp_path: Path, labelled: bool) -> None:
    """Though nearly every yes or no is fp32's, since nearly all of them are no."""
    measured = marked(tmp_path, ONE_EACH, np.full_like(ONE_EACH, -1), labelled=labelled)
    assert (measured.metric, measured.fp32, measured.value) == ("micro_f1", 1, 0)
    assert not kept(measured)
    assert not kept(marked(tmp_path, ONE_EACH, np.full_like(ONE_EACH, np.nan), labelled=labelled))
    assert kept(marked(tmp_path, ONE_EACH, ONE_EACH * np.float32(0.9), labelled=labelled))


def test_labels_are_held_to_the_truth_where_there_is_one(tmp_path: Path) -> None:
    """Fewer wrong labels are no loss, though they are others than fp32's."""
    careless = ONE_EACH.copy()
    careless[:, 0] = 1
    assert kept(marked(tmp_path, careless, ONE_EACH, labelled=True))
    assert not kept(marked(tmp_path, careless, ONE_EACH, labelled=False))


def test_labels_where_fp32_gives_none_are_wrong(tmp_path: Path) -> None:
    """There is no label to miss then, and F1 of nothing is as good as can be."""
    silent = np.full_like(ONE_EACH, -1)
    assert kept(marked(tmp_path, silent, silent * 2, labelled=False))
    assert not kept(marked(tmp_path, silent, ONE_EACH, labelled=False))


NUMBERS: Final = RANDOM.normal(3, 2, size=(1000, 1)).astype(np.float32)


def rated(folder: Path, int8: Table, fp32: Table = NUMBERS, *, slices: Sequence[str] = ()) -> Measured:
    """Of texts with a number, of which the last hundred make a slice."""
    rows = [text(word, *(["language=de"] if word >= len(fp32) - 100 else [])) for word in range(len(fp32))]
    return tried(folder, Task.SEQUENCE_CLASSIFICATION, Problem.REGRESSION, rows, fp32, int8, slices)


@pytest.mark.parametrize(
    ("scale", "shift"), [(0.5, 10), (1, 10), (1, 0.2), (0.5, 0), (1.1, 0), (-1, 0), (0, 3), (np.nan, 0), (1e30, 0)]
)
def test_numbers_that_are_shifted_or_scaled_are_others(tmp_path: Path, scale: float, shift: float) -> None:
    """Though they are ordered as fp32's are."""
    measured = rated(tmp_path, (NUMBERS * np.float32(scale) + np.float32(shift)).astype(np.float32))
    assert (measured.metric, measured.fp32) == ("r2", 1)
    assert measured.value is not None
    # Or nothing where one isn't a number.
    assert not measured.value < 0
    assert not kept(measured)


@pytest.mark.parametrize(("share", "passed"), [(0.0, True), (0.06, True), (0.08, False)])
def test_numbers_may_differ_by_seven_hundredths_of_their_spread(tmp_path: Path, share: float, passed: bool) -> None:
    """The square root of half a point, whatever their unit is."""
    noise = RANDOM.permutation(np.resize([-1, 1], NUMBERS.shape)) * share * NUMBERS.std()
    for unit in (1, 1000):
        measured = rated(tmp_path, ((NUMBERS + noise) * unit).astype(np.float32), NUMBERS * np.float32(unit))
        assert measured.value == pytest.approx(1 - share**2, abs=1e-4)
        assert kept(measured) == passed


def test_equal_numbers_may_differ_by_rounding(tmp_path: Path) -> None:
    """There is no spread to hold differences to."""
    same = np.full_like(NUMBERS, 3)
    assert kept(rated(tmp_path, same + np.float32(1e-6), same))
    assert not kept(rated(tmp_path, same + np.float32(0.1), same))


def test_a_slices_numbers_are_held_to_the_spread_of_all(tmp_path: Path) -> None:
    """They may be nearly equal, and matter as little as elsewhere; a shift of that slice alone is found."""
    alike = NUMBERS.copy()
    alike[-100:] = RANDOM.normal(3, 0.001, size=(100, 1))
    for shift, passed in ((0.05, True), (0.4, False)):
        int8 = alike.copy()
        int8[-100:] += shift
        measured = rated(tmp_path, int8, alike, slices=["language=de"])
        assert measured.value is not None
        assert measured.value > 0.995
        assert measured.worst_slice is not None
        assert measured.worst_slice.value == pytest.approx(1 - (shift / alike.std()) ** 2, abs=1e-3)
        assert kept(measured) == passed


NONE, QUESTION, SEPARATOR, PLAIN, BEGIN, END = range(6)
SPANS: Final = np.array([[0, 0], [9, 9], [8, 8], [-5, -5], [5, -5], [-5, 5]], np.float32)
"""Logits of each word as start and end; of the question and of what ends a row they mean nothing."""


def answered(folder: Path, int8: Table) -> Measured:
    """Of a hundred windows, of which one has an answer, of two words."""
    segments = np.array([0, 0, 0, 1, 1, 1, 1])
    contexts = [[BEGIN, END, PLAIN], *[[PLAIN, PLAIN, PLAIN]] * 99]
    rows = [Row(np.array([NONE, QUESTION, SEPARATOR, *words, SEPARATOR]), segments) for words in contexts]
    return tried(folder, Task.QUESTION_ANSWERING, Problem.SINGLE_LABEL, rows, SPANS, int8)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_answers_that_are_never_given_are_lost(tmp_path: Path) -> None:
    """Though most windows of a long context have none."""
    silent = SPANS.copy()
    silent[NONE] = 20
    measured = answered(tmp_path, silent)
    assert (measured.metric, measured.fp32, measured.value) == ("span_f1", 1, 0)
    assert not kept(measured)
    assert not kept(answered(tmp_path, np.full_like(SPANS, np.nan)))
    assert kept(answered(tmp_path, SPANS * np.float32(0.9)))


def test_answers_are_held_to_fp32s_by_their_tokens(tmp_path: Path) -> None:
    """Of two words one is left: the F1 of one hit, one said and two right."""
    short = SPANS.copy()
    short[BEGIN, 1] = 6
    assert answered(tmp_path, short).value == pytest.approx(2 / 3)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_examples_context_is_told_from_its_question(tmp_path: Path, tiny: Any, family: str) -> None:
    """Also for models that have no types of texts."""
    _, tokenizer = tiny.save(tmp_path, family, Task.QUESTION_ANSWERING)
    path = tmp_path / "examples.jsonl"
    path.write_text('{"question": "who?", "context": "Ada and Bob"}\n', encoding="utf-8")
    (row,) = examples.read(
        *(path, Task.QUESTION_ANSWERING, Problem.SINGLE_LABEL, tokenizer.backend_tokenizer),
        special=SPECIAL_IDS,
        labels=[],
        max_length=32,
    )
    context = tokenizer("Ada and Bob", add_special_tokens=False)["input_ids"]
    assert row.ids[row.segments == 1].tolist() == [*context, tokenizer.sep_token_id]
