"""Feedback on former requests: taken once, handed on in order, and never lost without a count."""

# What is awaited lives in another task, so there is no event to wait for.
# ruff: noqa: ASYNC110

import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.task import Task
from cloze_server import feedback
from cloze_server.dummy import dummy_model
from cloze_server.feedback import FeedbackRequest, Forwarder, SinkError
from cloze_server.logs import JsonFormatter
from cloze_server.problems import ProblemError

pytestmark = pytest.mark.anyio


def load() -> Any:
    return dummy_model(Task.SEQUENCE_CLASSIFICATION)


class Memory:
    """Keeps what it is given; `answers` are what happens to the next ones, None for taken."""

    def __init__(self, *answers: SinkError | None) -> None:
        self.answers = list(answers)
        self.got: list[dict[str, Any]] = []
        self.tries = 0
        self.closed = False

    async def send(self, document: bytes) -> None:
        self.tries += 1
        if self.answers and (error := self.answers.pop(0)):
            raise error
        self.got += json.loads(document)["feedback"]

    async def close(self) -> None:
        self.closed = True


class Running:
    """A forwarder with its counts and the waits that it asked for."""

    def __init__(self, sink: Memory) -> None:
        self.counts: Counter[str] = Counter()
        self.waits: list[float] = []
        self.forwarder = Forwarder(sink, lambda result, number: self.counts.update({result: number}), self.wait)

    async def wait(self, seconds: float) -> None:
        self.waits.append(seconds)

    async def until(self, **counts: int) -> None:
        async with asyncio.timeout(10):
            while any(self.counts[result] < number for result, number in counts.items()):
                await asyncio.sleep(0.002)


def said(request_id: str, **members: Any) -> FeedbackRequest:
    return FeedbackRequest.model_validate({"request_id": request_id, **(members or {"label": "spam"})})


async def test_feedback_is_handed_on_in_order() -> None:
    """With its id, who said it, and when."""
    sink = Memory()
    running = Running(sink)
    running.forwarder.start()
    replies = [running.forwarder.take(said(str(number)), "shop") for number in range(250)]
    await running.until(sent=250)
    await running.forwarder.close()
    assert [each["request_id"] for each in sink.got] == [str(number) for number in range(250)]
    assert [each["id"] for each in sink.got] == [reply.id for reply in replies]
    assert {each["tenant"] for each in sink.got} == {"shop"}
    assert all(each["received"].endswith("+00:00") for each in sink.got)
    assert sink.tries == 3
    assert sink.closed


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.sampled_from(["p", "q"])), max_size=12))
def test_each_thing_said_is_taken_once(sayings: list[tuple[str, str, str]]) -> None:
    """By request, key and content: a repetition isn't sent again, a contradiction without correction is refused."""
    running = Running(Memory())
    known: dict[tuple[str, str], str] = {}
    taken = 0
    for request_id, key, label in sayings:
        before = known.setdefault((request_id, key), label)
        if before != label:
            with pytest.raises(ProblemError, match="correction"):
                running.forwarder.take(said(request_id, key=key, label=label), "")
            continue
        taken += not running.forwarder.take(said(request_id, key=key, label=label), "").repeated
    assert taken == len(known)
    assert running.counts["repeated"] == sum(known[each[:2]] == each[2] for each in sayings) - taken


def test_a_correction_replaces_what_was_said() -> None:
    """Under the same id; the same correction again is a repetition."""
    running = Running(Memory())
    take = running.forwarder.take
    first = take(said("1", label="spam"), "")
    corrected = take(said("1", label="ham", correction=True), "")
    again = take(said("1", label="ham", correction=True), "")
    assert first.id == corrected.id == again.id
    assert (first.repeated, corrected.repeated, again.repeated) == (False, False, True)


def test_different_things_may_be_said_of_one_request() -> None:
    """By kind, by an outcome's name, by a key of the client's own, and by each tenant."""
    running = Running(Memory())
    taken = [
        running.forwarder.take(said("1", label="spam"), ""),
        running.forwarder.take(said("1", label="ham"), "shop"),
        running.forwarder.take(said("1", labels=["spam"]), ""),
        running.forwarder.take(said("1", entities=[{"start": 0, "end": 3, "label": "PER"}]), ""),
        running.forwarder.take(said("1", outcome={"name": "refunded", "value": True}), ""),
        running.forwarder.take(said("1", outcome={"name": "minutes", "value": 2.5}), ""),
        running.forwarder.take(said("1", label="ham", key="second-look"), ""),
    ]
    assert len({reply.id for reply in taken}) == len(taken)
    assert not any(reply.repeated for reply in taken)


async def test_what_the_sink_does_not_take_now_is_sent_again() -> None:
    """After growing waits, before anything that came later."""
    sink = Memory(SinkError("down", final=False), SinkError("down", final=False))
    running = Running(sink)
    running.forwarder.take(said("1"), "")
    running.forwarder.start()
    await running.until(sent=1)
    running.forwarder.take(said("2"), "")
    await running.until(sent=2)
    await running.forwarder.close()
    assert [each["request_id"] for each in sink.got] == ["1", "2"]
    assert running.waits == [0.5, 1.0]
    assert running.counts == {"sent": 2}


