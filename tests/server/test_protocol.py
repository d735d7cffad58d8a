"""The Open Inference Protocol by raw HTTP: tensors in JSON and in binary, metadata, errors, metrics."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.task import Task
from cloze_server.dummy import dummy_model
from cloze_server.model import LoadedModel
from cloze_server.oip.outputs import OUTPUTS, stacked
from cloze_server.oip.tensors import Inference, Tensor, read, write
from cloze_server.problems import ProblemError

pytestmark = pytest.mark.anyio

TEXTS = ["my card was charged twice", "ok", "größer als ☃"]
CONTEXTS = ["ada was here", "it is in the box", "at noon"]
MASKED = ["a [MASK] and a [MASK]", "one [MASK]"]
ROUTES = {
    Task.FILL_MASK: "/v1/fill-mask",
    Task.SEQUENCE_CLASSIFICATION: "/v1/classify",
    Task.TOKEN_CLASSIFICATION: "/v1/token-classify",
    Task.QUESTION_ANSWERING: "/v1/answer",
    Task.EMBEDDING: "/v1/embeddings",
    Task.ECHO: "/v1/echo",
}
QUESTIONS = ["who", "where is it", "when"]


def packed(texts: list[str]) -> bytes:
    """BYTES in binary, as the extension has it."""
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


def request(texts: list[str], **members: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}], **members}


def unpacked(reply: httpx.Response) -> dict[str, Any]:
    """Each output as an array, from JSON or binary."""
    length = int(reply.headers.get("inference-header-content-length", len(reply.content)))
    head, tail = json.loads(reply.content[:length]), reply.content[length:]
    found = {}
    for output in head["outputs"]:
        if "data" in output:
            flat = output["data"]
        else:
            size = output["parameters"]["binary_data_size"]
            part, tail = tail[:size], tail[size:]
            if output["datatype"] == "BYTES":
                flat = []
                while part:
                    (count,) = struct.unpack_from("<I", part)
                    flat.append(part[4 : 4 + count].decode())
                    part = part[4 + count :]
            else:
                flat = np.frombuffer(part, {"FP32": "<f4", "INT64": "<i8"}[output["datatype"]]).tolist()
        found[output["name"]] = np.array(flat).reshape(output["shape"])
    assert not tail
    return found


@pytest.mark.parametrize("task", list(OUTPUTS))
@pytest.mark.parametrize("binary", [False, True])
async def test_tensors_hold_what_the_tasks_own_route_answers(serving: Any, task: Task, binary: bool) -> None:
    """For every task, in JSON and in binary; `response` has all of it."""
    texts = MASKED if task is Task.FILL_MASK else TEXTS
    async with serving(lambda: dummy_model(task)) as client:
        body = request(texts, id="42", parameters={"binary_data_output": binary})
        asked: dict[str, Any] = {"inputs": texts}
        if task is Task.EMBEDDING:
            asked = {"input": texts}
        if task is Task.QUESTION_ANSWERING:
            asked = {"inputs": [{"question": q, "context": c} for q, c in zip(QUESTIONS, CONTEXTS, strict=True)]}
            asked["top_k"] = body["parameters"]["top_k"] = 2
            shape = {"datatype": "BYTES", "shape": [3]}
            body["inputs"] = [
                shape | {"name": "question", "data": QUESTIONS},
                shape | {"name": "context", "data": CONTEXTS},
            ]
        own = (await client.post(ROUTES[task], json=asked)).json()
        own = own["data"] if task is Task.EMBEDDING else own["results"]
        reply = await client.post("/v2/models/dummy/infer", json=body)
        described = (await client.get("/v2/models/dummy")).json()
    assert reply.status_code == 200
    assert ("inference-header-content-length" in reply.headers) is binary
    tensors = unpacked(reply)
    bare = [each | {"embedding": None} if task is Task.EMBEDDING else each for each in own]
    assert [json.loads(each) for each in tensors["response"]] == bare
    assert [each["name"] for each in described["outputs"]] == list(tensors)
    assert all(len(each["shape"]) == tensors[each["name"]].ndim for each in described["outputs"])
    match task:
        case Task.SEQUENCE_CLASSIFICATION:
            assert tensors["labels"].tolist() == [[p["label"] for p in each["predictions"]] for each in own]
            np.testing.assert_allclose(tensors["scores"], [[p["score"] for p in r["predictions"]] for r in own], 1e-6)
        case Task.FILL_MASK:
            assert tensors["tokens"].shape == (2, 2, 5)
            assert tensors["tokens"][0, 1].tolist() == [p["token"] for p in own[0]["masks"][1]["predictions"]]
            assert tensors["tokens"][1, 1].tolist() == [""] * 5
            assert tensors["scores"][1, 1].tolist() == [0] * 5
        case Task.TOKEN_CLASSIFICATION:
            for row, each in enumerate(own):
                count = len(each["tags"])
                for name, member in (("labels", "label"), ("starts", "start"), ("ends", "end")):
                    assert tensors[name][row, :count].tolist() == [tag[member] for tag in each["tags"]]
                assert set(tensors["starts"][row, count:].tolist()) <= {-1}
        case Task.QUESTION_ANSWERING:
            for row, each in enumerate(own):
                assert each["answers"]
                for name, member in (("answers", "answer"), ("starts", "start"), ("ends", "end")):
                    found = tensors[name][row, : len(each["answers"])].tolist()
                    assert found == [answer[member] for answer in each["answers"]]
        case Task.EMBEDDING:
            np.testing.assert_allclose(tensors["embeddings"], [each["embedding"] for each in own], 1e-6)
        case Task.ECHO:
            assert tensors["sha256"].tolist() == [each["sha256"] for each in own]


async def test_parameters_are_the_options_of_the_tasks_route(serving: Any) -> None:
    """And outputs come as asked for, in that order; the client's id comes back."""
    outputs = [{"name": "scores", "parameters": {"binary_data": True}}, {"name": "labels"}]
    body = request(["a " * 500], id="7", parameters={"top_k": 2, "truncate": "right"}, outputs=outputs)
    async with serving(lambda: dummy_model(Task.SEQUENCE_CLASSIFICATION)) as client:
        reply = await client.post("/v2/models/dummy/versions/local/infer", json=body)
    length = int(reply.headers["inference-header-content-length"])
    document = json.loads(reply.content[:length])
    assert (document["model_name"], document["model_version"], document["id"]) == ("dummy", "local", "7")
    assert [each["name"] for each in document["outputs"]] == ["scores", "labels"]
    assert document["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert document["outputs"][1]["shape"] == [1, 2]
    assert reply.headers["x-cloze-model"] == "dummy"
    assert "infer;dur=" in reply.headers["server-timing"]


async def test_members_that_only_some_clients_send_are_no_fault(serving: Any) -> None:
    """As KServe's own client, which names the model in the body too."""
    async with serving(lambda: dummy_model(Task.SEQUENCE_CLASSIFICATION)) as client:
        reply = await client.post("/v2/models/dummy/infer", json={"model_name": "dummy", **request(TEXTS, id="7")})
    assert (reply.status_code, reply.json()["id"]) == (200, "7")


async def test_binary_inputs_follow_the_json(serving: Any) -> None:
    """As Triton's clients send them, with or without a second dimension."""
    for shape in ([3], [3, 1]):
        data = packed(TEXTS)
        parameters = {"binary_data_size": len(data)}
        entry = {"name": "text", "datatype": "BYTES", "shape": shape, "parameters": parameters}
        head = json.dumps({"inputs": [entry]}).encode()
        headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
        async with serving(lambda: dummy_model(Task.SEQUENCE_CLASSIFICATION)) as client:
            own = (await client.post("/v1/classify", json={"inputs": TEXTS})).json()["results"]
            reply = await client.post("/v2/models/dummy/infer", content=head + data, headers=headers)
        assert [json.loads(each) for each in unpacked(reply)["response"]] == own


def broken(**changes: Any) -> dict[str, Any]:
    """A request whose tensor is wrong in one place."""
    body = request(["secret"])
    body["inputs"][0] |= changes
    return body


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff", 400),
        ({"inputs": []}, 422),
        ({"inputs": "secret"}, 422),
        (broken(datatype="FP32"), 422),
        (broken(shape=[2]), 422),
        (broken(shape=[1, 1, 1]), 422),
        (broken(shape=[]), 422),
        (broken(shape=[-1]), 422),
        (broken(shape=[0], data=[]), 422),
        (broken(data=[7]), 422),
        (broken(data="secret"), 422),
        (broken(data=[[[["secret"]]]]), 422),
        (broken(data=None), 422),
        (broken(name="secret"), 422),
        (broken(parameters={"binary_data_size": 10}), 422),
        (broken(parameters={"binary_data_size": 0}), 422),
        (broken(shape=[1 << 40]), 413),
        (broken(data=["\ud800"]), 400),
        (request(["secret"] * 2000), 413),
        (request(["secret"], parameters={"topk": 1}), 422),
        (request(["secret"], parameters={"inputs": ["secret"]}), 422),
        (request(["secret"], parameters={"model": "secret"}), 422),
        (request(["secret"], parameters={"top_k": "secret"}), 422),
        (request(["secret"], outputs=[{"name": "secret"}]), 422),
        (request(["secret " * 500]), 422),
    ],
)
async def test_what_cannot_be_answered_is_an_error_of_the_protocol(serving: Any, body: Any, status: int) -> None:
    """With the status of the problem, and without the text."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with serving(lambda: dummy_model(Task.SEQUENCE_CLASSIFICATION)) as client:
        reply = await client.post(
            "/v2/models/dummy/infer", content=content, headers={"content-type": "application/json"}
        )
    assert (reply.status_code, list(reply.json())) == (status, ["error"])
    assert reply.json()["error"]
    assert "secret" not in reply.text
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize("lengths", [{"question": 1}, {"question": 1, "context": 2}, {"question": 1, "text": 1}])
async def test_questions_and_contexts_come_in_pairs(serving: Any, lengths: dict[str, int]) -> None:
    """As many of the one as of the other, and nothing else."""
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [count], "data": ["a"] * count} for name, count in lengths.items()
    ]
    async with serving(lambda: dummy_model(Task.QUESTION_ANSWERING)) as client:
        reply = await client.post("/v2/models/dummy/infer", json={"inputs": inputs})
    assert reply.status_code == 422
    assert "question" in reply.json()["error"]


@pytest.mark.parametrize("length", ["-1", "x", "", "99999", "1" * 30, "²"])
async def test_a_wrong_length_of_the_json_is_an_error(serving: Any, length: str) -> None:
    """Not an exception."""
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": length.encode()}
    async with serving(lambda: dummy_model(Task.SEQUENCE_CLASSIFICATION)) as client:
        reply = await client.post("/v2/models/dummy/infer", content=b"{}", headers=headers)
    assert (reply.status_code, list(reply.json())) == (422, ["error"])


@given(st.binary(max_size=40), st.integers(0, 60), st.integers(0, 4))
def test_no_body_in_binary_is_more_than_an_error(data: bytes, size: int, count: int) -> None:
    """Whatever lengths it claims: read as texts that fill it exactly, or refused."""
    entry = {"name": "text", "datatype": "BYTES", "shape": [count], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [entry]}).encode()
    try:
        texts = read(head + data, len(head)).texts["text"]
    except ProblemError:
        return
    assert packed(texts) == data
    assert len(texts) == count


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=5), st.booleans())
def test_texts_survive_the_way_there_and_back(texts: list[str], binary: bool) -> None:
    """In binary as in JSON."""
    wanted = Inference(None, {}, None, binary, {})
    content, length = write({}, [Tensor("text", "BYTES", (len(texts),), texts)], wanted)
    document = json.loads(content[:length])
    body = json.dumps({"inputs": document["outputs"]}).encode()
    tail = content[length:] if length is not None else b""
    if not texts and not binary:
        assert document["outputs"][0]["data"] == []
    assert read(body + tail, len(body) if binary else None).texts["text"] == texts


@given(st.lists(st.lists(st.lists(st.integers(), max_size=3), max_size=3), max_size=3))
def test_short_rows_are_filled_up(nested: list[list[list[int]]]) -> None:
    """Each value keeps its place."""
    shape, values = stacked(nested, 3, None)
    array = np.array(values, object).reshape(shape)
    assert shape[0] == len(nested)
    for first, rows in enumerate(nested):
        for second, row in enumerate(rows):
            assert array[first, second, : len(row)].tolist() == row
    assert sum(value is not None for value in values) == sum(len(row) for rows in nested for row in rows)


def named(name: str, version: str) -> LoadedModel:
    return replace(dummy_model(Task.SEQUENCE_CLASSIFICATION), name=name, version=version)


async def test_models_are_named_by_the_path(serving: Any) -> None:
    """With a version where one isn't enough; the server tells of each, and of itself."""
    models = [named("spam", "1"), named("spam", "2"), named("topic", "4")]
    async with serving([lambda each=each: each for each in models]) as client:
        server = (await client.get("/v2")).json()
        described = (await client.get("/v2/models/spam/versions/2")).json()
        statuses = {
            path: (await client.get(f"/v2/models/{path}")).status_code
            for path in (
                "topic",
                "topic/ready",
                "spam/versions/1/ready",
                "spam",
                "stranger",
                "topic/versions/1",
                "a/b/c",
            )
        }
        answered = await client.post("/v2/models/spam/versions/2/infer", json=request(["x"]))
        several = await client.post("/v2/models/spam/infer", json=request(["x"]))
        counted = (await client.get("/metrics")).text
    assert server["name"] == "cloze"
    assert server["extensions"] == ["binary_tensor_data"]
    assert (described["name"], described["versions"]) == ("spam", ["1", "2"])
    assert described["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert statuses == {
        "topic": 200,
        "topic/ready": 200,
        "spam/versions/1/ready": 200,
        "spam": 409,
        "stranger": 404,
        "topic/versions/1": 404,
        "a/b/c": 404,
    }
    assert answered.json()["model_version"] == "2"
    assert (several.status_code, list(several.json())) == (409, ["error"])
    labels = 'model="spam",route="/v2/models/{model}/infer",status="200",version="2"'
    assert f"cloze_requests_total{{{labels}}} 1.0" in counted
    assert "stranger" not in counted
    assert "/v2/models/spam" not in counted


