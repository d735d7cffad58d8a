"""Bodies that don't fit the schema: little work, little memory, and no text of the user in the answer."""

import json
import threading
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from cloze_api.serving import INPUTS_MAX
from cloze_api.task import Task
from cloze_server.bounds import ERRORS_MAX, WORDS_MAX
from cloze_server.dummy import dummy_model
from cloze_server.tasks.classify import ClassifyRequest
from cloze_server.tasks.fill_mask import FillMaskRequest
from cloze_server.tasks.handler import TaskRequest
from cloze_server.tasks.token_classify import TokenClassify, TokenClassifyRequest

pytestmark = pytest.mark.anyio

# About what fits into the largest body.
MANY = 400_000


@pytest.mark.parametrize(
    ("request_type", "body"),
    [
        (ClassifyRequest, {"inputs": [1] * MANY}),
        (FillMaskRequest, {"inputs": [{}] * MANY}),
        (TokenClassifyRequest, {"words": [[1] * MANY]}),
        (TokenClassifyRequest, {"words": [[1]] * MANY}),
        (TokenClassifyRequest, {"words": [[""] * MANY]}),
        (TokenClassifyRequest, {"words": [1] * MANY, "inputs": [1] * MANY}),
        (ClassifyRequest, {"inputs": "x"} | {f"field-{number}": 1 for number in range(MANY)}),
    ],
)
def test_many_wrong_items_make_few_errors(request_type: type[TaskRequest], body: dict[str, Any]) -> None:
    """An error for each would cost a thousand times the memory of the body, and stall the event loop for seconds."""
    with pytest.raises(ValidationError) as error:
        request_type.model_validate(body)
    assert error.value.error_count() <= ERRORS_MAX


def test_items_beyond_the_limit_are_not_looked_at() -> None:
    """A list that is too long is refused for that, whatever comes after the limit."""
    with pytest.raises(ValidationError) as error:
        ClassifyRequest.model_validate({"inputs": ["x"] * INPUTS_MAX + [1] * MANY})
    assert {each["type"] for each in error.value.errors()} == {"string_type", "too_long"}
    assert all(INPUTS_MAX not in each["loc"] for each in error.value.errors())


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"inputs": ["x"] * (INPUTS_MAX + 1)}, 413, "too-many-inputs"),
        ({"words": [["x"]] * (INPUTS_MAX + 1)}, 413, "too-many-inputs"),
        ({"words": [["x"], ["x"] * (WORDS_MAX + 1)]}, 422, "input-too-long"),
        ({"words": [["x"], ["x", 7]]}, 422, "input-invalid"),
        ({"inputs": [7] * MANY}, 422, "input-invalid"),
    ],
)
async def test_a_list_beyond_its_bound_is_a_problem_of_its_own(
    serving: Any, body: dict[str, Any], status: int, kind: str
) -> None:
    """With the limit, and a reply of a few hundred bytes."""
    async with serving(lambda: dummy_model(Task.TOKEN_CLASSIFICATION), max_body_bytes=1 << 22) as client:
        response = await client.post("/v1/token-classify", json=body)
    assert (response.status_code, response.json()["type"].rsplit("/", 1)[1]) == (status, kind)
    assert len(response.content) < 1000
    if kind == "input-too-long":
        assert (response.json()["input"], response.json()["limit"]) == (1, WORDS_MAX)


async def test_words_without_tokens_are_bounded_too(serving: Any) -> None:
    """Each has a tag in the reply, though the model reads nothing of it."""
    body = {"words": [["\u0007"] * 9] * 2}
    async with serving(
        lambda: dummy_model(Task.TOKEN_CLASSIFICATION), max_batch_tokens=16, max_queue_tokens=17
    ) as client:
        response = await client.post("/v1/token-classify", json=body)
    assert response.status_code == 413
    assert response.json()["type"].endswith("request-too-large")


@pytest.mark.parametrize(("text", "thread"), [("Ada " * 150, "tokenize"), ("Ada", "MainThread")])
async def test_work_for_each_token_is_done_in_the_event_loop_for_a_few_tokens_only(
    serving: Any, monkeypatch: pytest.MonkeyPatch, text: str, thread: str
) -> None:
    """Before the model runs and after it: handing a short text to a thread takes longer than the work."""
    threads = {}

    def noting(name: str) -> Any:
        method = getattr(TokenClassify, name)

        def noted(*arguments: Any) -> Any:
            # Without the number that a pool gives each of its threads.
            threads[name] = threading.current_thread().name.rstrip("-_0123456789")
            return method(*arguments)

        return noted

    for name in ("positions", "keep", "result"):
        monkeypatch.setattr(TokenClassify, name, noting(name))
    async with serving(lambda: dummy_model(Task.TOKEN_CLASSIFICATION)) as client:
        body = {"inputs": text, "truncate": "right"}
        assert (await client.post("/v1/token-classify", json=body)).status_code == 200
    assert threads == {"positions": thread, "keep": "inference", "result": thread}


async def test_the_innermost_error_is_told(serving: Any) -> None:
    """Which item is wrong, not that a list is no text."""
    async with serving(lambda: dummy_model(Task.SEQUENCE_CLASSIFICATION)) as client:
        response = await client.post("/v1/classify", json={"inputs": ["x", 7]})
    assert "inputs" in response.json()["detail"]
    assert ".1:" in response.json()["detail"]


@pytest.mark.parametrize(
    ("task", "route", "body", "detail"),
    [
        (Task.SEQUENCE_CLASSIFICATION, "/v1/classify", {"inputs": []}, "should have at least 1 item"),
        (Task.SEQUENCE_CLASSIFICATION, "/v1/classify", [], "body: give a JSON object"),
        (Task.EMBEDDING, "/v1/similarity", {"pairs": [["a", "b", "c"]]}, "body.pairs.0: List should have at most 2"),
        (Task.EMBEDDING, "/v1/similarity", {"source": "a"}, "body: give either source and sentences, or pairs"),
        (
            Task.EMBEDDING,
            "/v1/feedback",
            {"request_id": "1", "labels": ["x"] * 9000},
            "body.labels: List should have at most 8192",
        ),
        (Task.EMBEDDING, "/v1/feedback", [], "body: give a JSON object"),
    ],
)
async def test_the_detail_says_what_to_change(serving: Any, task: Task, route: str, body: Any, detail: str) -> None:
    """Of the list that was sent, not of another, and in the words of the interface."""
    async with serving(lambda: dummy_model(task)) as client:
        response = await client.post(route, json=body)
    assert (response.status_code, response.json()["type"].rsplit("/", 1)[1]) == (422, "input-invalid")
    assert detail in response.json()["detail"]


async def test_unknown_fields_are_refused_without_their_names(serving: Any) -> None:
    """A client that mixes up keys and values must not find the text in its logs; the known fields are named."""
    async with serving(lambda: dummy_model(Task.SEQUENCE_CLASSIFICATION)) as client:
        response = await client.post("/v1/classify", json={"inputs": "x", "my secret": 1})
    assert response.status_code == 422
    assert "secret" not in response.text
    assert "top_k" in response.json()["detail"]


def test_the_schema_states_the_bounds() -> None:
    """So that a client can know them beforehand."""
    text = json.dumps(TypeAdapter(TokenClassifyRequest).json_schema())
    assert f'"maxItems": {INPUTS_MAX}' in text
    assert f'"maxItems": {WORDS_MAX}' in text
