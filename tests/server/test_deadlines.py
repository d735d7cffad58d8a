"""Requests that set their own deadline, and where a reply's time went."""

# What is awaited lives in another thread, so there is no event to wait for.
# ruff: noqa: ASYNC110

import asyncio
import re
import threading
from dataclasses import replace
from typing import Any

import pytest

from cloze_api.task import Task
from cloze_server.backend import Ids, Logits
from cloze_server.dummy import dummy_model
from cloze_server.timing import Timing

pytestmark = pytest.mark.anyio

_EMPTY = 'cloze_queue_tokens{model="dummy",version="local"} 0.0'


class Gate:
    """A backend that runs nothing until it is told to, and notes how many sequences it was given."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.sequences = 0

    def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:  # noqa: N803 - as in Backend
        self.entered.set()
        assert self.go.wait(10)
        self.sequences += len(ids_BL)
        return dummy_model(Task.SEQUENCE_CLASSIFICATION).backend.infer(ids_BL, mask_BL)


@pytest.mark.parametrize("cached", [False, True])
async def test_who_would_be_late_is_refused_at_once(serving: Any, cached: bool) -> None:
    """Behind a queue that takes longer than its deadline; not where an equal request may share its answer."""
    model = dummy_model(Task.SEQUENCE_CLASSIFICATION, 0.05)
    async with serving(lambda: model, max_batch_tokens=8, cache_bytes=(1 << 20) * cached) as client:
        texts = [f"number {number}" for number in range(40)]
        first = [asyncio.create_task(client.post("/v1/classify", json={"inputs": text})) for text in texts]
        async with asyncio.timeout(10):
            while not any(task.done() for task in first):
                await asyncio.sleep(0.002)
        hasty = asyncio.create_task(client.post("/v1/classify", json={"inputs": "same", "timeout_ms": 250}))
        patient = asyncio.create_task(client.post("/v1/classify", json={"inputs": "same"}))
        refused, answered, *others = await asyncio.gather(hasty, patient, *first)
    assert {reply.status_code for reply in (answered, *others)} == {200}
    if cached:
        assert (refused.status_code, answered.headers["x-cloze-cache"]) == (504, "shared")
    else:
        assert (refused.status_code, refused.json()["type"].rsplit("/")[-1]) == (429, "queue-full")
        assert "the request's time ends" in refused.json()["detail"]


@pytest.mark.parametrize("way", ["header", "field", "both"])
async def test_a_request_can_set_an_earlier_deadline(serving: Any, way: str) -> None:
    """In a header or the body, of which the earlier one counts; what still waits is withdrawn from the queue."""
    gate = Gate()
    model = replace(dummy_model(Task.SEQUENCE_CLASSIFICATION), backend=gate)
    headers = {"header": {"x-cloze-timeout-ms": "50"}, "both": {"x-cloze-timeout-ms": "20000"}}.get(way, {})
    body = {"inputs": "later"} if way == "header" else {"inputs": "later", "timeout_ms": 50}
    async with serving(lambda: model, max_batch_tokens=8) as client:
        gate.entered.clear()
        gate.go.clear()
        first = asyncio.create_task(client.post("/v1/classify", json={"inputs": "first"}))
        assert await asyncio.to_thread(gate.entered.wait, 10)
        before = gate.sequences
        late = await client.post("/v1/classify", json=body, headers=headers)
        async with asyncio.timeout(10):
            while _EMPTY not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.005)
        gate.go.set()
        assert (await first).status_code == 200
        assert gate.sequences == before + 1, "the model was given what nobody waits for"
    assert (late.status_code, late.json()["type"].rsplit("/")[-1]) == (504, "timeout")
    assert "0.05 s" in late.json()["detail"]


async def test_no_request_gets_more_time_than_the_server_gives(serving: Any) -> None:
    """A longer deadline is no error, and of no effect."""
    async with serving(lambda: dummy_model(Task.SEQUENCE_CLASSIFICATION, 0.5), timeout_seconds=0.05) as client:
        late = await client.post(
            "/v1/classify", json={"inputs": "x", "timeout_ms": 60_000}, headers={"x-cloze-timeout-ms": "60000"}
        )
    assert late.status_code == 504
    assert "0.05 s" in late.json()["detail"]


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1.5", "", "1e3", "1" * 400])
async def test_a_deadline_that_is_none_is_refused(serving: Any, value: str) -> None:
    """Not ignored."""
    async with serving(lambda: dummy_model(Task.SEQUENCE_CLASSIFICATION)) as client:
        refused = await client.post("/v1/classify", json={"inputs": "x"}, headers={"x-cloze-timeout-ms": value})
    assert (refused.status_code, refused.json()["type"].rsplit("/")[-1]) == (422, "input-invalid")


async def test_a_reply_says_where_its_time_went(serving: Any) -> None:
    """Each stage and the whole in milliseconds; a refused request has the stages that it reached."""
    async with serving(lambda: dummy_model(Task.SEQUENCE_CLASSIFICATION, 0.02)) as client:
        answered = await client.post("/v1/classify", json={"inputs": "x"})
        refused = await client.post("/v1/classify", json={})
        described = await client.get("/v1/models")
    found = dict(re.findall(r"(\w+);dur=([0-9.]+)", answered.headers["server-timing"]))
    assert list(found) == ["tokenize", "queue", "infer", "post", "total"]
    assert float(found["infer"]) >= 20
    assert float(found["total"]) >= sum(float(found[each]) for each in ("tokenize", "queue", "infer", "post")) - 0.01
    assert re.fullmatch(r"total;dur=[0-9.]+", refused.headers["server-timing"])
    assert "server-timing" not in described.headers


def test_stages_are_told_in_the_order_in_which_they_ended() -> None:
    """In milliseconds, to the microsecond."""
    assert Timing(None, {"tokenize": 0.0004, "queue": 1.5}).header(2) == (
        "tokenize;dur=0.400, queue;dur=1500.000, total;dur=2000.000"
    )
