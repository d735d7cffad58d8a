"""Examples are the same from whatever format and by whatever names; what is broken is told, or counted."""

import argparse
import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from remote_stores import KEYS, Stores, serving
from small_runs import finetune_of

from cloze_api.dataset import ExampleFields, ExampleFormat
from cloze_api.task import Problem, Task
from cloze_trainer import example_options, origin, preparation, tasks
from cloze_trainer.data.lines import BrokenLines
from cloze_trainer.data.records import Form
from cloze_trainer.errors import InputError
from cloze_trainer.progress import ProgressFile
from cloze_trainer.tasks.kind import AnyKind

CSV, PARQUET = ExampleFormat.CSV, ExampleFormat.PARQUET
TEXTS = tasks.of(Task.SEQUENCE_CLASSIFICATION)
WORDS = tasks.of(Task.TOKEN_CLASSIFICATION)
QUESTIONS = tasks.of(Task.QUESTION_ANSWERING)
GIVEN: Mapping[str, tuple[AnyKind, Sequence[dict[str, Any]]]] = {
    "texts": (TEXTS, [{"text": 'a "b",\nc', "label": "x"}, {"text": "d", "label": "y", "metadata": {"k": "v"}}]),
    "words": (WORDS, [{"tokens": ["A", "b"], "labels": ["x", "y"]}, {"tokens": ["c"], "labels": ["x"]}]),
    "several": (
        tasks.of(Task.SEQUENCE_CLASSIFICATION, Problem.MULTI_LABEL),
        [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": []}],
    ),
    "numbers": (
        tasks.of(Task.SEQUENCE_CLASSIFICATION, Problem.REGRESSION),
        [{"text": "a", "score": 0.1}, {"text": "b", "score": -2.0}],
    ),
    "questions": (
        QUESTIONS,
        [
            {"question": "who?", "context": "it was Ada", "answers": {"text": ["Ada"], "answer_start": [7]}},
            {"question": "when?", "context": "it was Ada", "answers": {"text": [], "answer_start": []}},
        ],
    ),
    "pairs": (
        tasks.of(Task.EMBEDDING),
        [{"text": "a", "positive": "b", "negative": "c"}, {"text": "d", "positive": "e"}],
    ),
    "scored": (tasks.of(Task.EMBEDDING), [{"text": "a", "other": "b", "score": 0.5}]),
}


def write(path: Path, rows: Sequence[Mapping[str, Any]], form: ExampleFormat) -> Path:
    """As other programs write such a file."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if form is ExampleFormat.JSONL:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif form is PARQUET:
        parquet.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, names)
            table.writeheader()
            table.writerows(
                {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
                for row in rows
            )
    return path


def without_place(lines: Sequence[Any]) -> list[dict[str, Any]]:
    return [{name: getattr(line, name) for name in line.__slots__ if name != "place"} for line in lines]


@pytest.mark.parametrize("form", [CSV, PARQUET])
@pytest.mark.parametrize("name", GIVEN)
def test_every_format_says_the_same(tmp_path: Path, name: str, form: ExampleFormat) -> None:
    """Of each task, with names of its own or others, as JSON lines do."""
    kind, rows = GIVEN[name]
    expected = kind.read([write(tmp_path / "a.jsonl", rows, ExampleFormat.JSONL)])
    assert without_place(kind.read([write(tmp_path / "a", rows, form)], Form(form))) == without_place(expected)
    others = {own: f"their {own}" for row in rows for own in row if own != "metadata"}
    renamed = [{others.get(own, own): value for own, value in row.items()} for row in rows]
    # A column that has a task's own name and isn't meant.
    renamed = [{**row, "unmeant": "x"} for row in renamed]
    fields = ExampleFields.model_validate(others)
    found = kind.read([write(tmp_path / "b", renamed, form)], Form(form, fields))
    assert without_place(found) == without_place(expected)


@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
                          st.sampled_from(["x", "y"])), min_size=1))  # fmt: skip
def test_any_text_of_a_table_is_kept(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    """Quotation marks, line ends and blanks within it, too."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([("text", "label"), *rows])
    path = tmp_path_factory.mktemp("any") / "a.csv"
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    assert [(line.texts[0], line.labels[0]) for line in TEXTS.read([path], Form(CSV))] == rows


def test_columns_are_what_groups_are_told_by(tmp_path: Path) -> None:
    """Several of them, of texts, numbers and truths; what isn't there is nothing to be told by."""
    rows = [{"text": "a", "label": "x", "lang": "de", "year": 1999, "new": True}, {"text": "b", "label": "y"}]
    fields = ExampleFields(metadata=["lang", "year", "new"])
    for form, path in ((ExampleFormat.JSONL, tmp_path / "a"), (PARQUET, tmp_path / "b"), (CSV, tmp_path / "c")):
        found = TEXTS.read([write(path, rows, form)], Form(form, fields))
        assert [line.slices for line in found] == [("lang=de", "new=true", "year=1999"), ()]


def test_whole_numbers_are_labels_by_their_digits(tmp_path: Path) -> None:
    """In each format, of texts and of words; other numbers and truths are no labels."""
    rows: list[dict[str, Any]] = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    for form in ExampleFormat:
        found = TEXTS.read([write(tmp_path / form, rows, form)], Form(form))
        assert [line.labels for line in found] == [("1",), ("0",)]
    words = write(tmp_path / "words", [{"tokens": ["a", "b"], "labels": [3, 4]}], ExampleFormat.JSONL)
    assert [line.labels for line in WORDS.read([words])] == [("3", "4")]
    for label in (True, 1.5, 10**30):
        path = write(tmp_path / "wrong", [{"text": "a", "label": label}], ExampleFormat.JSONL)
        with pytest.raises(InputError, match="'label'"):
            TEXTS.read([path])


@pytest.mark.parametrize(
    "listed",
    [
        lambda feature: {"feature": feature, "length": -1, "_type": "Sequence"},
        lambda feature: {"feature": feature, "_type": "List"},
        lambda feature: [feature],
    ],
)
def test_class_labels_are_their_names(tmp_path: Path, listed: Callable[[Any], Any]) -> None:
    """As Hugging Face's `datasets` writes them beside a table's columns; -1 is no label."""
    feature = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    said = {"info": {"features": {"label": feature, "tags": listed(feature), "text": {"_type": "Value"}}}}
    table = pa.table({"text": ["a", "b"], "label": [1, -1], "tokens": [["a"], ["b"]], "tags": [[0], [1]]})
    path = tmp_path / "a.parquet"
    parquet.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(said).encode()}), path)
    with pytest.raises(InputError, match=f"{path}:2 has no field 'label'"):
        TEXTS.read([path], Form(PARQUET))
    counted = BrokenLines(1)
    assert [line.labels for line in TEXTS.read([path], Form(PARQUET), counted)] == [("pos",)]
    assert counted.counts == {"LabelMissing": 1}
    words = WORDS.read([path], Form(PARQUET, ExampleFields(labels="tags")))
    assert [line.labels for line in words] == [("neg",), ("pos",)]
    parquet.write_table(table.replace_schema_metadata({b"huggingface": b'{"info": {"features": [1]}}'}), path)
    assert [line.labels for line in TEXTS.read([path], Form(PARQUET))] == [("1",), ("-1",)]


