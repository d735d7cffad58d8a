"""Batches that memory is too small for."""

# Names end in their dimensions, as in Backend.
# ruff: noqa: N803

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cloze_api.task import Task
from cloze_server.backend import DummyBackend, Ids, Logits, OnnxBackend, OutOfMemoryError
from cloze_server.budget import Budget
from cloze_server.dummy import dummy_model
from cloze_server.engine import Engine
from cloze_server.exits import ExitCode
from cloze_server.lifecycle import Lifecycle
from cloze_server.pieces import Piece
from cloze_server.telemetry import Instruments, Telemetry

pytestmark = pytest.mark.anyio


class Small(DummyBackend):
    """Has memory for so many padded tokens. Notes what it was asked for."""

    def __init__(self, room: int, **shape: Any) -> None:
        super().__init__(**(shape or {"classes": 4, "per_token": False}))
        self.room = room
        self.ran: list[int] = []
        self.refused: list[int] = []

    def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:
        if ids_BL.size > self.room:
            self.refused.append(ids_BL.size)
            raise OutOfMemoryError
        self.ran.append(ids_BL.size)
        return super().infer(ids_BL, mask_BL)


def engine(backend: Small, *, batch: int = 256, parallel: int = 1, telemetry: Telemetry | None = None) -> Engine:
    return Engine(
        backend, telemetry or Telemetry(), pad=0, max_batch_tokens=batch, max_queue_tokens=65_536, parallel=parallel
    )


SEQUENCES = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(SEQUENCES, min_size=1, max_size=6), min_size=1, max_size=12),
    st.integers(1, 120),
    st.integers(1, 3),
)
def test_every_request_gets_its_own_answer_or_a_reason(
    requests: list[list[list[int]]], room: int, parallel: int
) -> None:
    """However little fits: whoever's sequences fit alone gets all its answers in order, everybody else an error."""
    backend = Small(room)

    async def run() -> None:
        running = engine(backend, parallel=parallel)
        try:
            answers = await asyncio.gather(
                *(running.submit([Piece(ids, np.copy) for ids in request]) for request in requests),
                return_exceptions=True,
            )
        finally:
            running.close()
        for request, answer in zip(requests, answers, strict=True):
            if max(map(len, request)) > room:
                assert isinstance(answer, OutOfMemoryError)
                continue
            assert not isinstance(answer, BaseException), answer
            expected = [backend.hashed(np.array(ids, np.int64), 0) for ids in request]
            np.testing.assert_array_equal(answer.kept, expected)
        assert running.queued_tokens == 0

    asyncio.run(run())


async def test_what_fitted_bounds_the_next_batches() -> None:
    """Not every batch pays for what the first has found out."""
    backend = Small(room=64)
    running = engine(backend, batch=1024)
    for _ in range(4):
        answer = await running.submit([Piece([token] * 8, np.copy) for token in range(1, 65)])
        assert len(answer.kept) == 64
    running.close()
    assert backend.refused == [512, 256, 128]


async def test_a_sequence_that_does_not_fit_alone_leaves_batches_as_they_are() -> None:
    """It has shown nothing about many short ones."""
    backend = Small(room=128)
    running = engine(backend, batch=128)
    with pytest.raises(OutOfMemoryError, match="129 tokens"):
        await running.submit([Piece([1] * 129, np.copy)])
    await running.submit([Piece([token] * 8, np.copy) for token in range(1, 17)])
    running.close()
    assert backend.ran == [128]


async def test_divided_batches_are_counted() -> None:
    """Each division, for the dashboard and whoever sizes the pod."""
    instruments = Instruments()
    running = engine(Small(room=16), batch=64, telemetry=Telemetry("m", "1", instruments=instruments))
    await running.submit([Piece([token] * 8, np.copy) for token in range(1, 9)])
    running.close()
    # 64 and 32; what is left is divided without a try.
    labels = {"model": "m", "version": "1"}
    assert instruments.registry.get_sample_value("cloze_batch_splits_total", labels) == 2


