"""SQuAD's own files, and figures beside those of its script."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from torchmetrics.functional.text import squad as reference

from cloze_api.task import Task
from cloze_trainer import tasks
from cloze_trainer.errors import InputError
from cloze_trainer.quality import squad
from cloze_trainer.tasks.rows import Rows

KIND = tasks.of(Task.QUESTION_ANSWERING)

PIECES = [
    "the",
    "a",
    "An",
    "cat",
    "Cat's",
    "U.S.",
    "-",
    "…",
    "“the",
    "Ælf",
    "É",
    "e\u0301",
    "ß",
    "Ⅷ",
    "中文",
    "\u00a0",
    "\u2003",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=6).map(" ".join) | st.text(max_size=12)


def theirs(answer: str, right: list[str]) -> tuple[float, float]:
    """Exact match and F1 as torchmetrics has them, which is SQuAD's script for a question that has an answer."""
    asked = {"answers": {"text": right, "answer_start": [0] * len(right)}, "id": "1"}
    found = reference([{"prediction_text": answer, "id": "1"}], [asked])
    return float(found["exact_match"]) / 100, float(found["f1"]) / 100


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4))
@example("The cat", ["a cat!", "dog"])
@example("cat", ["", "the"])
@example("", ["cat"])
def test_figures_are_those_of_squads_script(answer: str, right: list[str]) -> None:
    """The best over all right answers. Of those that say nothing none counts beside others, as version 2 has it, and
    without any other the empty answer is the right one.
    """
    exact, f1 = theirs(answer, [each for each in right if squad.normal(each)] or [""])
    assert squad.exact_match(answer, right) == exact
    assert squad.f1(answer, right) == pytest.approx(f1, abs=1e-6)


@given(TEXTS)
def test_a_question_without_an_answer_has_the_empty_one(answer: str) -> None:
    """Both figures are 1 for it, and 0 for whatever says something."""
    assert squad.exact_match(answer, []) == squad.f1(answer, []) == theirs(answer, [""])[0]


LONDON = "Ada lived in London, near the old river."