@pytest.mark.parametrize(
    ("kind", "form", "data", "reason", "told"),
    [
        (TEXTS, Form(CSV), "text,label\na,x\n,y\n", "TextFieldMissing", ":3 has no field 'text'"),
        (TEXTS, Form(CSV), "text,label\na,x\nb,y,z\n", "SourceNotCSV", ":3 has 3 fields"),
        (WORDS, Form(CSV), "tokens,labels\n\"['a']\",x\n", "SourceNotJSON", ":2 has no JSON in column 'tokens'"),
        (
            tasks.of(Task.SEQUENCE_CLASSIFICATION, Problem.REGRESSION),
            Form(CSV),
            "text,score\na,much\n",
            "ScoreInvalid",
            ":2 has no field 'score'",
        ),
        (
            TEXTS,
            Form(CSV, ExampleFields(text="body", label="class")),
            "text,class\na,x\n",
            "TextFieldMissing",
            "dataset.fields names 'body' for text, which isn't there",
        ),
        (TEXTS, Form(ExampleFormat.JSONL), '{"text": "a", "label": "x"}\nb\n', "SourceNotJSON", ":2 isn't JSON"),
        (QUESTIONS, Form(CSV), "question,context,answers\na,b,{}\n", "AnswersInvalid", ":2 has no field 'answers'"),
        (TEXTS, Form(PARQUET), "text\n", "SourceNotParquet", "check dataset.format"),
        (TEXTS, Form(CSV), "text,label\n", "DatasetEmpty", "holds no example"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, kind: AnyKind, form: Form, data: str, reason: str, told: str) -> None:
    """With file, line and what to do, in the names of the file."""
    path = tmp_path / "data"
    path.write_text(data, encoding="utf-8")
    with pytest.raises(InputError) as refusal:
        kind.read([path], form)
    assert (refusal.value.reason, str(path) in refusal.value.message) == (reason, True)
    assert told in refusal.value.message


def test_documents_of_questions_have_no_table(tmp_path: Path) -> None:
    """SQuAD's own files are read where JSON is, and lines of it are counted where they are broken."""
    question = {"question": "who?", "answers": [{"text": "Ada", "answer_start": 0}]}
    document = {"data": [{"paragraphs": [{"context": "Ada", "qas": [question]}]}]}
    path = tmp_path / "squad.json.gz"
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    assert [line.context for line in QUESTIONS.read([path])] == ["Ada"]
    rows = [*GIVEN["questions"][1], {"question": "how?"}]
    counted = BrokenLines(1)
    lines = write(tmp_path / "lines", rows, ExampleFormat.JSONL)
    assert len(QUESTIONS.read([lines], broken=counted)) == 2
    assert counted.places == [f"{lines}:3 TextFieldMissing"]


ROWS = [{"body": f"ship number {n} sails {'home' if n % 2 else 'away'}", "class": "ab"[n % 2]} for n in range(24)]
ENCODED = {"format": "csv", "fields": {"text": "body", "label": "class"}}


def prepared(folder: Path, **dataset: Any) -> dict[str, Any]:
    run, spec = finetune_of(folder, {}, dataset=dataset)
    made = preparation.prepare(run, spec, ProgressFile(None))
    found: dict[str, Any] = json.loads((made.folder / "dataset.json").read_text("utf-8"))
    return found


def test_broken_examples_are_counted_up_to_a_bound(tmp_path: Path, tiny: Any) -> None:
    """Of each source by itself; the report says how many, why and where, and another bound is another preparation."""
    tiny.save(tmp_path / "model", "bert", Task.FILL_MASK)
    for name, rows in (("train", ROWS), ("test", [{"body": f"unseen {n}", "class": "ab"[n % 2]} for n in range(8)])):
        write(tmp_path / f"{name}.csv", [*rows, {"body": "no class", "class": ""}], CSV)
    dataset = {name: f"file://{tmp_path}/{name}.csv" for name in ("train", "test")} | ENCODED
    report = prepared(tmp_path, **dataset, maxBrokenLines=1)
    assert (report["lines_broken"], report["broken"]) == (2, {"LabelMissing": 2})
    assert report["broken_first"] == [
        f"{tmp_path}/train.csv:26 LabelMissing",
        f"{tmp_path}/test.csv:10 LabelMissing",
    ]
    assert (report["examples"], report["examples_test"]) == (24, 8)
    with pytest.raises(InputError, match=r"train\.csv:26 .*dataset\.maxBrokenLines allows 0"):
        prepared(tmp_path, **dataset)


def test_examples_come_from_stores_with_a_secret(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the job's Secret alone, and of a hub by its revision; what is on a volume beside them needs neither."""
    tiny.save(tmp_path / "model", "bert", Task.FILL_MASK)
    monkeypatch.setattr(origin, "SECRETS_MOUNT", str(tmp_path / "secrets"))
    secret = tmp_path / "secrets" / "store"
    secret.mkdir(parents=True)
    train = write(tmp_path / "train", ROWS, CSV).read_bytes()
    test = write(tmp_path / "test.csv", [{"body": f"unseen {n}", "class": "ab"[n % 2]} for n in range(8)], CSV)
    with serving({"labelled/train.csv": train}) as address:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": address, "HF_ENDPOINT": address, "HF_TOKEN": "t0ken"}.items():
            monkeypatch.delenv(name, raising=False)
            (secret / name).write_text(value)
        of_test = {"test": f"file://{test}", **ENCODED}
        for uri in ("s3://books/labelled/*.csv", "hf://datasets/o/books/labelled"):
            given = {"train": uri, "credentials": {"secretName": "store"}} | of_test
            revision = {"revision": "v2"} if uri.startswith("hf") else {}
            assert prepared(tmp_path, **given, **revision)["examples"] == 24
        assert any("resolve/v2" in path or "/v2" in path for path, _ in Stores.seen)
        # What was fetched is fetched once.
        shutil.rmtree(tmp_path / "workspace")
        with pytest.raises(InputError, match="s3://books"):
            prepared(tmp_path, train="s3://books/labelled/*.csv", **of_test)


def test_commands_take_the_form(tmp_path: Path) -> None:
    """From the name of the file, packed or not, or from options; fields that no task has are refused."""
    parser = argparse.ArgumentParser()
    example_options.add(parser)

    def form(path: str, *options: str) -> Form:
        return example_options.form(parser.parse_args(options), path)

    assert form("a.jsonl") == form("s3://b/c") == Form()
    assert form("a.CSV.gz").format is CSV
    assert form("hf://datasets/o/n/*.parquet").format is PARQUET
    assert form("a.csv", "--format", "jsonl").format is ExampleFormat.JSONL
    named = form("a", "--field", "text=body", "--field", "metadata=lang", "--field", "metadata=year")
    assert named.fields == ExampleFields(text="body", metadata=["lang", "year"])
    for wrong in ("texts=body", "text", "text="):
        with pytest.raises(SystemExit):
            form("a", "--field", wrong)
