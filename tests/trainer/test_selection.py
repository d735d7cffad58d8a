"""Which step is taken, and by which examples: never by those that the model is tested with."""

import json
import math
import random
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import finetune_of
from tuning import ALONE

from cloze_api.early_stopping import EarlyStopping
from cloze_api.task import Problem, Task
from cloze_trainer import preparation, tasks
from cloze_trainer.data import likeness
from cloze_trainer.data.labelled import Example
from cloze_trainer.data.validation import split
from cloze_trainer.errors import InputError
from cloze_trainer.progress import ProgressFile
from cloze_trainer.selection import Choice, Selection, told

FIGURES = st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=12)


def chosen(values: list[float], **asked: Any) -> tuple[Choice, int]:
    """What comes of evaluations after the steps 1, 2, …; and how many there were."""
    selection = Selection(EarlyStopping.model_validate(asked), ("accuracy", "spearman"))
    choice, name = None, asked.get("figure", "spearman")
    for step, value in enumerate(values, 1):
        choice = selection.after(choice, step, {f"validation_{name}": value})
        if selection.over(choice):
            break
    assert choice is not None
    return choice, step


def test_the_training_ends_when_patience_does() -> None:
    """Evaluations in a row without a better one; one that is only as good isn't."""
    assert chosen([0.5, 0.6, 0.6, 0.55, 0.4, 0.9], patience=3) == (Choice("spearman", 2, 0.6, 3), 5)
    assert chosen([0.5, 0.6, 0.6, 0.55, 0.9], patience=3) == (Choice("spearman", 5, 0.9, 0), 5)


def test_a_little_better_does_not_count() -> None:
    """By no more than the bound, from the best one and not from the last."""
    assert chosen([0.5, 0.54, 0.58], patience=2, minDelta=0.05) == (Choice("spearman", 3, 0.58, 0), 3)
    assert chosen([0.5, 0.54, 0.54], patience=2, minDelta=0.05) == (Choice("spearman", 1, 0.5, 2), 3)


@pytest.mark.parametrize("figure", ["log_loss", "rmse", "calibration_error", "false_positive_rate"])
def test_of_losses_and_errors_less_is_better(figure: str) -> None:
    """The others are better when they are more."""
    assert chosen([0.5, 0.4, 0.6], figure=figure)[0].step == 2


@given(FIGURES, st.integers(1, 4))
def test_the_best_of_what_was_seen_is_taken(values: list[float], patience: int) -> None:
    """What isn't a number is worse than any; a run of `patience` evaluations without a better one ends the training."""
    choice, seen = chosen(values, patience=patience)
    worth = [-math.inf if math.isnan(value) else value for value in values[:seen]]
    assert worth[choice.step - 1] == max(worth)
    assert choice.step == worth.index(max(worth)) + 1
    assert choice.waited == seen - choice.step
    assert seen == len(values) or choice.waited == patience


def test_a_figure_that_the_examples_do_not_give_is_told() -> None:
    """As of questions that all have an answer."""
    selection = Selection(EarlyStopping(figure="unanswerable_accuracy"), ("f1",))
    with pytest.raises(InputError, match="unanswerable_accuracy"):
        selection.after(None, 1, {"validation_f1": 1.0})


def test_why_it_ended_is_told() -> None:
    """With the step, the figure and the number of evaluations."""
    about, figures = told(Choice("f1", 30, 0.51239, 3), 60, 90)
    assert about["told"] == (
        "step 30 is taken, of the best validation f1 (0.5124): the 3 evaluations since weren't better, and the "
        "training ended at step 60 of 90"
    )
    assert figures == {"best_step": 30, "last_step": 60, "validation_f1": 0.51239}
    assert told(Choice("f1", 90, 0.5, 0), 90, 90)[0]["told"].endswith("(0.5000) in all 90 steps")


# --- which examples are kept

WORDS = [f"{first}{second}" for first in ("ship", "rain", "road", "tree") for second in ("s", "ing", "ed", "er", "y")]


def examples(seed: int, count: int) -> list[Example]:
    """Texts of ten words, of which a third repeats another one but for a word at its end."""
    chance = random.Random(seed)  # noqa: S311 - a test's
    found: list[Example] = []
    for number in range(count):
        words = [chance.choice(WORDS) for _ in range(30)]
        if found and chance.random() < 0.3:
            words = [*chance.choice(found).words[0].split()[:30], "again"]
        found.append(Example(f"train:{number}", (" ".join(words),), (chance.choice("abc"),)))
    return [*found, Example("train:rare", ("one of its kind",), ("rare",))]


def labels(example: Example) -> tuple[str, ...]:
    return example.labels


@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_is_unlike_what_is_trained_on(seed: int) -> None:
    """About as much as was asked for, never more, no near-duplicate across; each label is trained on."""
    lines = examples(seed, 60)
    found = split(lines, labels, 0.25)
    assert 10 <= len(found.kept) <= 15
    assert sorted(each.place for each in (*found.train, *found.kept)) == sorted(each.place for each in lines)
    assert {label for each in found.train for label in each.labels} == {"a", "b", "c", "rare"}
    groups = likeness.groups([*found.train, *found.kept])
    assert set(groups[: len(found.train)]).isdisjoint(groups[len(found.train) :])
    assert len(set(groups)) < len(groups)


def test_what_is_kept_depends_on_the_content_alone() -> None:
    """Not on the order of the lines, which someone may have sorted."""
    lines = examples(1, 40)
    shuffled = random.Random(2).sample(lines, len(lines))  # noqa: S311 - a test's
    kept = [{each.place for each in split(order, labels, 0.3).kept} for order in (lines, shuffled)]
    assert kept[0] == kept[1]