async def test_probes_of_the_protocol_tell_the_servers_state(serving: Any, tmp_path: Path) -> None:
    """Without a key."""

    def fail() -> LoadedModel:
        raise RuntimeError

    keys = tmp_path / "keys"
    keys.write_text(f"shop:{'0' * 64}\n")
    for load, status in ((lambda: named("spam", "1"), 200), (fail, 503)):
        async with serving(load, api_keys=keys) as client:
            live, ready = await client.get("/v2/health/live"), await client.get("/v2/health/ready")
            refused = await client.get("/v2/models/spam")
        assert (live.status_code, live.json()) == (200, {"live": True})
        assert (ready.status_code, ready.json()) == (status, {"ready": status == 200})
        assert (refused.status_code, list(refused.json())) == (401, ["error"])


async def test_refusals_before_the_route_have_the_protocols_form_too(serving: Any) -> None:
    """Of the body's type, its size, the method and the time."""
    async with serving(lambda: named("spam", "1"), max_body_bytes=100) as client:
        replies = [
            await client.post("/v2/models/spam/infer", content=b"{}", headers={"content-type": "text/plain"}),
            await client.post("/v2/models/spam/infer", json=request(["x" * 200])),
            await client.get("/v2/models/spam/infer"),
            await client.get("/v2/poetry"),
        ]
    assert [reply.status_code for reply in replies] == [415, 413, 405, 404]
    assert all(list(reply.json()) == ["error"] for reply in replies)


