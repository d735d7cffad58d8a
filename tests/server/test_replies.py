"""Replies that are kept: who gets them, for how long, and within which memory."""

# What is awaited lives in another thread, so there is no event to wait for.
# ruff: noqa: ASYNC110

import asyncio
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.task import Task
from cloze_server import replies
from cloze_server.backend import Ids, Logits
from cloze_server.dummy import dummy_model
from cloze_server.keys import new_key
from cloze_server.replies import Reply, ReplyCache, Tally, key_of

pytestmark = pytest.mark.anyio

_EMPTY = replies._ENTRY_BYTES
_CLASSIFY = Task.SEQUENCE_CLASSIFICATION


class Gate:
    """A backend that runs nothing until it is told to, fails when it is told to, and counts its sequences."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.fails = False
        self.sequences = 0

    def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:  # noqa: N803 - as in Backend
        self.entered.set()
        assert self.go.wait(10)
        if self.fails:
            raise RuntimeError("on purpose")
        self.sequences += len(ids_BL)
        return dummy_model(_CLASSIFY).backend.infer(ids_BL, mask_BL)

    def close(self) -> None:
        """Hold up what comes from now on."""
        self.entered.clear()
        self.go.clear()


def gated(gate: Gate) -> Callable[[], Any]:
    """Loads a classifier behind the gate."""
    return lambda: replace(dummy_model(_CLASSIFY), backend=gate)


async def value(client: httpx.AsyncClient, sample: str) -> float:
    """A sample of /metrics; its name may be followed by some of its labels, in their order."""
    for line in (await client.get("/metrics")).text.splitlines():
        if line.startswith(sample):
            return float(line.split()[-1])
    raise AssertionError(sample)


def reply(size: int = 0) -> Reply:
    """A reply whose body has so many bytes."""
    return Reply(b"x" * size, 1, Tally())


async def test_an_equal_request_is_answered_without_the_model_and_counted(serving: Any) -> None:
    """With the same body, an id of its own, and its predictions in the metrics: drift is of what was answered."""
    gate = Gate()
    async with serving(gated(gate), cache_bytes=1 << 20) as client:
        before = gate.sequences
        made = await client.post("/v1/classify", json={"inputs": ["some words", "other"]})
        kept = await client.post("/v1/classify", json={"inputs": ["some words", "other"], "timeout_ms": 9000})
        assert gate.sequences == before + 2
        assert made.content == kept.content
        assert [each.headers["x-cloze-cache"] for each in (made, kept)] == ["miss", "hit"]
        assert made.headers["x-request-id"] != kept.headers["x-request-id"]
        assert await value(client, "cloze_prediction_confidence_count") == 4
        text = (await client.get("/metrics")).text
        assert sum(map(float, re.findall(r"(?m)^cloze_predictions_total.* (\S+)$", text))) == 4
        for result, count in (("hit", 1), ("miss", 1), ("shared", 0)):
            label = f'cloze_cache_requests_total{{model="dummy",result="{result}",version="local"}}'
            assert await value(client, label) == count
        assert await value(client, "cloze_cache_bytes") > len(made.content)
        # By length, too: the class is of the request, not of the work.
        durations = 'cloze_request_duration_seconds_count{length="32",model="dummy",route="/v1/classify"'
        assert await value(client, durations) == 2


@pytest.mark.parametrize(
    ("task", "path", "one", "other"),
    [
        (_CLASSIFY, "/v1/classify", {"inputs": "a"}, {"inputs": "b"}),
        (_CLASSIFY, "/v1/classify", {"inputs": ["a b"]}, {"inputs": ["a", "b"]}),
        (_CLASSIFY, "/v1/classify", {"inputs": "a"}, {"inputs": "a", "top_k": 1}),
        (Task.EMBEDDING, "/v1/embeddings", {"input": "a"}, {"input": "a", "encoding_format": "base64"}),
        (Task.TOKEN_CLASSIFICATION, "/v1/token-classify", {"inputs": "a"}, {"words": [["a"]]}),
    ],
)
async def test_another_request_has_an_answer_of_its_own(
    serving: Any, task: Task, path: str, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Whatever differs: a text, where one ends, an option, a form."""
    async with serving(lambda: dummy_model(task), cache_bytes=1 << 20) as client:
        for body in (one, other):
            answered = await client.post(path, json=body)
            assert (answered.status_code, answered.headers["x-cloze-cache"]) == (200, "miss")


