"""Several models on the same processors."""

# Names end in their dimensions, as in Backend.
# ruff: noqa: N803

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze_api.task import Task
from cloze_server.backend import DummyBackend, Ids, Logits
from cloze_server.dummy import dummy_model
from cloze_server.engine import Engine
from cloze_server.pieces import Piece
from cloze_server.telemetry import Telemetry
from cloze_server.turns import Turns

pytestmark = pytest.mark.anyio


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until the condition holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is awaited lives in another thread
            await asyncio.sleep(0.001)


class Crowd:
    """Backends that stay in `infer` until they are let go, and how many are there."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.go = threading.Event()
        self._lock = threading.Lock()

    def backend(self) -> DummyBackend:
        crowd = self

        class Member(DummyBackend):
            def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:
                with crowd._lock:
                    crowd.inside += 1
                    crowd.most = max(crowd.most, crowd.inside)
                assert crowd.go.wait(10)
                with crowd._lock:
                    crowd.inside -= 1
                return super().infer(ids_BL, mask_BL)

        return Member(classes=2, per_token=False)


@pytest.mark.parametrize("parallel", [1, 2])
async def test_all_models_together_run_as_many_batches_as_one_may(parallel: int) -> None:
    """Each batch has its share of the threads, so that more of them would want more processors than there are."""
    crowd, turns = Crowd(), Turns(parallel)
    engines = [
        Engine(
            crowd.backend(),
            Telemetry(),
            pad=0,
            max_batch_tokens=1,
            max_queue_tokens=100,
            parallel=parallel,
            turns=turns,
        )
        for _ in range(3)
    ]
    requests = [
        asyncio.create_task(running.submit([Piece([token], np.copy) for token in range(4)])) for running in engines
    ]
    # Every thread is inside or in line.
    await until(lambda: crowd.inside + turns.waiting == 3 * parallel)
    assert crowd.inside == parallel
    crowd.go.set()
    answers = await asyncio.gather(*requests)
    for running in engines:
        running.close()
    assert [len(answer.kept) for answer in answers] == [4, 4, 4]
    assert crowd.most == parallel


async def test_models_of_a_server_share_their_turns(serving: Any) -> None:
    """However many there are."""
    crowd = Crowd()
    crowd.go.set()
    models = [replace(dummy_model(Task.SEQUENCE_CLASSIFICATION), name=name, backend=crowd.backend()) for name in "abc"]
    loaders = [lambda model=model: model for model in models]
    async with serving(loaders) as client:
        crowd.go.clear()
        crowd.most = 0
        requests = [
            asyncio.create_task(client.post("/v1/classify", json={"inputs": "x", "model": name})) for name in "abc"
        ]
        await until(lambda: crowd.inside == 1)
        crowd.go.set()
        replies = await asyncio.gather(*requests)
    assert [reply.status_code for reply in replies] == [200] * 3
    assert crowd.most == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=4))
def test_nobody_is_overtaken_twice(wanted: list[int]) -> None:
    """Between two turns of one, each of the others that wants a turn has one, whoever wants more of them or longer."""
    turns, order = Turns(1), []
    left = list(wanted)

    def work(number: int) -> None:
        for _ in range(wanted[number]):
            with turns.turn():
                order.append(number)
                left[number] -= 1
                # As long as it takes all others to come back.
                while turns.waiting < sum(1 for other, more in enumerate(left) if more and other != number):
                    time.sleep(0)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(wanted))]
    with turns.turn():
        for thread in threads:
            thread.start()
        while turns.waiting < len(threads):
            time.sleep(0)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert Counter(order) == dict(enumerate(wanted))
    for place, number in enumerate(order):
        following = order[place + 1 :]
        if number in following:
            between = following[: following.index(number)]
            others = set(following) - {number}
            assert others == set(between)


def test_a_batch_that_fails_gives_its_turn_back() -> None:
    """Else one broken model would stop all."""
    turns = Turns(1)
    with pytest.raises(RuntimeError), turns.turn():
        raise RuntimeError
    with turns.turn():
        assert turns.waiting == 0
