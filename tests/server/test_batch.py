"""Batch scoring: each row once and in order, whatever is in it and whenever the process dies."""

import asyncio
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze_api.task import Task
from cloze_server.batch import options, run, scoring
from cloze_server.batch.journal import Progress
from cloze_server.batch.parquet import result_type
from cloze_server.batch.report import Bar, Lines
from cloze_server.batch.rows import Outcome, Row
from cloze_server.batch.store import Store
from cloze_server.dummy import dummy_model
from cloze_server.exits import ExitCode, FatalError
from cloze_server.paths import TASK_PATHS
from cloze_server.tasks import HANDLERS


def score(source: Path | str, target: Path | str, *more: str, model: str = "dummy:echo") -> None:
    """Carry out a run in this process."""
    run.run(options.read(["--model", model, "--input", str(source), "--output", str(target), *more], {}))


def reason(*arguments: Any, **more: Any) -> tuple[ExitCode, str]:
    """How a run fails."""
    with pytest.raises(FatalError) as failed:
        score(*arguments, **more)
    return failed.value.code, failed.value.reason


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A file of rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def echoed(rows: list[dict[str, Any]], source: list[dict[str, Any]]) -> bool:
    """Whether these are the rows of the source, each once, in order, with the answer to its own text."""
    hashes = [hashlib.sha256(row["text"].encode()).hexdigest() for row in source]
    return [row.pop("result")["sha256"] for row in rows] == hashes and rows == source