async def test_a_deadline_counts_here_too(serving: Any) -> None:
    """As a parameter."""
    async with serving(lambda: dummy_model(Task.SEQUENCE_CLASSIFICATION, 0.5)) as client:
        late = await client.post("/v2/models/dummy/infer", json=request(["x"], parameters={"timeout_ms": 20}))
    assert (late.status_code, list(late.json())) == (504, ["error"])


async def test_what_there_is_too_much_of_is_named(serving: Any) -> None:
    """Tensors and dimensions are neither inputs nor words."""
    many = [{"name": str(number)} for number in range(17)]
    bodies = {
        "inputs": {"inputs": [{**each, "datatype": "BYTES", "shape": [1], "data": ["x"]} for each in many]},
        "outputs": request(["x"], outputs=many),
        "inputs.0.shape": broken(shape=[1] * 4),
    }
    async with serving(lambda: dummy_model(Task.SEQUENCE_CLASSIFICATION)) as client:
        for place, body in bodies.items():
            reply = await client.post("/v2/models/dummy/infer", json=body)
            assert reply.status_code == 422
            assert reply.json()["error"].startswith(f"{place} has more than "), place
        twice = await client.post("/v2/models/dummy/infer", json=broken(parameters={"binary_data_size": 0}))
    assert "both data and binary_data_size" in twice.json()["error"]