def asked(name: str, *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    found = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": f"Where is {name}?", "answers": found, **more}


V1 = {
    "version": "1.1",
    "data": [
        {
            "title": "Ada",
            "paragraphs": [
                {"context": LONDON, "qas": [asked("1", ("London", 13), ("London", 13), ("near the old river", 21))]},
                {
                    "context": "Grace lived in New York.",
                    "qas": [asked("2", ("New York", 15)), asked("3", ("Grace", 0))],
                },
            ],
        },
        {"title": "Nobody", "paragraphs": []},
    ],
}
V2 = {
    "data": [
        {
            "title": "Ada",
            "paragraphs": [
                {
                    "context": LONDON,
                    "qas": [
                        asked("1", ("London", 13), is_impossible=False, metadata={"kind": "place"}),
                        asked("2", is_impossible=True, plausible_answers=[{"text": "London", "answer_start": 13}]),
                    ],
                }
            ],
        }
    ],
    "version": "v2.0",
}


def test_both_versions_are_read(tmp_path: Path) -> None:
    """On one line or on many, packed or not, with a mark of its byte order; beside a file of lines."""
    (tmp_path / "1.json").write_text(json.dumps(V1, indent=2), encoding="utf-8")
    with gzip.open(tmp_path / "2.json.gz", "wt", encoding="utf-8-sig") as packed:
        packed.write(json.dumps(V2))
    lines = [{"question": "who?", "context": LONDON, "answers": {"text": ["Ada"], "answer_start": [0]}}]
    (tmp_path / "3.jsonl").write_text("\n" + json.dumps(lines[0]) + "\n", encoding="utf-8")
    read = KIND.read([tmp_path / name for name in ("1.json", "2.json.gz", "3.jsonl")])
    assert [each.place.removeprefix(f"{tmp_path}/") for each in read] == [
        "1.json:data[0].paragraphs[0].qas[0]",
        "1.json:data[0].paragraphs[1].qas[0]",
        "1.json:data[0].paragraphs[1].qas[1]",
        "2.json.gz:data[0].paragraphs[0].qas[0]",
        "2.json.gz:data[0].paragraphs[0].qas[1]",
        "3.jsonl:2",
    ]
    assert read[0].answers == (("London", 13), ("London", 13), ("near the old river", 21))
    assert (read[1].context, read[1].question) == ("Grace lived in New York.", "Where is 2?")
    assert (read[3].slices, read[4].answers) == (("kind=place",), ())


def test_a_document_beyond_a_lines_length_is_read(tmp_path: Path) -> None:
    """SQuAD's own are one line of some forty megabytes."""
    paragraph = {"context": "Ada. " * 500_000, "qas": [asked("1", ("Ada", 0))]}
    (tmp_path / "1.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph] * 2}]}), encoding="utf-8")
    assert len(KIND.read([tmp_path / "1.json"])) == 2


def broken(**change: Any) -> str:
    question = V2["data"][0]["paragraphs"][0]["qas"][0] | change  # type: ignore[index]
    return json.dumps({"data": [{"paragraphs": [{"context": LONDON, "qas": [question]}]}]})


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ('{\n "data": [\n  {"paragraphs" []}\n ]\n}', ":3 isn't JSON at column 17", "SourceNotJSON"),
        ('{"data": ' + "[" * 100_000, " is JSON that can't be read", "SourceNotJSON"),
        ('{"data": {}}', " has no field 'data'", "SquadInvalid"),
        ('{"version": "1.1",\n"articles": []}', " has no field 'data'", "SquadInvalid"),
        ('{"data": [{"paragraphs": [7]}]}', ":data[0].paragraphs[0] isn't a JSON object", "SquadInvalid"),
        ('{"data": [{"title": "London"}]}', ":data[0] has no field 'paragraphs'", "SquadInvalid"),
        ('{"data": [{"paragraphs": []}]}', " holds no example", "DatasetEmpty"),
        (broken(question=" "), ":data[0].paragraphs[0].qas[0] has no field 'question'", "TextFieldMissing"),
        (broken(answers={"text": ["London"]}), ".qas[0] has no field 'answers' with a list", "SquadInvalid"),
        (broken(answers=[{"text": "London"}]), ".qas[0].answers[0] isn't an answer", "AnswersInvalid"),
        (
            broken(answers=[{"text": "London", "answer_start": 14}]),
            ".qas[0] has an answer (number 1)",
            "AnswerNotInContext",
        ),
        (broken(is_impossible=True), ".qas[0] has 1 answers", "AnswersInvalid"),
        (broken(answers=[]), ".qas[0] has 0 answers", "AnswersInvalid"),
        (broken(metadata="London"), ".qas[0] has a field 'metadata'", "MetadataInvalid"),
    ],
)
def test_what_is_broken_is_told_by_its_place(tmp_path: Path, text: str, place: str, reason: str) -> None:
    """And never by what stands there."""
    path = tmp_path / "train.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        KIND.read([path])
    assert refused.value.reason == reason
    assert refused.value.message.startswith(
        f"{path}{place}" if place[0] != "." else f"{path}:data[0].paragraphs[0]{place}"
    )
    assert "Ada" not in refused.value.message
    assert "London, " not in refused.value.message


def test_other_bytes_are_told(tmp_path: Path) -> None:
    """By where they are."""
    (tmp_path / "train.json").write_bytes(b'{"data": [{"title": "\xff"}]}')
    with pytest.raises(InputError, match="isn't UTF-8 at byte 22"):
        KIND.read([tmp_path / "train.json"])


def test_any_right_answer_is_right(tuned: Callable[..., Any], tmp_path: Path) -> None:
    """Figures of a document are over all answers of a question: outputs that point to its second one are right."""
    lines = [{"question": "where?", "context": LONDON, "answers": {"text": ["London"], "answer_start": [13]}}]
    reader = tuned(Task.QUESTION_ANSWERING, lines * 2, lines, max_length=64).reader
    path = tmp_path / "test.json"
    path.write_text(json.dumps(V1), encoding="utf-8")
    read = KIND.read([path])
    rows = Rows.of(KIND.tokenize(read, (), reader), per_token=True, pad=0)
    starts, bits_N = rows.items()
    outputs_N2 = np.stack([bits_N & 1, bits_N & 2], -1).astype(np.float32) * 9
    # To "the old river" of "near the old river".
    begins_S, ends_S = rows.spans[starts[0] : starts[1]].T
    first_S2 = outputs_N2[starts[0] : starts[1]]
    first_S2[:] = 0
    first_S2[np.flatnonzero(begins_S == 26)[0], 0] = first_S2[np.flatnonzero(ends_S == 39)[-1], 1] = 9
    found = KIND.statistics(KIND.scored(outputs_N2, rows, KIND.key(read), [()] * 3), ())
    assert found["exact_match"].figure == pytest.approx(2 / 3)
    assert found["f1"].figure == pytest.approx((2 + 4 / 5) / 3)