def test_how_characters_are_composed_doesnt_decide_what_is_kept() -> None:
    """Composed or not, a text is the same one."""
    lines = [Example(f"x:{number}", (f"caf\u00e9 w{number} x{number} y{number}",), ("a",)) for number in range(40)]
    apart = [replace(line, words=(unicodedata.normalize("NFD", line.words[0]),)) for line in lines]
    kept = [{each.place for each in split(each, labels, 0.3).kept} for each in (lines, apart)]
    assert kept[0] == kept[1]


def test_nothing_can_be_kept_of_examples_that_are_all_alike() -> None:
    """Nor of labels that each occur once."""
    alike = [Example(f"train:{number}", ("the same text each time",), ("ab"[number % 2],)) for number in range(20)]
    single = [Example(f"train:{number}", (f"text {number}",), (f"label {number}",)) for number in range(20)]
    for unfit in (alike, single):
        with pytest.raises(InputError) as refused:
            split(unfit, labels, 0.2)
        assert refused.value.reason == "ValidationEmpty"


# --- tasks

ANSWER = {"text": ["London"], "answer_start": [13]}
TEXT_TASK = Task.SEQUENCE_CLASSIFICATION
LINES: dict[tuple[Task, Problem], Callable[[int, str], dict[str, Any]]] = {
    (TEXT_TASK, Problem.SINGLE_LABEL): lambda number, text: {"text": text, "label": "ab"[number % 2]},
    (TEXT_TASK, Problem.MULTI_LABEL): lambda number, text: {"text": text, "labels": [["a"], ["b"], []][number % 3]},
    (TEXT_TASK, Problem.REGRESSION): lambda number, text: {"text": text, "score": number / 4},
    (Task.TOKEN_CLASSIFICATION, Problem.SINGLE_LABEL): lambda number, text: {
        "tokens": text.split(),
        "labels": ["ab"[(number + place) % 2] for place in range(len(text.split()))],
    },
    (Task.QUESTION_ANSWERING, Problem.SINGLE_LABEL): lambda number, text: {
        "question": text,
        "context": "Ada lived in London.",
        "answers": ANSWER if number % 3 else {"text": [], "answer_start": []},
    },
    (Task.EMBEDDING, Problem.SINGLE_LABEL): lambda number, text: {"text": text, "positive": f"{text} {number}"},
}


@pytest.mark.parametrize(("task", "problem"), LINES)
def test_every_task_is_chosen_by_its_own_figure(tuned: Callable[..., Any], task: Task, problem: Problem) -> None:
    """Of examples that are kept from the training; the test's are looked at once, at the end."""
    rows = [LINES[task, problem](number, f"number {number * number} of many ships") for number in range(24)]
    dataset = {"train": "file:///a", "test": "file:///b", "validationFraction": 0.25}
    optimization = {"batchSequences": 6, "earlyStopping": {"everySteps": 2}}
    made = tuned(task, rows, rows[:8], problem=problem, dataset=dataset, optimization=optimization)
    workload = made.workload
    kept = int(workload.report["examples_validation"])
    assert 3 <= kept <= 6
    assert workload.report["examples"] == 24 - kept
    figures = workload.evaluate(made.model, ALONE)
    assert all(name.startswith("validation_") for name in figures)
    choice = workload.selection.after(None, 2, figures)
    assert choice.figure in {"accuracy", "micro_f1", "spearman", "macro_f1", "f1", "mrr"}
    outputs = workload.outputs(made.model, workload.validation, ALONE)
    workload.test = None
    assert workload.evaluate(made.model, ALONE) == figures
    assert np.isfinite(outputs).all()
    assert [step for step in range(1, 7) if workload.evaluate_after(step)] == [2, 4, 6]


def test_words_with_entities_are_chosen_by_entity_f1() -> None:
    """And without entities by macro F1: by what the champion is compared by."""
    selection = Selection(EarlyStopping(), tasks.of(Task.TOKEN_CLASSIFICATION).main)
    figures = {"validation_accuracy": 0.9, "validation_macro_f1": 0.5}
    assert selection.after(None, 2, figures).figure == "macro_f1"
    assert selection.after(None, 2, {**figures, "validation_entity_f1": 0.2}).figure == "entity_f1"


def test_examples_to_choose_by_that_are_the_tests_are_refused(tmp_path: Path, tiny: Any) -> None:
    """Whatever their file is called; so is a figure that there isn't. Others are prepared beside the test's, and are
    among what was seen before the test.
    """
    tiny.save(tmp_path / "model", "bert", tiny.Task.FILL_MASK)

    def rows(*texts: str) -> list[dict[str, Any]]:
        return [{"text": text, "label": "ab"[number % 2]} for number, text in enumerate(texts)]

    given = {
        "train": rows("ships at sea", "rain on roads", "a tree", "a lake"),
        "test": rows("one more text of a test", "another text"),
        "validation": rows("something else", "one more text of a test"),
    }

    def prepared(validation: str, **early: Any) -> preparation.PreparedDataset:
        chosen = {**given, "validation": given[validation]}
        asked = {"batchSequences": 2, "earlyStopping": early}
        run, spec = finetune_of(tmp_path, chosen, optimization=asked)
        return preparation.prepare(run, spec, ProgressFile(None))

    for name in ("train", "test"):
        with pytest.raises(InputError, match=f"holds the same as spec.dataset.{name}") as refused:
            prepared(name)
        assert refused.value.reason == "ValidationSame"
    with pytest.raises(InputError, match="there are accuracy") as refused:
        prepared("validation", figure="accurcy")
    assert refused.value.reason == "EarlyStoppingFigureUnknown"
    found = prepared("validation")
    assert len(found.sources) == 3
    assert json.loads((found.folder / "dataset.json").read_text())["test_seen_share"] == 0.5