async def test_what_the_sink_never_takes_is_dropped_and_counted() -> None:
    """At once when it says so, else after some tries; the next ones go on."""
    sink = Memory(SinkError("no", final=True), *[SinkError("down", final=False)] * 6)
    running = Running(sink)
    running.forwarder.start()
    for number in range(3):
        running.forwarder.take(said(str(number)), "")
        await running.until(dropped=min(number + 1, 2), sent=max(number - 1, 0))
    await running.forwarder.close()
    assert [each["request_id"] for each in sink.got] == ["2"]
    assert len(running.waits) == 5


async def test_what_was_dropped_can_be_said_again() -> None:
    """It is no repetition then: nobody has got it."""
    sink = Memory(SinkError("no", final=True))
    running = Running(sink)
    running.forwarder.start()
    running.forwarder.take(said("1"), "")
    await running.until(dropped=1)
    assert not running.forwarder.take(said("1"), "").repeated
    await running.until(sent=1)
    assert running.forwarder.take(said("1"), "").repeated
    await running.forwarder.close()


async def test_large_ones_are_sent_by_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a bound of bytes has room for, at least one."""
    monkeypatch.setattr(feedback, "_BATCH_BYTES", 600)
    sink = Memory()
    running = Running(sink)
    for number in range(5):
        running.forwarder.take(said(str(number), label="x" * 100), "")
    running.forwarder.take(said("large", labels=["x" * 200] * 5), "")
    running.forwarder.start()
    await running.until(sent=6)
    await running.forwarder.close()
    assert [each["request_id"] for each in sink.got] == ["0", "1", "2", "3", "4", "large"]
    assert sink.tries == 4


@pytest.mark.parametrize("bound", [{"QUEUE_MAX": 2}, {"QUEUE_BYTES": 400}])
async def test_a_full_queue_refuses_and_counts(monkeypatch: pytest.MonkeyPatch, bound: dict[str, int]) -> None:
    """The client may try again: nothing of it is remembered."""
    for name, value in bound.items():
        monkeypatch.setattr(feedback, name, value)
    sink = Memory()
    running = Running(sink)
    running.forwarder.take(said("1"), "")
    running.forwarder.take(said("2"), "")
    with pytest.raises(ProblemError) as refused:
        running.forwarder.take(said("3"), "")
    assert refused.value.status == 429
    assert running.counts == {"dropped": 1}
    running.forwarder.start()
    await running.until(sent=2)
    assert not running.forwarder.take(said("3"), "").repeated
    await running.until(sent=3)
    await running.forwarder.close()


async def test_what_waits_at_the_end_is_sent_or_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a few seconds."""
    monkeypatch.setattr(feedback, "_FAREWELL_SECONDS", 0.05)
    sink = Memory()
    running = Running(sink)
    running.forwarder.take(said("1"), "")
    running.forwarder.start()
    await running.forwarder.close()
    assert running.counts == {"sent": 1}

    class Stuck(Memory):
        async def send(self, document: bytes) -> None:
            await asyncio.Event().wait()

    running = Running(Stuck())
    running.forwarder.take(said("1"), "")
    running.forwarder.start()
    await running.forwarder.close()
    assert running.counts == {"dropped": 1}


def test_only_so_much_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten first."""
    monkeypatch.setattr(feedback, "REMEMBERED_MAX", 2)
    running = Running(Memory())
    for number in range(3):
        running.forwarder.take(said(str(number)), "")
    assert running.forwarder.take(said("2"), "").repeated
    assert not running.forwarder.take(said("0"), "").repeated


@pytest.mark.parametrize(
    "body",
    [
        {"label": "spam"},
        {"request_id": "1"},
        {"request_id": "", "label": "spam"},
        {"request_id": "a b", "label": "spam"},
        {"request_id": "1", "label": "spam", "labels": ["spam"]},
        {"request_id": "1", "label": ""},
        {"request_id": "1", "label": "x" * 257},
        {"request_id": "1", "labels": []},
        {"request_id": "1", "entities": [{"start": -1, "end": 2, "label": "PER"}]},
        {"request_id": "1", "entities": [{"start": 5, "end": 2, "label": "PER"}]},
        {"request_id": "1", "entities": [{"start": 2, "end": 2, "label": "PER"}]},
        {"request_id": "1", "outcome": {"name": "a b", "value": 1}},
        {"request_id": "1", "outcome": {"name": "a", "value": None}},
        {"request_id": "1", "outcome": {"name": "a", "value": 10**400}},
        {"request_id": "1", "outcome": {"name": "a", "value": "x" * 257}},
        {"request_id": "1", "label": "spam", "secret": 1},
        {"request_id": "1", "outcome": {"name": "a", "value": 1, "secret": 1}},
    ],
)
async def test_feedback_that_says_nothing_is_refused(serving: Any, body: dict[str, Any]) -> None:
    """As any body that doesn't fit the schema, and before anybody asks for a sink."""
    async with serving(load) as client:
        refused = await client.post("/v1/feedback", json=body)
    assert (refused.status_code, refused.json()["type"].rsplit("/")[-1]) == (422, "input-invalid")
    assert "secret" not in refused.text


