"""A server is ready only when clients pay for nothing that could have been done before, and while it can answer."""

# What is awaited lives in another thread, so there is no event to wait for.
# ruff: noqa: ASYNC110
# Names end in their dimensions, as in Backend.
# ruff: noqa: N803

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from cloze_api.task import Task
from cloze_server import tokenization
from cloze_server.backend import Ids, Logits
from cloze_server.dummy import dummy_model
from cloze_server.exits import ExitCode
from cloze_server.lifecycle import Lifecycle, Stage, State
from cloze_server.model import LoadedModel
from cloze_server.providers import Provider
from cloze_server.tokenization import TokenizerPool

pytestmark = pytest.mark.anyio


class Watched:
    """The stand-in's backend with a note of each batch's shape, and something to do before it."""

    def __init__(self, model: LoadedModel, before: Any = lambda shape: None) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self._backend = model.backend
        self._before = before

    def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:
        self.shapes.append(ids_BL.shape)
        self._before(ids_BL.shape)
        return self._backend.infer(ids_BL, mask_BL, segments_BL)


def watched(task: Task, before: Any = lambda shape: None) -> tuple[LoadedModel, Watched]:
    """A model and its backend."""
    model = dummy_model(task)
    backend = Watched(model, before)
    return replace(model, backend=backend), backend