async def test_two_routes_and_two_models_keep_their_replies_apart(serving: Any) -> None:
    """Equal texts, and even an equal digest under another name."""
    loads = [lambda name=name: replace(dummy_model(_CLASSIFY), name=name) for name in ("a", "b")]
    async with serving(loads, cache_bytes=1 << 20) as client:
        for name in ("a", "b"):
            answered = await client.post("/v1/classify", json={"inputs": "x", "model": name})
            assert (answered.json()["model"], answered.headers["x-cloze-cache"]) == (name, "miss")


async def test_what_one_key_asked_another_cannot_tell(serving: Any, tmp_path: Any) -> None:
    """A hit would tell a tenant that somebody else sent just this text."""
    file = tmp_path / "keys"
    (first, one), (second, two) = new_key("one"), new_key("two")
    file.write_text(f"{one}\n{two}\n")
    async with serving(lambda: dummy_model(_CLASSIFY), cache_bytes=1 << 20, api_keys=file) as client:
        results = [
            (await client.post("/v1/classify", json={"inputs": "x"}, headers={"x-api-key": key})).headers[
                "x-cloze-cache"
            ]
            for key in (first, second, first)
        ]
    assert results == ["miss", "miss", "hit"]


async def test_without_bytes_nothing_is_kept(serving: Any) -> None:
    """The default: no header either."""
    gate = Gate()
    async with serving(gated(gate)) as client:
        before = gate.sequences
        for _ in range(2):
            assert "x-cloze-cache" not in (await client.post("/v1/classify", json={"inputs": "a"})).headers
        assert gate.sequences == before + 2


async def test_equal_requests_at_once_are_computed_once(serving: Any) -> None:
    """Those that come while the first is at work share its answer."""
    gate = Gate()
    async with serving(gated(gate), cache_bytes=1 << 20) as client:
        before = gate.sequences
        gate.close()
        asked = [asyncio.create_task(client.post("/v1/classify", json={"inputs": "same"})) for _ in range(5)]
        assert await asyncio.to_thread(gate.entered.wait, 10)
        async with asyncio.timeout(10):
            while await value(client, "cloze_in_flight_requests") < 5:
                await asyncio.sleep(0.005)
        gate.go.set()
        answered = await asyncio.gather(*asked)
        assert gate.sequences == before + 1
        assert await value(client, "cloze_prediction_confidence_count") == 5
    assert {each.status_code for each in answered} == {200}
    assert sorted(each.headers["x-cloze-cache"] for each in answered) == ["miss"] + ["shared"] * 4


async def test_who_waits_too_goes_on_when_the_first_is_late(serving: Any) -> None:
    """The first one's deadline is its own."""
    gate = Gate()
    async with serving(gated(gate), cache_bytes=1 << 20) as client:
        before = gate.sequences
        gate.close()
        first = asyncio.create_task(client.post("/v1/classify", json={"inputs": "same", "timeout_ms": 200}))
        assert await asyncio.to_thread(gate.entered.wait, 10)
        second = asyncio.create_task(client.post("/v1/classify", json={"inputs": "same"}))
        assert (await first).status_code == 504
        gate.go.set()
        answered = await second
        assert (answered.status_code, answered.headers["x-cloze-cache"]) == (200, "shared")
        assert gate.sequences == before + 1


async def test_an_error_is_not_kept(serving: Any) -> None:
    """The next equal request is tried anew."""
    gate = Gate()
    async with serving(gated(gate), cache_bytes=1 << 20) as client:
        gate.fails = True
        failed = await client.post("/v1/classify", json={"inputs": "x"})
        gate.fails = False
        answered = await client.post("/v1/classify", json={"inputs": "x"})
    assert (failed.status_code, answered.status_code) == (500, 200)
    assert answered.headers["x-cloze-cache"] == "miss"


