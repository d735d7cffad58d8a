"""The queue and its thread."""

# What is awaited lives in another thread or process, so there is no event to wait for.
# ruff: noqa: ASYNC110
# Names end in their dimensions, as in Backend.
# ruff: noqa: N803

import asyncio
import math
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze_server.backend import DummyBackend, Ids, InferenceError, Logits
from cloze_server.engine import Engine, QueueFullError
from cloze_server.pieces import Piece
from cloze_server.telemetry import Telemetry

pytestmark = pytest.mark.anyio


def engine(
    backend: object, *, batch: int = 256, queue: int = 65_536, wait: float = math.inf, parallel: int = 1
) -> Engine:
    """An engine over a backend."""
    return Engine(
        backend,  # type: ignore[arg-type]
        Telemetry(),
        pad=0,
        max_batch_tokens=batch,
        max_queue_tokens=queue,
        max_wait_seconds=wait,
        parallel=parallel,
    )


class Gate:
    """A backend that waits until it is let go, and notes what it was given."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()
        self.rows: list[list[int]] = []

    def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:
        self.entered.set()
        assert self.go.wait(10)
        self.rows += [[int(token) for token in row[mask == 1]] for row, mask in zip(ids_BL, mask_BL, strict=True)]
        return np.zeros((len(ids_BL), 2), np.float32)


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until the condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


SEQUENCES = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(SEQUENCES, min_size=1, max_size=5), min_size=1, max_size=12), st.integers(1, 3))
def test_every_request_gets_its_own_answer(requests: list[list[list[int]]], parallel: int) -> None:
    """Whatever shares a batch, rows come back to who sent them, in order."""
    backend = DummyBackend(classes=4, per_token=False)

    async def run() -> None:
        running = engine(backend, parallel=parallel)
        try:
            answers = await asyncio.gather(
                *(running.submit([Piece(ids, np.copy) for ids in request]) for request in requests)
            )
        finally:
            running.close()
        for request, answer in zip(requests, answers, strict=True):
            expected = [backend.hashed(np.array(ids, np.int64), 0) for ids in request]
            np.testing.assert_array_equal(answer.kept, expected)

    asyncio.run(run())


async def test_only_what_a_piece_keeps_comes_back() -> None:
    """A model that answers for each token is cut to the rows that matter."""
    backend = DummyBackend(classes=4, per_token=True)
    running = engine(backend)
    answer = await running.submit([Piece([5, 6, 7], lambda logits: logits[[2, 0]])])
    running.close()
    ids = np.array([5, 6, 7], np.int64)
    np.testing.assert_array_equal(answer.kept[0], [backend.hashed(ids, 2), backend.hashed(ids, 0)])


async def test_a_cancelled_request_is_withdrawn_before_its_batch() -> None:
    """The model never sees text whose client has left."""
    gate = Gate()
    running = engine(gate, batch=1)
    first = asyncio.create_task(running.submit([Piece([1], np.copy)]))
    await until(gate.entered.is_set)
    second = asyncio.create_task(running.submit([Piece([2], np.copy), Piece([3], np.copy)]))
    third = asyncio.create_task(running.submit([Piece([4], np.copy)]))
    await until(lambda: running.queued_tokens == 3)
    second.cancel()
    await until(lambda: running.queued_tokens == 1)
    gate.go.set()
    await first
    await third
    running.close()
    assert gate.rows == [[1], [4]]


async def test_a_request_that_does_not_fit_is_refused_with_a_wait() -> None:
    """The queue is bounded in tokens, and says when to come back."""
    gate = Gate()
    running = engine(gate, batch=4, queue=10)
    first = asyncio.create_task(running.submit([Piece([1], np.copy)]))
    await until(gate.entered.is_set)
    second = asyncio.create_task(running.submit([Piece([2] * 8, np.copy)]))
    await until(lambda: running.queued_tokens == 8)
    with pytest.raises(QueueFullError) as refused:
        await running.submit([Piece([3] * 3, np.copy)])
    assert refused.value.retry_after_seconds >= 1
    gate.go.set()
    await asyncio.gather(first, second)
    running.close()


class Paced(DummyBackend):
    """Takes as long for a token as for a full batch."""

    def __init__(self, seconds: float) -> None:
        super().__init__(classes=2, per_token=False)
        self._seconds = seconds

    def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:
        time.sleep(self._seconds)
        return super().infer(ids_BL, mask_BL)


async def test_who_would_wait_too_long_is_refused_with_a_wait() -> None:
    """Whatever room there is. Once the queue is shorter, the same is accepted, however long it takes itself."""
    running = engine(Paced(0.1), batch=4, wait=0.35)
    first = [asyncio.create_task(running.submit([Piece([1] * 4, np.copy)])) for _ in range(8)]
    # Of the eight one runs and two are done: five, or half a second, wait.
    await until(lambda: sum(task.done() for task in first) == 2)
    with pytest.raises(QueueFullError, match="would wait for") as refused:
        await running.submit([Piece([2], np.copy)])
    assert refused.value.retry_after_seconds == 1
    await asyncio.gather(*first)
    await running.submit([Piece([3] * 4, np.copy) for _ in range(8)])
    running.close()


async def test_who_would_be_late_is_refused_at_once() -> None:
    """With less time left than the queue takes; who has more is accepted. Else everybody would be just too late."""
    running = engine(Paced(0.1), batch=4)
    first = [asyncio.create_task(running.submit([Piece([1] * 4, np.copy)])) for _ in range(10)]
    await until(lambda: sum(task.done() for task in first) == 2)
    with pytest.raises(QueueFullError, match="the answer would take"):
        await running.submit([Piece([2], np.copy)], time.monotonic() + 0.3)
    patient = running.submit([Piece([3], np.copy)], time.monotonic() + 60)
    await asyncio.gather(*first, patient)
    running.close()


async def test_a_slow_beginning_is_forgotten() -> None:
    """A few batches may always wait, so that they show that the threads are faster by now."""

    class Warming(Paced):
        def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:
            logits = super().infer(ids_BL, mask_BL)
            self._seconds = 0.001
            return logits

    running = engine(Warming(0.5), batch=64, wait=0.05)
    await running.submit([Piece([1] * 64, np.copy)])
    # More waits than was done in that time at first, and less than two batches.
    answers = await asyncio.gather(*(running.submit([Piece([1] * 8, np.copy)]) for _ in range(16)))
    running.close()
    assert len(answers) == 16


async def test_an_idle_hour_makes_no_queue_look_longer() -> None:
    """Single short requests take as long as a full batch, which says nothing about how fast a queue drains."""
    running = engine(Paced(0.02), batch=64, wait=1)
    await running.submit([Piece([1] * 64, np.copy)])
    for _ in range(20):
        await running.submit([Piece([1], np.copy)])
    burst = await asyncio.gather(*(running.submit([Piece([1] * 8, np.copy)]) for _ in range(40)))
    running.close()
    assert len(burst) == 40


async def test_a_failing_batch_fails_its_requests_and_no_others() -> None:
    """The thread outlives an error of the model."""

    class Flaky(DummyBackend):
        def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:
            if ids_BL.max() == 13:
                raise RuntimeError("unlucky")
            return super().infer(ids_BL, mask_BL)

    running = engine(Flaky(classes=2, per_token=False), batch=1)
    with pytest.raises(InferenceError):
        await running.submit([Piece([13], np.copy)])
    await running.submit([Piece([1], np.copy)])
    running.close()


async def test_an_output_that_cannot_be_used_fails_its_own_request_alone() -> None:
    """The others of the batch get their answer."""

    def careful(logits: Logits) -> Logits:
        if not np.isfinite(logits).all():
            raise FloatingPointError
        return logits.copy()

    class Broken(DummyBackend):
        def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:
            logits = super().infer(ids_BL, mask_BL)
            logits[ids_BL[:, 0] == 13] = np.nan
            return logits

    backend = Broken(classes=2, per_token=False)
    running = engine(backend)
    first, second, third = await asyncio.gather(
        running.submit([Piece([1], careful)]),
        running.submit([Piece([2], careful), Piece([13], careful), Piece([3], careful)]),
        running.submit([Piece([4], careful)]),
        return_exceptions=True,
    )
    running.close()
    assert isinstance(second, InferenceError)
    for answer, token in ((first, 1), (third, 4)):
        assert not isinstance(answer, BaseException)
        np.testing.assert_array_equal(answer.kept[0], backend.hashed(np.array([token], np.int64), 0))


async def test_what_is_kept_is_made_as_each_batch_ends() -> None:
    """A request of many batches holds the logits of one at a time."""
    order: list[str] = []

    class Noted(DummyBackend):
        def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:
            order.append("run")
            return super().infer(ids_BL, mask_BL)

    running = engine(Noted(classes=2, per_token=False), batch=1)
    await running.submit([Piece([token], lambda _: order.append("keep")) for token in range(3)])
    running.close()
    assert order == ["run", "keep"] * 3


async def test_what_waits_is_shared_among_free_threads() -> None:
    """Two that are free take half of it each, at once, though one batch would hold it all."""

    class Both(DummyBackend):
        together = threading.Barrier(2)

        def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:
            # Breaks, and fails the batch, unless another thread comes here too.
            self.together.wait(10)
            return super().infer(ids_BL, mask_BL)

    running = engine(Both(classes=2, per_token=False), parallel=2)
    answer = await running.submit([Piece([token] * 8, np.copy) for token in range(6)])
    running.close()
    assert len(answer.kept) == 6


async def test_one_hanging_batch_is_a_failure_however_busy_the_others_are() -> None:
    """Its thread never comes back, so that the process has to be started anew."""

    class Stuck(DummyBackend):
        go = threading.Event()

        def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:
            if ids_BL.max() == 13:
                assert self.go.wait(10)
            return super().infer(ids_BL, mask_BL)

    running = engine(Stuck(classes=2, per_token=False), batch=1, parallel=2)
    stuck = asyncio.create_task(running.submit([Piece([13], np.copy)]))
    await until(lambda: running.failure(0.05) is not None)
    await running.submit([Piece([1], np.copy)])
    assert "has been running" in (running.failure(0.05) or "")
    assert running.failure(60) is None
    Stuck.go.set()
    await stuck
    running.close()