async def test_without_a_sink_nothing_is_taken(serving: Any) -> None:
    """The document says why."""
    async with serving(load) as client:
        refused = await client.post("/v1/feedback", json={"request_id": "1", "label": "spam"})
        untyped = await client.post("/v1/feedback", content=b"{}")
    assert (refused.status_code, refused.json()["type"].rsplit("/")[-1]) == (404, "feedback-unavailable")
    assert "--feedback-url" in refused.json()["detail"]
    assert untyped.status_code == 415


class Listener:
    """A sink over HTTP that answers with these statuses, then with 204."""

    def __init__(self, *statuses: int) -> None:
        statuses_left, got, tokens = list(statuses), [], []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status = statuses_left.pop(0) if statuses_left else 204
                tokens.append(self.headers["authorization"])
                if status == 204:
                    got.extend(body["feedback"])
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
                """Not worth a line."""

        self.got, self.tokens = got, tokens
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/labels"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def listener() -> Iterator[Listener]:
    """One that is down at first."""
    found = Listener(503, 401)
    yield found
    found.server.shutdown()
    found.server.server_close()


async def counted(client: httpx.AsyncClient, result: str) -> float:
    line = f'cloze_feedback_events_total{{result="{result}"}} '
    return float((await client.get("/metrics")).text.partition(line)[2].split("\n")[0])


async def test_a_server_hands_feedback_on_over_http(
    serving: Any, listener: Listener, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With the token as it is now and the name of the key; nothing that was said is in the log."""
    monkeypatch.setattr(feedback, "_BACKOFF_FIRST_SECONDS", 0.01)
    # No hexadecimal digits alone: the log has random ids.
    (tmp_path / "token").write_text("s3cret\n")
    (tmp_path / "keys").write_text(f"shop:{hashlib.sha256(b'one').hexdigest()}\n")
    body = {"request_id": "r-1", "labels": ["private", "other"]}
    async with serving(
        load, feedback_url=listener.url, feedback_token_file=tmp_path / "token", api_keys=tmp_path / "keys"
    ) as client:
        assert (await client.post("/v1/feedback", json=body)).status_code == 401
        client.headers["x-api-key"] = "one"
        taken = await client.post("/v1/feedback", json=body)
        again = await client.post("/v1/feedback", json=body)
        conflict = await client.post("/v1/feedback", json=body | {"labels": ["other", "other"]})
        async with asyncio.timeout(10):
            while await counted(client, "sent") < 1:
                await asyncio.sleep(0.01)
        (tmp_path / "token").write_text("xyz\n")
        await client.post("/v1/feedback", json=body | {"labels": ["other", "other"], "correction": True})
        async with asyncio.timeout(10):
            while await counted(client, "sent") < 2:
                await asyncio.sleep(0.01)
        assert [await counted(client, each) for each in ("dropped", "repeated")] == [0, 1]
    assert (taken.status_code, again.status_code) == (202, 202)
    assert again.json() == taken.json() | {"repeated": True}
    assert (conflict.status_code, conflict.json()["type"].rsplit("/")[-1]) == (409, "feedback-conflict")
    assert [(each["labels"], each["correction"], each["tenant"]) for each in listener.got] == [
        (["private", "other"], False, "shop"),
        (["other", "other"], True, "shop"),
    ]
    assert listener.tokens == [*["Bearer s3cret"] * 3, "Bearer xyz"]
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert any("feedback" in line for line in lines)
    assert not any("private" in line or "s3cret" in line for line in lines)


async def test_outcomes_and_metadata_are_handed_on(serving: Any, listener: Listener, monkeypatch: Any) -> None:
    """Values as they were sent; metadata is of what the server declares, or refused without being repeated."""
    monkeypatch.setattr(feedback, "_BACKOFF_FIRST_SECONDS", 0.01)
    values = [True, 3, 2.5, "refunded", -(2**63)]
    metadata = {"language": "de"}
    async with serving(load, feedback_url=listener.url, metadata=("language=de,en",)) as client:
        for number, value in enumerate(values):
            body = {"request_id": str(number), "outcome": {"name": "ended", "value": value}, "metadata": metadata}
            assert (await client.post("/v1/feedback", json=body)).status_code == 202
        refused = await client.post("/v1/feedback", json=body | {"metadata": {"language": "secret"}})
        other = {"request_id": "0", "outcome": {"name": "rating", "value": 1}}
        assert (await client.post("/v1/feedback", json=other)).status_code == 202
    assert refused.status_code == 422
    assert "secret" not in refused.text
    assert [each["outcome"] for each in listener.got[:-1]] == [{"name": "ended", "value": each} for each in values]
    assert [type(each["outcome"]["value"]) for each in listener.got[:-1]] == [type(each) for each in values]
    assert [each.get("metadata") for each in listener.got] == [*[metadata] * len(values), None]
