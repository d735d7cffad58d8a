"""Clients that ask again at once are told more slowly that there is no room."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.task import Task
from cloze_server.dummy import dummy_model
from cloze_server.refusals import BURST, LONGEST_SECONDS, PER_SECOND, Refusals


@given(st.lists(st.floats(0, 0.1), min_size=1, max_size=400))
def test_no_more_are_told_than_may_be(pauses: list[float]) -> None:
    """In any stretch of time: what is allowed for it, and a burst; nobody waits for longer than a second."""
    now = 0.0
    refusals = Refusals(lambda: now)
    told = []
    for pause in pauses:
        now += pause
        delay = refusals.delay()
        assert 0 <= delay <= LONGEST_SECONDS
        if delay < LONGEST_SECONDS:
            told.append(now + delay)
    for first in range(len(told)):
        for last in range(first, len(told)):
            assert last - first + 1 <= BURST + PER_SECOND * (told[last] - told[first]) + 1 + 1e-6


def test_a_few_are_told_at_once_and_soon_again() -> None:
    now = 100.0
    refusals = Refusals(lambda: now)
    for _ in range(3):
        assert max(refusals.delay() for _ in range(BURST)) == pytest.approx(0)
        assert refusals.delay() == pytest.approx(1 / PER_SECOND)
        now += 1


@pytest.mark.anyio
async def test_refusals_wait_for_their_turn_and_other_problems_do_not(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once; what is accepted meanwhile is answered."""
    delays: list[float] = []

    def delay(_: Refusals) -> float:
        delays.append(0.01)
        return delays[-1]

    monkeypatch.setattr(Refusals, "delay", delay)
    model = dummy_model(Task.SEQUENCE_CLASSIFICATION, 0.05)
    async with serving(lambda: model, max_batch_tokens=8, max_queue_tokens=24) as client:
        wrong = await client.post("/v1/classify", json={"inputs": 1})
        replies = await asyncio.gather(*(client.post("/v1/classify", json={"inputs": "abc def"}) for _ in range(30)))
    assert wrong.status_code == 422
    statuses = [reply.status_code for reply in replies]
    assert set(statuses) == {200, 429}
    assert len(delays) == statuses.count(429)