@pytest.fixture
def numbered(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """An input whose texts all differ, and its rows."""
    rows = [{"id": number, "text": f"{number} " * (number % 7 + 1)} for number in range(60)]
    return write(tmp_path / "in.jsonl", rows), rows


BAD = {
    "broken {": "body-invalid",
    "[1]": "input-invalid",
    '{"other": 1}': "input-invalid",
    '{"text": null}': "input-invalid",
    '{"text": ["a", "b"]}': "input-invalid",
    '{"text": "\\ud800"}': "input-invalid",
    '{"text": "x", "result": 1}': "input-invalid",
    "[" * 100_000: "body-invalid",
    json.dumps({"text": "x" * (1 << 20)}): "body-too-large",
    json.dumps({"text": "x" * 70_000}): "input-too-long",
}


def test_a_bad_row_has_a_problem_and_the_others_their_answers(tmp_path: Path) -> None:
    """In its place, with what was in the line, or why that is not there; blank lines are no rows."""
    good = '{ "text":"caf\\u00e9",  "price": 1.0, "big": 12345678901234567890123 }'
    (tmp_path / "in.jsonl").write_bytes(
        b"\xef\xbb\xbf" + "\n\n".join(line for bad in BAD for line in (good, bad)).encode() + b'\n{"text":"\xff"}'
    )
    score(tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--parameters", '{"truncate": "right"}')
    *written, last = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len(written) == 2 * len(BAD)
    for mine, theirs, (bad, kind) in zip(written[::2], written[1::2], BAD.items(), strict=True):
        assert mine.startswith(good[:-1].rstrip() + ', "result": {'), "the row's own text is kept"
        row = json.loads(theirs)
        assert row["error"]["type"] == f"tag:cloze.dev,2025:problems/{kind}"
        if kind == "body-too-large":
            assert row["raw"] is None
        else:
            assert bad in (theirs[: len(bad) - 1] + "}", row.get("raw"))
    assert json.loads(last)["error"]["type"].endswith("body-invalid")
    receipt = json.loads((tmp_path / "out.jsonl.run.json").read_text())["progress"]
    assert (receipt["rows"], receipt["errors"]) == (2 * len(BAD) + 1, len(BAD) + 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.run.json"]


def test_with_an_id_field_no_text_is_kept(tmp_path: Path) -> None:
    """Also not of a row that is broken."""
    (tmp_path / "in.jsonl").write_text('{"id": 7, "text": "secret", "result": 1}\nsecret\n{"id": "x"}\n')
    score(tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--id-field", "id")
    assert [sorted(row) for row in lines(tmp_path / "out.jsonl")] == [
        ["id", "result"],
        ["error", "id"],
        ["error", "id"],
    ]
    assert [row["id"] for row in lines(tmp_path / "out.jsonl")] == [7, None, "x"]
    assert "secret" not in (tmp_path / "out.jsonl").read_text()


@pytest.mark.parametrize("task", [each for each in Task if each is not Task.ECHO])
def test_a_row_has_the_answer_that_the_server_gives(task: Task, tmp_path: Path, serving: Any) -> None:
    """For every task, in JSON lines and in Parquet, whose type says all of it."""
    texts = ["[MASK] here", "a longer [MASK] text of several words"]
    rows = [{"question": "what", "context": text, "text": text} for text in texts]
    write(tmp_path / "in.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    for name in ("jsonl", "parquet"):
        score(tmp_path / f"in.{name}", tmp_path / f"out.{name}", model=f"dummy:{task}")

    async def ask() -> list[Any]:
        async with serving(lambda: dummy_model(task)) as client:
            answers = []
            for row in rows:
                body = {
                    Task.QUESTION_ANSWERING: {"question": row["question"], "context": row["context"]},
                    Task.EMBEDDING: {"input": row["text"]},
                }.get(task, {"inputs": row["text"]})
                reply = (await client.post(TASK_PATHS[task], json=body)).json()
                (answer,) = reply.get("results") or reply["data"]
                answers.append({key: value for key, value in answer.items() if key not in ("object", "index")})
            return answers

    expected = asyncio.run(ask())
    assert [row["result"] for row in lines(tmp_path / "out.jsonl")] == expected
    told = pq.read_table(tmp_path / "out.parquet")["result"].to_pylist()
    for result in told:
        for prediction in result.get("predictions", []) if isinstance(result, dict) else []:
            # A column is there in each row; the server leaves out what isn't said.
            if isinstance(prediction, dict) and prediction.get("applies", True) is None:
                del prediction["applies"]
    assert told == expected


def test_words_of_a_row_have_a_tag_each(tmp_path: Path) -> None:
    """A list in the field is one text that is split already."""
    source = write(tmp_path / "in.jsonl", [{"text": ["Ada", "lived"]}])
    score(source, tmp_path / "out.jsonl", model="dummy:token-classification")
    assert [tag["word"] for tag in lines(tmp_path / "out.jsonl")[0]["result"]["tags"]] == ["Ada", "lived"]


@pytest.mark.parametrize("task", list(Task))
def test_every_task_has_a_type_in_parquet(task: Task) -> None:
    """With the fields that all results have."""
    assert {"tokens", "truncated", "windows"} <= {field.name for field in result_type(HANDLERS[TASK_PATHS[task]])}


def test_parquet_keeps_columns_with_their_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over row groups, parts and a death that may be anywhere, with rows that fail."""
    rows = [{"text": None if number % 5 == 3 else f"text {number}", "n": number} for number in range(100)]
    schema = pa.schema(
        [("text", pa.large_string()), ("n", pa.int16()), ("t", pa.timestamp("ns")), ("d", pa.decimal128(9, 2))],
        {"note": "kept"},
    )
    table = pa.Table.from_pylist([{**row, "t": row["n"] * 1001, "d": None} for row in rows], schema)
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=17)
    monkeypatch.setattr(run, "_PART_ROWS", 13)
    with monkeypatch.context() as patch:
        next(mortal(patch, 8, after=False))
        with pytest.raises(Killed):
            score(tmp_path / "in.parquet", tmp_path / "out.parquet")
    score(tmp_path / "in.parquet", tmp_path / "out.parquet")
    made = pq.read_table(tmp_path / "out.parquet")
    assert made.select(schema.names).equals(table)
    assert made.schema.metadata[b"note"] == b"kept"
    for row, result, error in zip(rows, made["result"].to_pylist(), made["error"].to_pylist(), strict=True):
        assert (result is None) == (error is not None) == (row["text"] is None)
        if row["text"]:
            assert result["sha256"] == hashlib.sha256(row["text"].encode()).hexdigest()


class Killed(BaseException):
    """The process is gone."""


def mortal(monkeypatch: pytest.MonkeyPatch, ends_at: int, *, after: bool) -> Iterator[int]:
    """Let the process die at one change of what is stored, just before or just after it; yields the changes so far."""
    count = 0
    for name in ("write", "remove"):
        change = getattr(Store, name)

        def changing(self: Store, *arguments: Any, change: Any = change, **more: Any) -> None:
            nonlocal count
            count += 1
            if count == ends_at and not after:
                raise Killed
            change(self, *arguments, **more)
            if count == ends_at:
                raise Killed

        monkeypatch.setattr(Store, name, changing)
    while True:
        yield count


@pytest.mark.parametrize("after", [False, True])
def test_wherever_a_run_dies_the_next_one_completes_it(
    numbered: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Before and after each change of what is stored, one after the other: each row is there once, in order."""
    source, rows = numbered
    monkeypatch.setattr(run, "_PART_ROWS", 13)
    target, died = tmp_path / "out.jsonl", 0
    for ends_at in range(1, 100):
        for path in tmp_path.glob("out*.run.json"):
            path.unlink()
        target.unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            changes = mortal(patch, ends_at, after=after)
            next(changes)
            try:
                score(source, target)
            except Killed:
                died += 1
            else:
                break
        score(source, target)
        assert echoed(lines(target), rows)
        assert not (tmp_path / "out.jsonl.parts").exists()
    assert died >= 12


def start(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    """A run in a process of its own."""
    with log.open("wb") as stream:
        return subprocess.Popen([sys.executable, "-m", "cloze_server.main", "batch", *arguments], stderr=stream)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Until something is so, or the process has ended."""
    deadline = time.monotonic() + 30
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """Really killed, at random moments; each run begins with what the one before has saved."""
    rows = [{"id": number, "text": f"{number}"} for number in range(6000)]
    source, target, log = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", tmp_path / "log"
    arguments = ("--model", "dummy:echo?seconds=0.02", "--input", str(source), "--output", str(target))
    drawn = random.Random(5)  # noqa: S311 - the same moments each time
    state, begun = tmp_path / "out.jsonl.parts" / "state.json", []

    def saved() -> int:
        return json.loads(state.read_text())["progress"]["rows"] if state.exists() else 0

    for _ in range(2):
        before = saved()
        process = start(*arguments, "--save-seconds", "0.02", log=log)
        wait_for(lambda before=before: saved() > before, process)  # type: ignore[misc]
        time.sleep(drawn.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        begun.append(before)
    assert not target.exists()
    process = start(*arguments, log=log)
    wait_for(lambda: b"run begins" in log.read_bytes(), process)
    first = next(line for line in lines(log) if line["event"] == "run begins")
    assert first["rows"] >= begun[-1] > 0
    assert process.wait(60) == 0, log.read_text()
    assert echoed(lines(target), rows)


def test_a_signal_saves_what_is_done_and_says_so(tmp_path: Path) -> None:
    """With a code of its own; a run that is over says nothing and changes nothing."""
    rows = [{"text": f"{number}"} for number in range(3000)]
    source, target, log = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", tmp_path / "log"
    arguments = ("--model", "dummy:echo?seconds=0.05", "--input", str(source), "--output", str(target))
    process = start(*arguments, log=log)
    wait_for(lambda: b"run begins" in log.read_bytes(), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == ExitCode.INTERRUPTED, log.read_text()
    assert (lines(log)[-1]["reason"], target.exists()) == ("Interrupted", False)
    score(source, target)
    assert reason(source, target, "--parameters", '{"truncate": "left"}')[1] == "OutputExists"
    made = target.stat()
    score(source, target)
    assert (target.stat().st_ino, echoed(lines(target), rows)) == (made.st_ino, True)


def test_an_unfinished_run_is_not_mixed_with_another(
    numbered: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what differs; with --overwrite the other one begins anew."""
    source, rows = numbered
    target = tmp_path / "out.jsonl"
    monkeypatch.setattr(run, "_PART_ROWS", 13)
    with monkeypatch.context() as patch:
        next(mortal(patch, 6, after=False))
        with pytest.raises(Killed):
            score(source, target)
    for change, what in (
        (("--parameters", '{"truncate": "left"}'), "parameters"),
        (("--id-field", "id"), "fields"),
        (("--model", "dummy:fill-mask"), "give one --model"),
    ):
        with pytest.raises(FatalError, match=what):
            score(source, target, *change)
    monkeypatch.setattr("cloze_server.dummy._DIGEST", "sha256:" + "1" * 64)
    with pytest.raises(FatalError, match="model digest"):
        score(source, target)
    monkeypatch.undo()
    rows = [{"text": "other"}]
    write(source, rows)
    assert reason(source, target) == (ExitCode.CONFIGURATION, "RunDiffers")
    score(source, target, "--overwrite")
    assert echoed(lines(target), rows)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("in.jsonl", ("--parameters", '{"truncate": "up"}'), ("--parameters", '{"truncate": "left"}')),
        ("in.parquet", ("--field", "body"), ("--field", "text")),
    ],
)
def test_a_mistake_that_was_refused_is_in_nobodys_way(
    name: str, wrong: tuple[str, str], right: tuple[str, str], tmp_path: Path
) -> None:
    """A run that has done nothing needs no --overwrite."""
    write(tmp_path / "in.jsonl", [{"text": "x"}])
    pq.write_table(pa.Table.from_pylist([{"text": "x"}]), tmp_path / "in.parquet")
    target = tmp_path / name.replace("in", "out")
    assert reason(tmp_path / name, target, *wrong) == (ExitCode.CONFIGURATION, "ConfigurationInvalid")
    score(tmp_path / name, target, *right)
    assert target.exists()


def test_too_many_errors_end_a_run(tmp_path: Path) -> None:
    """What was answered by then is kept, for a run that allows more."""
    rows = [{"text": "x"}, {}, {"text": "y"}, {}, {"text": "z"}]
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert reason(source, target, "--max-errors", "1") == (ExitCode.ROWS_FAILED, "TooManyErrors")
    assert not target.exists()
    score(source, target, "--max-errors", "2")
    assert ["error" in row for row in lines(target)] == [False, True, False, True, False]


def test_an_input_that_changes_meanwhile_gives_no_output(
    numbered: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of one and of the other would be mixed."""
    source, _ = numbered
    kept = run._keep

    def keep_and_change(*arguments: Any) -> None:
        kept(*arguments)
        source.write_text("{}\n")

    monkeypatch.setattr(run, "_keep", keep_and_change)
    assert reason(source, tmp_path / "out.jsonl") == (ExitCode.CONFIGURATION, "InputChanged")
    assert not (tmp_path / "out.jsonl").exists()


def test_two_processes_do_not_write_one_output(numbered: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """The second is refused while the first is at it."""
    source, _ = numbered
    with Store(str(tmp_path / "out.jsonl.parts" / "lock")).alone():
        assert reason(source, tmp_path / "out.jsonl") == (ExitCode.CONFIGURATION, "OutputBusy")


def test_an_object_store_is_read_and_written(
    numbered: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same steps, also after a death."""
    source, rows = numbered
    system = fsspec.filesystem("memory")
    system.pipe_file("/bucket/in.jsonl", source.read_bytes())
    monkeypatch.setattr(run, "_PART_ROWS", 13)
    with monkeypatch.context() as patch:
        next(mortal(patch, 6, after=False))
        with pytest.raises(Killed):
            score("memory://bucket/in.jsonl", "memory://bucket/out.jsonl")
    score("memory://bucket/in.jsonl", "memory://bucket/out.jsonl")
    assert echoed([json.loads(line) for line in system.cat_file("/bucket/out.jsonl").splitlines()], rows)
    assert sorted(system.ls("/bucket", detail=False)) == [
        f"/bucket/{name}" for name in ("in.jsonl", "out.jsonl", "out.jsonl.run.json")
    ]


@pytest.mark.parametrize(
    ("source", "target", "more", "why"),
    [
        ("in.csv", "out.csv", (), "ends with .jsonl"),
        ("in.jsonl", "out.parquet", (), "same format"),
        ("in.jsonl", "in.jsonl", (), "are one"),
        ("in.jsonl", "out.jsonl", ("--parameters", "{"), "isn't JSON"),
        ("in.jsonl", "out.jsonl", ("--parameters", '{"top_k": 0}'), "--parameters"),
        ("in.jsonl", "out.jsonl", ("--parameters", '{"inputs": "x"}'), "can't be set for all rows"),
        ("in.jsonl", "out.jsonl", ("--max-errors", "-1"), "--max-errors"),
        ("in.jsonl", "out.jsonl", ("--error-field", "result"), "three different fields"),
        ("missing.jsonl", "out.jsonl", (), "can't be read"),
        ("nowhere://x/in.jsonl", "out.jsonl", (), "can't be reached"),
        ("in.parquet", "out.parquet", ("--field", "words"), "no column words"),
        ("in.parquet", "out.parquet", ("--result-field", "n"), "has a column n already"),
        ("broken.parquet", "out.parquet", (), "isn't Parquet"),
    ],
)
def test_what_cannot_be_done_is_refused_at_the_start(
    source: str, target: str, more: tuple[str, ...], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sentence that says what to give; nothing is written."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", [{"text": "x"}])
    write(tmp_path / "broken.parquet", [{"text": "x"}])
    pq.write_table(pa.Table.from_pylist([{"text": "x", "n": 1}]), tmp_path / "in.parquet")
    with pytest.raises(FatalError, match=why):
        score(source, target, *more)
    assert not Path(target).exists() or source == target


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 3)), max_size=60), st.integers(1, 8))
def test_rows_are_answered_in_order_and_few_at_a_time(sizes: list[tuple[int, int]], most: int) -> None:
    """However long each takes and however large it is: what is read ahead is bounded by rows and by bytes."""
    rows = [Row({"number": number, "pauses": pauses}, None, size, 0) for number, (size, pauses) in enumerate(sizes)]
    ahead: list[Row] = []

    def reading() -> Iterator[Row]:
        for row in rows:
            ahead.append(row)
            assert len(ahead) <= most
            # The rows of one reading come on top of what there was room for.
            assert sum(each.size for each in ahead) - row.size < scoring._BYTES + scoring._BYTES // 4
            yield row

    async def answer(row: Row) -> Outcome:
        assert isinstance(row.content, dict)
        for _ in range(row.content["pauses"]):
            await asyncio.sleep(0)
        return Outcome(str(row.content["number"]))

    async def collect() -> list[str | None]:
        found = []
        async for row, outcome in scoring.scored(reading(), answer, most_rows=most):
            assert ahead.pop(0) is row
            found.append(outcome.result)
        return found

    assert asyncio.run(collect()) == [str(number) for number in range(len(rows))]


def test_a_run_tells_how_it_goes(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """Speeds of this process alone, and the time that is left; as a bar, or as a line now and then."""
    now = 0.0
    first, later = Progress(rows=100, position=1000, tokens=5), Progress(rows=200, position=2000, tokens=505, errors=3)
    report = Lines(first, 4000, lambda: now)
    bar = Bar(first, 4000, "B")
    caplog.set_level("INFO")
    report.update(first)
    assert not caplog.records
    now = 10.0
    report.update(later)
    (record,) = caplog.records
    assert vars(record)["fields"] == {
        "rows": 200,
        "rows_per_second": 10.0,
        "tokens_per_second": 50.0,
        "errors": 3,
        "eta_seconds": 20.0,
    }
    bar.update(later)
    bar.close()
    assert "50%" in capsys.readouterr().err


def test_without_its_library_parquet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the name of what to install."""
    pq.write_table(pa.Table.from_pylist([{"text": "x"}]), tmp_path / "in.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "cloze_server.batch.parquet")
    with pytest.raises(FatalError, match=r"cloze-mlops\[serve,parquet\]"):
        score(tmp_path / "in.parquet", tmp_path / "out.parquet")
