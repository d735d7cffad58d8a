"""Answers follow from torch's logits by the rules of transformers' question-answering pipeline, brute force.

Its formula for one window: softmax of start and of end over the context's tokens and [CLS]; a span's score is the
product; spans are widened to whole words, and those that become the same add up. The pipeline adds up those among its
few best spans of tokens, and such as have the same text anywhere; here it is all spans of the same words. Over several
windows it normalises each by itself, so that a window without the answer has as sure a one as that with it; here all
share one softmax.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.task import Task
from cloze_server.dummy import dummy_model
from cloze_server.tasks.spans import Evidence, Spans
from cloze_server.windows import Window, plan

pytestmark = pytest.mark.anyio

MAX_LENGTH = 48
QUESTION = "Where did Grace Hopper live?"
SHORT = "Ada Lovelace lived in London, near St. James's Square."
LONG = (
    f"{SHORT} Grace Hopper found a moth in the relay of the computer at Harvard University, while my card was charged "
    "twice and nobody answers the phone. The parcel arrived late and the moth answers. My computer was found in "
    "London, and nobody at the University charged Ada for the phone, near the relay that hello found twice."
)


def logits_of(artifact: Any, question: str, context: str, stride: int) -> list[tuple[Any, Any, list[int]]]:
    """transformers' windows: start and end logits, and the places of the window's context tokens in it."""
    import torch  # noqa: PLC0415 - takes seconds, and most tests do without

    cut = artifact.tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=MAX_LENGTH,
        stride=stride,
        return_overflowing_tokens=True,
    )
    result = []
    for row, ids in enumerate(cut["input_ids"]):
        with torch.no_grad():
            output = artifact.model(torch.tensor([ids]), token_type_ids=torch.tensor([cut["token_type_ids"][row]]))
        inside = [place for place, sequence in enumerate(cut.sequence_ids(row)) if sequence == 1]
        result.append((output.start_logits[0].numpy(), output.end_logits[0].numpy(), inside))
    return result


def expected_answers(
    artifact: Any, question: str, context: str, *, stride: int = 0, longest: int = 15
) -> tuple[list[tuple[int, int, float]], float]:
    """All answers as (start, end, score), best first, and the score of none."""
    windows = logits_of(artifact, question, context, stride)
    encoded = artifact.tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    offsets, words = encoded["offset_mapping"], encoded.word_ids()
    none = min(windows, key=lambda each: each[0][0] + each[1][0])
    tables: list[dict[int, float]] = [{-1: float(none[side][0])} for side in (0, 1)]
    shift = 0
    placed = []
    for starts, ends, inside in windows:
        placed.append((shift, starts[inside], ends[inside]))
        for side, logits in enumerate((starts, ends)):
            for index, place in enumerate(inside):
                table = tables[side]
                table[shift + index] = max(float(logits[place]), table.get(shift + index, -np.inf))
        shift += len(inside) - stride
    totals = [np.logaddexp.reduce(list(table.values())) for table in tables]
    found: dict[tuple[int, int], float] = {}
    for shift, starts, ends in placed:
        here: dict[tuple[int, int], float] = {}
        for first in range(len(starts)):
            for last in range(first, min(first + longest, len(starts))):
                score = float(np.exp(starts[first] - totals[0] + ends[last] - totals[1]))
                begin = offsets[words.index(words[shift + first])][0]
                end = offsets[len(words) - 1 - words[::-1].index(words[shift + last])][1]
                here[begin, end] = here.get((begin, end), 0.0) + score
        for span, score in here.items():
            found[span] = max(score, found.get(span, 0.0))
    ranked = sorted(((begin, end, score) for (begin, end), score in found.items()), key=lambda each: -each[2])
    return ranked, float(np.exp(none[0][0] - totals[0] + none[1][0] - totals[1]))


@pytest.mark.parametrize("longest", [1, 4, 15])
async def test_answers_are_those_of_the_pipelines_formula(artifacts: Any, serving: Any, longest: int) -> None:
    """Spans, characters and scores; the second text of the pair is segment 1 for the model."""
    artifact = artifacts(Task.QUESTION_ANSWERING)
    expected, none = expected_answers(artifact, QUESTION, SHORT, longest=longest)
    body = {"question": QUESTION, "context": SHORT, "top_k": 5, "max_answer_tokens": longest}
    async with serving(artifact.load) as client:
        reply = (await client.post("/v1/answer", json=body)).json()
    (result,) = reply["results"]
    assert (result["windows"], result["truncated"]) == (1, False)
    assert [(each["start"], each["end"]) for each in result["answers"]] == [each[:2] for each in expected[:5]]
    assert [each["score"] for each in result["answers"]] == pytest.approx([each[2] for each in expected[:5]], rel=1e-3)
    assert result["no_answer_score"] == pytest.approx(none, rel=1e-3)
    for answer in result["answers"]:
        assert answer["answer"] == SHORT[answer["start"] : answer["end"]]


@pytest.mark.parametrize("stride", [0, 5, 16])
async def test_a_long_context_is_read_in_windows_behind_the_question(artifacts: Any, serving: Any, stride: int) -> None:
    """By default, without being asked to; answers of all windows compete in one distribution."""
    artifact = artifacts(Task.QUESTION_ANSWERING)
    windows = logits_of(artifact, QUESTION, LONG, stride)
    expected, none = expected_answers(artifact, QUESTION, LONG, stride=stride)
    body = {"question": QUESTION, "context": LONG, "top_k": 8, "stride": stride}
    async with serving(artifact.load, max_batch_tokens=100) as client:
        (result,) = (await client.post("/v1/answer", json=body)).json()["results"]
    assert result["windows"] == len(windows) > 2
    assert [(each["start"], each["end"]) for each in result["answers"]] == [each[:2] for each in expected[:8]]
    assert [each["score"] for each in result["answers"]] == pytest.approx([each[2] for each in expected[:8]], rel=1e-3)
    assert result["no_answer_score"] == pytest.approx(none, rel=1e-3)


async def test_no_answer_is_an_answer_where_asked(artifacts: Any, serving: Any) -> None:
    """Among the others by its score, which the reply has anyway."""
    artifact = artifacts(Task.QUESTION_ANSWERING)
    async with serving(artifact.load) as client:
        body = {"question": QUESTION, "context": SHORT, "top_k": 100, "max_answer_tokens": 2}
        plain = (await client.post("/v1/answer", json=body)).json()["results"][0]
        asked = (await client.post("/v1/answer", json={**body, "no_answer": True})).json()["results"][0]
    empty = {"answer": "", "score": plain["no_answer_score"], "start": 0, "end": 0}
    assert empty not in plain["answers"]
    assert empty in asked["answers"]
    scores = [each["score"] for each in asked["answers"]]
    assert scores == sorted(scores, reverse=True)


async def test_many_questions_are_answered_in_their_order(artifacts: Any, serving: Any) -> None:
    """As one by one, whatever shares a batch."""
    artifact = artifacts(Task.QUESTION_ANSWERING)
    pairs = [
        {"question": question, "context": context}
        for question in (QUESTION, "who answers the phone")
        for context in (SHORT, LONG, "hello")
    ]
    async with serving(artifact.load) as client:
        together = (await client.post("/v1/answer", json={"inputs": pairs})).json()["results"]
        singly = [(await client.post("/v1/answer", json=pair)).json()["results"][0] for pair in pairs]
        alone = (await client.post("/v1/answer", json={"inputs": pairs[0]})).json()["results"]
    for one, other in zip([singly[0], *singly], [*alone, *together], strict=True):
        assert [each["answer"] for each in one["answers"]] == [each["answer"] for each in other["answers"]]
        assert one["answers"][0]["score"] == pytest.approx(other["answers"][0]["score"], rel=1e-3)


async def test_a_context_can_be_cut_or_refused_instead(artifacts: Any, serving: Any) -> None:
    """At the end, at the beginning; answers then come from what is left."""
    artifact = artifacts(Task.QUESTION_ANSWERING)
    async with serving(artifact.load) as client:

        async def ask(truncate: str) -> Any:
            body = {"question": QUESTION, "context": LONG, "truncate": truncate, "top_k": 20}
            return await client.post("/v1/answer", json=body)

        right, left, refused = [await ask(truncate) for truncate in ("right", "left", "error")]
    assert refused.status_code == 422
    assert refused.json()["type"].endswith("input-too-long")
    for reply in (right, left):
        (result,) = reply.json()["results"]
        assert (result["tokens"], result["truncated"], result["windows"]) == (MAX_LENGTH, True, 1)
    assert max(each["end"] for each in right.json()["results"][0]["answers"]) < 0.7 * len(LONG)
    assert min(each["start"] for each in left.json()["results"][0]["answers"]) > 0.3 * len(LONG)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"question": "a"},
        {"context": "a"},
        {"question": "a", "context": ""},
        {"question": "a", "context": "b", "inputs": [{"question": "a", "context": "b"}]},
        {"inputs": []},
        {"inputs": [{"question": "a"}]},
        {"inputs": [{"question": "a", "context": "b", "secret": "c"}]},
        {"question": "a", "context": "b", "top_k": 0},
    ],
)
async def test_a_request_takes_one_form(serving: Any, body: dict[str, Any]) -> None:
    """A question with its context, or several of them."""
    async with serving(lambda: dummy_model(Task.QUESTION_ANSWERING)) as client:
        response = await client.post("/v1/answer", json=body)
    assert response.status_code == 422
    assert "secret" not in response.text


async def test_a_question_that_leaves_no_room_is_refused(serving: Any) -> None:
    """It is never cut; 128 tokens hold it and a short context, but no windows of a long one."""
    question = "a " * 110
    async with serving(lambda: dummy_model(Task.QUESTION_ANSWERING)) as client:
        fits = await client.post("/v1/answer", json={"question": question, "context": "a b c"})
        refused = await client.post("/v1/answer", json={"question": question, "context": "a " * 100})
        beyond = await client.post("/v1/answer", json={"question": "a " * 200, "context": "a"})
    assert fits.status_code == 200
    for response in (refused, beyond):
        assert response.status_code == 422
        assert response.json()["type"].endswith("input-too-long")
        assert "question" in response.json()["detail"]


async def test_a_context_without_tokens_has_no_answer(serving: Any) -> None:
    """Rather than an error."""
    async with serving(lambda: dummy_model(Task.QUESTION_ANSWERING)) as client:
        reply = await client.post("/v1/answer", json={"question": "a", "context": "\u0007"})
    (result,) = reply.json()["results"]
    assert result["answers"] == []
    assert result["no_answer_score"] == pytest.approx(1.0)


@given(
    st.lists(st.tuples(*[st.floats(-5, 5, width=32)] * 2), min_size=1, max_size=30),
    st.integers(1, 8),
    st.integers(1, 40),
    st.integers(2, 9),
)
def test_the_best_spans_are_found_whatever_the_windows(
    logits: list[tuple[float, float]], count: int, longest: int, room: int
) -> None:
    """As by trying all; scores never exceed 1, and a token that all windows see alike counts once."""
    windows = plan(len(logits), room, "window", room // 2)
    table = np.array(logits, np.float32)
    evidence = [
        Evidence(table[each.start : each.stop, 0], table[each.start : each.stop, 1], 0.5, 0.5) for each in windows
    ]
    word_of = [place // 2 for place in range(len(logits))]
    totals = np.logaddexp.reduce(np.vstack([table.astype(np.float64), [0.5, 0.5]]), axis=0)
    expected: dict[tuple[int, int], float] = {}
    for window in windows:
        here: dict[tuple[int, int], float] = {}
        for first in range(window.start, window.stop):
            for last in range(first, min(first + longest, window.stop)):
                words = (word_of[first], word_of[last])
                score = float(np.exp(table[first, 0] - totals[0] + table[last, 1] - totals[1]))
                here[words] = here.get(words, 0.0) + score
        for words, score in here.items():
            expected[words] = max(score, expected.get(words, 0.0))
    found = Spans(windows, evidence).best(count, longest, word_of)
    assert len(found) == min(count, len(expected))
    for first, last, score in found:
        assert score == pytest.approx(expected[first, last], rel=1e-4)
        assert score <= 1
    best = sorted(expected.values(), reverse=True)[:count]
    assert [score for *_, score in found] == pytest.approx(best, rel=1e-4)


def test_a_window_without_the_answer_does_not_compete_with_the_one_that_has_it() -> None:
    """Each by itself would be as sure: the second window's best span is the best of bad ones."""
    sure = Evidence(np.array([9, 0, 0], np.float32), np.array([0, 9, 0], np.float32), -3.0, -3.0)
    lost = Evidence(np.array([0, 3, 0], np.float32), np.array([0, 3, 0], np.float32), 2.0, 2.0)
    spans = Spans([Window(0, 3, 0, 3), Window(3, 6, 3, 6)], [sure, lost])
    (first, last, score), other, *_ = spans.best(2, 3, range(6))
    assert (first, last) == (0, 1)
    assert score > 0.98
    assert other[2] < 0.01
    assert spans.no_answer < 1e-6, "the window that has the answer says so"