async def test_work_ends_when_nobody_waits_any_more() -> None:
    """And whoever asks then begins anew, instead of inheriting the end."""
    cache = ReplyCache(1 << 20, 60)
    started, ended = asyncio.Event(), asyncio.Event()

    async def endless() -> Reply:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    waiting = [asyncio.create_task(cache.get(b"k", endless)) for _ in range(2)]
    await started.wait()
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    assert not ended.is_set()
    waiting[1].cancel()
    await asyncio.wait(waiting[1:])

    async def quick() -> Reply:
        return reply(1)

    anew = await cache.get(b"k", quick)
    await ended.wait()
    assert (anew, len(cache)) == ((reply(1), "miss"), 1)
    assert all(each.cancelled() for each in waiting)
    assert (await cache.get(b"k", quick))[1] == "hit"
    cache.close()


async def test_a_reply_goes_at_its_age_without_being_asked_for() -> None:
    """What was promised about memory holds on an idle server."""
    gone = asyncio.Event()
    cache = ReplyCache(1 << 20, 0.02, lambda size, evicted: gone.set() if evicted else None)
    cache.put(b"k", reply())
    async with asyncio.timeout(10):
        await gone.wait()
    assert (len(cache), cache.bytes) == (0, 0)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3 * _EMPTY), st.floats(0, 8), st.booleans()),
        max_size=40,
    ),
    st.integers(_EMPTY // 2, 8 * _EMPTY),
)
def test_memory_and_age_are_bounded_whatever_is_asked(
    asked: list[tuple[int, int, float, bool]], max_bytes: int
) -> None:
    """Each request gets the answer to itself, no older than allowed; failures are never kept."""

    async def ask() -> None:
        now = [0.0]
        told: list[tuple[int, int]] = []
        cache = ReplyCache(max_bytes, 10.0, lambda size, evicted: told.append((size, evicted)), lambda: now[0])
        made: dict[int, tuple[bytes, float]] = {}
        kept = 0
        for number, size, seconds, fails in asked:
            now[0] += seconds

            async def make(number: int = number, size: int = size, fails: bool = fails) -> Reply:
                if fails:
                    raise RuntimeError
                body = b"%d" % number * (1 + size)
                made[number] = (body, now[0])
                return Reply(body, 1, Tally())

            try:
                answered, result = await cache.get(key_of(str(number)), make)
            except RuntimeError:
                assert fails
                continue
            body, when = made[number]
            assert answered.body == body
            assert now[0] - when < 10.0
            if result == "miss":
                kept += answered.size <= max_bytes
            # The sizes of what is kept, counted anew.
            assert cache.bytes == sum(each.size for each in cache._kept.values()) <= max_bytes
            assert cache._kept.keys() == cache._ends.keys()
        if told:
            assert told[-1][0] == cache.bytes
            assert sum(evicted for _, evicted in told) == kept - len(cache)
        assert not cache._flights
        cache.close()

    asyncio.run(ask())


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), min_size=1))
def test_a_key_tells_other_parts_apart_and_shows_none(one: list[str], other: list[str]) -> None:
    """Equal keys are of equal parts."""
    assert (key_of(*one) == key_of(*other)) == (one == other)
    assert len(key_of(*one)) == 32


async def test_memory_has_no_text_of_a_request(serving: Any) -> None:
    """A classifier's reply quotes nothing, so the text is nowhere."""
    caches = []
    original = ReplyCache.put

    def put(self: ReplyCache, key: bytes, kept: Reply) -> None:
        caches.append(self)
        original(self, key, kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplyCache, "put", put)
        async with serving(lambda: dummy_model(_CLASSIFY), cache_bytes=1 << 20) as client:
            await client.post("/v1/classify", json={"inputs": "a secret"})
            assert len(caches[0]) == 1
            assert "secret" not in repr((caches[0]._kept, caches[0]._ends, caches[0]._flights))


async def test_a_lone_surrogate_is_refused_before_it_is_looked_up(serving: Any) -> None:
    """It has no bytes to make a key of."""
    async with serving(lambda: dummy_model(_CLASSIFY), cache_bytes=1 << 20) as client:
        refused = await client.post(
            "/v1/classify", content=rb'{"inputs": "\ud800"}', headers={"content-type": "application/json"}
        )
    assert refused.status_code == 422
