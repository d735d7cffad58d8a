"""Questions about contexts of any length: trained, scored as SQuAD's script scores, and answered so by a server."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.manifest import verify
from cloze_api.task import Task
from cloze_server.tasks.spans import Evidence, Spans
from cloze_server.windows import Window as Served
from cloze_trainer import tasks
from cloze_trainer.data.labelled import IGNORED
from cloze_trainer.errors import InputError
from cloze_trainer.quality import command, squad
from cloze_trainer.quality.assessment import assess
from cloze_trainer.quality.spans import Window, best_span
from cloze_trainer.tasks.rows import Rows

KIND = tasks.of(Task.QUESTION_ANSWERING)
TOWNS = {"Ada": "London", "Grace": "New York", "Alan": "Manchester", "Mary": "Bath"}
CONTEXT = " ".join(f"{name} lived in {town}, near the old river." for name, town in TOWNS.items())


def line(question: str, context: str, *answers: str) -> dict[str, Any]:
    starts = [context.index(answer) for answer in answers]
    return {"question": question, "context": context, "answers": {"text": list(answers), "answer_start": starts}}


LINES = [
    *(line(f"Where did {name} live?", CONTEXT, town) for name, town in TOWNS.items()),
    *(line(f"Where did {name} live?", f"{name} lived in {town}.", town) for name, town in TOWNS.items()),
    line("Where did Edgar live?", "Nobody knows."),
]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1"),
    [
        ("The Norman conquest", ["norman Conquest."], 1, 1),
        ("in France", ["France"], 0, 2 / 3),
        ("the", ["a"], 1, 1),
        ("", [], 1, 1),
        ("France", [], 0, 0),
        ("", ["France"], 0, 0),
        ("10th and 11th centuries", ["10th", "in the 10th and 11th centuries"], 0, 8 / 9),
        ("a cat a cat", ["cat dog cat"], 0, 4 / 5),
        ("don't", ["dont"], 1, 1),
    ],
)
def test_scores_are_those_of_squad(answer: str, right: list[str], exact: float, f1: float) -> None:
    """By hand from the definition: no articles, punctuation or capitals; repeated words count as often as in both."""
    assert squad.exact_match(answer, right) == exact
    assert squad.f1(answer, right) == pytest.approx(f1)


WORDS = st.lists(st.sampled_from(["the", "cat", "Cat!", "dog", "a", "sat"]), max_size=6).map(" ".join)


@given(WORDS, st.lists(WORDS, max_size=3))
def test_scores_keep_their_order(answer: str, right: list[str]) -> None:
    """An exact match has F1 1, more right answers can't lower a score, and overlap is the same both ways."""
    exact, f1 = squad.exact_match(answer, right), squad.f1(answer, right)
    assert 0 <= exact <= f1 <= 1
    if any(map(squad.normal, right)):
        assert squad.f1(answer, [*right, "bird"]) >= f1
        assert squad.f1(answer, [right[0]]) == squad.f1(right[0], [answer]) or not squad.normal(right[0])


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(2, 12))
def test_the_best_answer_is_the_servers(seed: int, tokens: int, room: int) -> None:
    """Of the same logits, over overlapping windows and words of several tokens."""
    random = np.random.default_rng(seed)
    overlap = room // 4
    spans = [range(tokens)]
    if tokens > room:
        spans = [range(at, min(at + room, tokens)) for at in range(0, tokens - overlap, room - overlap)]
    logits = [random.normal(0, 3, (len(span), 2)).astype(np.float32) for span in spans]
    nones = [tuple(map(float, random.normal(0, 3, 2))) for _ in spans]
    word_of = np.cumsum(random.integers(0, 2, tokens)).tolist()
    word_of = [number - word_of[0] for number in word_of]
    served = Spans(
        [Served(span.start, span.stop, span.start, span.stop) for span in spans],
        [Evidence(own[:, 0], own[:, 1], *none) for own, none in zip(logits, nones, strict=True)],
    )
    ((first, last, score),) = served.best(1, 15, word_of)
    windows = [
        Window(span.start, own, (none[0], none[1])) for span, own, none in zip(spans, logits, nones, strict=True)
    ]
    found = best_span(windows, word_of)
    assert found == (None if served.no_answer >= score else (first, last))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"question": "who?", "context": "Ada", "answers": {"text": ["Ida"], "answer_start": [0]}},
            "AnswerNotInContext",
        ),
        (
            {"question": "who?", "context": "Ada", "answers": {"text": ["Ada"], "answer_start": [1]}},
            "AnswerNotInContext",
        ),
        (
            {"question": "who?", "context": "Ada", "answers": {"text": ["Ada"], "answer_start": [-3]}},
            "AnswerNotInContext",
        ),
        ({"question": "who?", "context": "Ada", "answers": {"text": ["Ada"], "answer_start": []}}, "AnswersInvalid"),
        ({"question": "who?", "context": "Ada", "answers": ["Ada"]}, "AnswersInvalid"),
        ({"question": "who?", "context": "Ada"}, "AnswersInvalid"),
        ({"question": " ", "context": "Ada", "answers": {"text": [], "answer_start": []}}, "TextFieldMissing"),
        ({"data": [], "version": "v2.0"}, "TextFieldMissing"),
    ],
)
def test_a_wrong_line_is_told_by_its_place(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    """And never by what stands there."""
    path = write(tmp_path / "data.jsonl", [LINES[0], row])
    with pytest.raises(InputError, match=f"{path}:2 ") as refused:
        KIND.read([path])
    assert refused.value.reason == reason
    assert "Ada" not in refused.value.message


def test_windows_hold_each_answer_and_say_where_there_is_none(tuned: Callable[..., Any], tmp_path: Path) -> None:
    """Read back from the targets, each answer is its text; a window without it points to [CLS]."""
    made = tuned(Task.QUESTION_ANSWERING, LINES, LINES, max_length=24)
    read = KIND.read([write(tmp_path / "data.jsonl", LINES)])
    part = KIND.tokenize(read, (), made.reader)
    rows = Rows.of(part, per_token=True, pad=0)
    starts, bits_N = rows.items()
    assert max(rows.lengths) == 24
    seen = set()
    for number, own in enumerate(rows.groups()):
        for row in own:
            bits, spans = bits_N[starts[row] : starts[row + 1]], rows.spans[starts[row] : starts[row + 1]]
            (first,), (last,) = np.flatnonzero(bits & 1), np.flatnonzero(bits & 2)
            text = read[number].context[spans[first][0] : spans[last][1]]
            assert (first, last) == (0, 0) or text == read[number].answers[0][0]
            seen.add((number, text))
    assert {number for number, text in seen if text} == set(range(8))
    assert (8, "") in seen
    assert any(len(own) > 2 for own in rows.groups())
    first = part.targets[0]
    assert first[1] == IGNORED, "a question holds no answer"


def test_a_question_leaves_room_for_its_context(tuned: Callable[..., Any], tmp_path: Path) -> None:
    """One that doesn't is told by its place."""
    made = tuned(Task.QUESTION_ANSWERING, LINES, LINES, max_length=24)
    path = write(tmp_path / "long.jsonl", [line("Where did Ada live " * 8, CONTEXT, "London")])
    with pytest.raises(InputError, match=f"{path}:1 has a question that leaves"):
        KIND.tokenize(KIND.read([path]), (), made.reader)


@pytest.mark.anyio
async def test_a_trained_model_answers_as_it_was_scored(tuned: Callable[..., Any], tmp_path: Path) -> None:
    """From lines to a served artifact: figures of the training, of the artifact's graph and of the server's answers are
    the same, over several windows too.
    """
    # Twice what most seeds need: processors round otherwise, and with that some learn it later.
    made = tuned(Task.QUESTION_ANSWERING, LINES, LINES, max_length=24, steps=600)
    judged = made.judge()
    assert judged.figures["exact_match"] >= 0.8
    assert judged.figures["lower_f1"] <= judged.figures["f1"] <= judged.figures["upper_f1"]
    assert judged.figures["unanswerable_accuracy"] == 1
    artifact = made.publish(judged)
    manifest = verify(artifact)
    assert manifest.evaluation["f1"] == judged.figures["f1"]
    read = KIND.read([write(tmp_path / "data.jsonl", LINES)])
    assessed = KIND.statistics(assess(artifact, manifest, read, ()), ())
    assert {name: each.figure for name, each in assessed.items()} == pytest.approx(
        {name: judged.figures[name] for name in assessed}
    )
    inputs = [{"question": row["question"], "context": row["context"]} for row in LINES]
    async with made.serving(artifact) as client:
        reply = await client.post("/v1/answer", json={"inputs": inputs, "no_answer": True})
    answers = [result["answers"][0]["answer"] for result in reply.json()["results"]]
    exact = [squad.exact_match(given, row["answers"]["text"]) for given, row in zip(answers, LINES, strict=True)]
    assert np.mean(exact) == pytest.approx(judged.figures["exact_match"])
    assert reply.json()["windows"] > len(LINES)
    again = [str(artifact), str(tmp_path / "data.jsonl"), "--minimum", "exact_match=0.8", "--against", str(artifact)]
    assert "2 gates pass" in command.run(command.parse(again)).message


def test_slices_have_the_tasks_figure(tuned: Callable[..., Any]) -> None:
    """The worst of those that count is one of the figures."""
    rows = [{**row, "metadata": {"length": "long" if row["context"] == CONTEXT else "short"}} for row in LINES]
    judged = tuned(Task.QUESTION_ANSWERING, rows, rows, max_length=24, evaluation={"minSliceExamples": 1}).judge()
    found = judged.report["slices"]
    assert {name: each["examples"] for name, each in found.items()} == {"length=long": 4, "length=short": 5}
    whole = sum(each["figure"] * each["examples"] for each in found.values()) / 9
    assert judged.figures["f1"] == pytest.approx(whole)
    assert judged.figures["worst_slice_f1"] == min(each["figure"] for each in found.values())


@pytest.mark.parametrize("test", [LINES[:3], LINES[-1:], LINES])
def test_what_the_examples_give_is_announced(tuned: Callable[..., Any], test: list[dict[str, Any]]) -> None:
    """All of it, and nothing else."""
    made = tuned(Task.QUESTION_ANSWERING, LINES, test, max_length=24)
    told, _ = KIND.figure_names((), made.workload._examples.keys["test"])
    assert {name for name in made.judge().figures if not name.startswith(("lower_", "upper_"))} == set(told)


def test_figures_are_told_apart_by_whether_there_is_an_answer(tuned: Callable[..., Any]) -> None:
    """Every figure is announced, so that a gate on it is known before the training."""
    judged = tuned(Task.QUESTION_ANSWERING, LINES, LINES, max_length=24).judge()
    told, _ = KIND.figure_names(())
    assert {name for name in judged.figures if not name.startswith(("lower_", "upper_"))} == set(told)
    share = judged.figures["answerable_f1"] * 8 / 9 + judged.figures["unanswerable_accuracy"] / 9
    assert judged.figures["f1"] == pytest.approx(share)