async def test_a_client_is_told_what_does_not_fit(serving: Any) -> None:
    """With its length; the others of the batch get their answers."""
    small = Small(room=128, classes=8, per_token=False)
    model = replace(dummy_model(Task.SEQUENCE_CLASSIFICATION), backend=small)
    async with serving(lambda: model) as client:
        small.room = 30
        good, bad = await asyncio.gather(
            client.post("/v1/classify", json={"inputs": ["a b", "c d"]}),
            client.post("/v1/classify", json={"inputs": ["a b", "a " * 40]}),
        )
        again = await client.post("/v1/classify", json={"inputs": ["a b", "c d"]})
    assert (good.status_code, bad.status_code) == (200, 503)
    problem = bad.json()
    assert problem["type"].endswith("problems/out-of-memory")
    assert "42 tokens" in problem["detail"]
    assert "send a shorter one" in problem["detail"]
    assert good.json()["results"] == again.json()["results"]


async def test_a_server_whose_memory_is_too_small_for_its_model_never_gets_ready(serving: Any) -> None:
    """The reason says so, and what to give it."""
    model = replace(dummy_model(Task.SEQUENCE_CLASSIFICATION), backend=Small(room=64, classes=8, per_token=False))
    lifecycle = Lifecycle()
    async with serving(lambda: model, lifecycle):
        assert lifecycle.failure is not None
    assert (lifecycle.failure.code, lifecycle.failure.reason) == (ExitCode.CONFIGURATION, "MemoryTooSmall")
    assert "128 tokens" in str(lifecycle.failure)
    assert "--device-memory-bytes" in str(lifecycle.failure)


def test_the_runtimes_own_lack_of_memory_is_recognised(tmp_path: Path) -> None:
    """A graph whose output is the square of its input's length, asked for more than there are addresses."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["input_ids"], ["row"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["row"], ["column"]),
            helper.make_node("MatMul", ["column", "row"], ["logits"]),
        ],
        "square",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
    )
    path = tmp_path / "square.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    backend = OnnxBackend(path, inputs=["input_ids"], output="logits", threads=1)
    long = np.ones((1, 8 << 20), np.int64)
    with pytest.raises(OutOfMemoryError, match=re.escape(str(8 << 20))):
        backend.infer(long, long)
    assert backend.infer(long[:, :4], long[:, :4]).shape == (4, 4)


# ---------------------------------------------------------------- the budget


@given(st.integers(1, 100_000), st.lists(st.tuples(st.booleans(), st.integers(1, 100_000)), max_size=300))
def test_a_budget_stays_between_one_token_and_what_is_asked_for(most: int, batches: list[tuple[bool, int]]) -> None:
    """It falls below what failed at once, and rises by a sixteenth at most."""
    budget = Budget(most)
    for fits, tokens in batches:
        before = budget.tokens
        if fits:
            budget.fitted(tokens)
            assert before <= budget.tokens <= before + max(1, before // 16)
        else:
            budget.failed(tokens)
            assert budget.tokens <= before
            assert budget.tokens < tokens or budget.tokens == 1
        assert 1 <= budget.tokens <= most


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_a_budget_finds_room_that_came_back(most: int, failed: int) -> None:
    """Full batches that fit lead back to what is asked for."""
    budget = Budget(most)
    budget.failed(failed)
    for _ in range(300 * Budget.PATIENCE):
        budget.fitted(budget.tokens)
    assert budget.tokens == most


@settings(max_examples=50)
@given(st.integers(2, 20_000), st.data())
def test_tries_that_fail_stay_rare(most: int, data: st.DataObject) -> None:
    """With room for less than is asked for, for ever."""
    room = data.draw(st.integers(1, most - 1))
    budget, failures = Budget(most), 0
    for _ in range(100 * Budget.PATIENCE):
        if budget.tokens <= room:
            budget.fitted(budget.tokens)
        else:
            failures += 1
            budget.failed(budget.tokens)
    # Those that find the room first.
    assert failures <= 100 + most.bit_length()


def test_small_batches_prove_nothing() -> None:
    """A quiet night doesn't raise what a busy day will fail with."""
    budget = Budget(1600)
    budget.failed(1600)
    for _ in range(1000):
        budget.fitted(399)
    assert budget.tokens == 800