@pytest.mark.parametrize("task", list(Task))
async def test_lengths_and_a_full_batch_run_before_ready_and_are_not_counted(serving: Any, task: Task) -> None:
    """Through the same path as requests, whatever the task."""
    model, backend = watched(task)
    async with serving(lambda: model, max_batch_tokens=1024) as client:
        assert (await client.get("/readyz")).status_code == 200
        shapes = list(backend.shapes)
        counted = (await client.get("/metrics")).text
    assert {(1, 8), (1, 32), (1, model.max_length)} <= set(shapes)
    assert (1024 // 64, 64) in shapes
    assert 'cloze_batch_tokens_count{model="dummy",version="local"} 0.0' in counted
    assert 'cloze_tokens_total{kind="real",model="dummy",version="local"} 0.0' in counted
    assert 'cloze_stage_duration_seconds_count{model="dummy",stage="infer",version="local"} 0.0' in counted
    assert "cloze_truncated_inputs_total{" in counted


async def test_a_model_that_fails_while_warming_up_is_never_ready(serving: Any) -> None:
    """With a reason, as for any artifact that can't be run."""

    def fail(shape: tuple[int, ...]) -> None:
        if shape[0] > 1:
            raise RuntimeError("too much")

    model, _ = watched(Task.SEQUENCE_CLASSIFICATION, fail)
    lifecycle = Lifecycle()
    async with serving(lambda: model, lifecycle) as client:
        assert (await client.get("/readyz")).status_code == 503
    assert lifecycle.failure is not None
    assert (lifecycle.failure.code, lifecycle.failure.reason) == (ExitCode.ARTIFACT_INVALID, "GraphInvalid")


async def test_probes_are_answered_while_warming_up(serving: Any) -> None:
    """Alive, not ready, and with the stage."""
    entered, go = threading.Event(), threading.Event()

    def wait(_: tuple[int, ...]) -> None:
        entered.set()
        assert go.wait(10)

    model, _ = watched(Task.SEQUENCE_CLASSIFICATION, wait)
    lifecycle = Lifecycle()

    async def ready() -> int:
        async with serving(lambda: model, lifecycle) as client:
            status: int = (await client.get("/readyz")).status_code
            return status

    waiting = asyncio.create_task(ready())
    async with asyncio.timeout(10):
        while not entered.is_set():
            await asyncio.sleep(0.001)
    assert (lifecycle.state, lifecycle.progress.stage) == (State.LOADING, Stage.WARMING_UP)
    go.set()
    assert await waiting == 200


async def test_tokenizers_are_built_before_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each thread."""
    model = dummy_model(Task.SEQUENCE_CLASSIFICATION)
    pool = TokenizerPool(model.tokenizer, in_text=(), threads=3)
    monkeypatch.setattr(tokenization, "build_tokenizer", None)
    together = threading.Barrier(3)

    def meet(encoded: list[tokenization.Encoded]) -> list[int]:
        together.wait(10)
        return encoded[0].ids

    answers = await asyncio.gather(*(pool.encode(["ab " * 200], offsets=False, then=meet) for _ in range(3)))
    pool.close()
    assert answers == [answers[0]] * 3


async def test_a_batch_that_hangs_makes_the_process_unhealthy(serving: Any) -> None:
    """After a multiple of the timeout; only a restart helps then."""
    entered, go = threading.Event(), threading.Event()
    go.set()

    def wait(_: tuple[int, ...]) -> None:
        entered.set()
        assert go.wait(30)

    model, _ = watched(Task.SEQUENCE_CLASSIFICATION, wait)
    async with serving(lambda: model, timeout_seconds=1) as client:
        go.clear()
        entered.clear()
        # On a busy machine the time may be over before the batch begins, which is then never run.
        while not entered.is_set():
            assert (await client.post("/v1/classify", json={"inputs": "x"})).status_code == 504
        assert (await client.get("/healthz")).status_code == 200, "not at the first timeout"
        async with asyncio.timeout(10):
            while (await client.get("/healthz")).status_code == 200:
                await asyncio.sleep(0.01)
        assert "running" in (await client.get("/healthz")).json()["status"]
        go.set()
        async with asyncio.timeout(10):
            while (await client.get("/healthz")).status_code != 200:
                await asyncio.sleep(0.01)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_dead_inference_thread_makes_the_process_unhealthy(serving: Any) -> None:
    """Nobody else would notice but by time-outs."""
    die = threading.Event()

    def end(_: tuple[int, ...]) -> None:
        if die.is_set():
            raise SystemExit

    model, _ = watched(Task.SEQUENCE_CLASSIFICATION, end)
    async with serving(lambda: model, timeout_seconds=0.2) as client:
        die.set()
        assert (await client.post("/v1/classify", json={"inputs": "x"})).status_code == 504
        response = await client.get("/healthz")
    assert (response.status_code, response.json()["status"]) == (503, "an inference thread is dead")


async def test_an_input_longer_than_a_batch_is_announced(serving: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is answered, alone; the operator of the server should know that it takes more memory than the budget says."""
    async with serving(lambda: dummy_model(Task.SEQUENCE_CLASSIFICATION), max_batch_tokens=16) as client:
        response = await client.post("/v1/classify", json={"inputs": "a " * 100})
    assert response.status_code == 200
    assert "the longest input exceeds a batch" in [record.message for record in caplog.records]


@pytest.mark.parametrize(
    ("asked", "most"),
    [
        ({"threads": 1}, 256),
        ({"threads": 4}, 1024),
        ({"threads": 4, "parallel_batches": 2}, 512),
        ({"threads": 1, "parallel_batches": 2}, 256),
        ({"threads": 4, "max_queue_tokens": 700}, 700),
        ({"threads": 4, "max_batch_tokens": 64}, 64),
    ],
)
async def test_a_batch_is_as_large_as_its_threads_need(
    serving: Any, caplog: pytest.LogCaptureFixture, asked: dict[str, int], most: int
) -> None:
    """And never larger than the queue. A longer input runs alone, which is worth a warning only with a bound that
    somebody asked for."""
    model, backend = watched(Task.SEQUENCE_CLASSIFICATION)
    async with serving(lambda: model, **asked):
        # Threads that are free at once share it.
        full = sum(rows for rows, length in backend.shapes if length == 64)
    assert full == most // 64
    warned = "the longest input exceeds a batch" in [record.message for record in caplog.records]
    assert warned == ("max_batch_tokens" in asked)


async def test_a_gpu_gets_larger_batches(serving: Any) -> None:
    """Whatever the threads beside it are."""
    model, backend = watched(Task.SEQUENCE_CLASSIFICATION)
    async with serving(lambda: replace(model, provider=Provider.CUDA), threads=1):
        full = max(rows * length for rows, length in backend.shapes)
    assert full == 16_384
