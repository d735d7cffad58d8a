"""Routes, problems, limits, headers and metrics, over a model without weights."""

# What is awaited lives in another thread or process, so there is no event to wait for.
# ruff: noqa: ASYNC110

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from cloze_api import metrics
from cloze_api.task import Task
from cloze_server.app import create_app
from cloze_server.dummy import dummy_model
from cloze_server.exits import ExitCode, FatalError
from cloze_server.lifecycle import Lifecycle, Stage, State
from cloze_server.logs import JsonFormatter
from cloze_server.problems import TABLE, ProblemType
from cloze_server.settings import Settings
from cloze_server.tasks.classify import Classify
from cloze_server.telemetry import Telemetry, instrument

pytestmark = pytest.mark.anyio


def classifier(seconds: float = 0.0) -> Any:
    """Loads the stand-in for sequence classification."""
    return lambda: dummy_model(Task.SEQUENCE_CLASSIFICATION, seconds)


JSON = {"content-type": "application/json"}


def problem(response: httpx.Response) -> tuple[int, str]:
    """Status and type, once the document is well formed."""
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == response.status_code
    assert document["request_id"] == response.headers["x-request-id"]
    assert document["title"]
    assert document["detail"]
    return response.status_code, document["type"].rsplit("/", 1)[1]


async def test_a_single_text_and_a_list_answer_alike(serving: Any) -> None:
    """One result for each input, with model, version, digest and token counts."""
    async with serving(classifier()) as client:
        one = (await client.post("/v1/classify", json={"inputs": "Hi you"})).json()
        many = (await client.post("/v1/classify", json={"inputs": ["Hi you", "ok"]})).json()
    assert one["results"][0] == many["results"][0]
    assert (one["model"], one["version"], one["tokens"]) == ("dummy", "local", 7)
    assert one["results"][0]["truncated"] is False
    assert sum(p["score"] for p in one["results"][0]["predictions"]) == pytest.approx(1)


async def test_replies_carry_the_model_and_the_request_id(serving: Any) -> None:
    """Taken from the request when it is sane, else made."""
    async with serving(classifier()) as client:
        given = await client.post("/v1/classify", json={"inputs": "x"}, headers={"x-request-id": "abc-1"})
        made = await client.post("/v1/classify", json={"inputs": "x"}, headers={"x-request-id": "a b\tc"})
    assert given.headers["x-request-id"] == "abc-1"
    assert len(made.headers["x-request-id"]) == 32
    assert (given.headers["x-cloze-model"], given.headers["x-cloze-version"]) == ("dummy", "local")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", (400, "body-invalid")),
        (b'{"inputs": "\xff"}', (400, "body-invalid")),
        (b"{}", (422, "input-invalid")),
        (b'{"inputs": []}', (422, "input-invalid")),
        (b'{"inputs": "x", "top_k": 0}', (422, "input-invalid")),
        (b'{"inputs": "x", "topk": 2}', (422, "input-invalid")),
        (b'{"inputs": "\\ud800"}', (422, "input-invalid")),
        (b'{"inputs": ["x", "x", "x", "x"]}', (413, "too-many-inputs")),
        (b'{"inputs": "' + b"y" * 300 + b'"}', (422, "input-too-long")),
        (b'{"inputs": "' + b"y" * 3000 + b'"}', (413, "body-too-large")),
        (b'{"inputs": "' + b"a " * 149 + b'"}', (422, "input-too-long")),
        (b'{"inputs": ["abcdefgh", "abcdefgh"]}', (413, "request-too-large")),
    ],
)
async def test_what_cannot_be_answered_is_a_problem_document(
    serving: Any, body: bytes, expected: tuple[int, str]
) -> None:
    """Each with its own type; none quotes the text."""
    limits = {"max_body_bytes": 2048, "max_inputs": 3, "max_characters": 299, "max_queue_tokens": 16}
    async with serving(classifier(), max_batch_tokens=16, **limits) as client:
        response = await client.post("/v1/classify", content=body, headers={"content-type": "application/json"})
    assert problem(response) == expected
    assert "yyy" not in response.text


async def test_a_body_without_a_length_is_cut_off_at_the_limit(serving: Any) -> None:
    """Chunked transfer can't get around it."""

    async def chunks() -> Any:
        for _ in range(100):
            yield b" " * 1000

    async with serving(classifier(), max_body_bytes=2048) as client:
        response = await client.post("/v1/classify", content=chunks(), headers=JSON)
    assert problem(response) == (413, "body-too-large")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/jsonx"},
        {**JSON, "content-encoding": "gzip"},
        {**JSON, "content-encoding": "identity, br"},
    ],
)
async def test_a_body_that_is_not_declared_as_json_is_refused(serving: Any, headers: dict[str, str]) -> None:
    """As a media type, not as a text that doesn't fit the schema."""
    async with serving(classifier()) as client:
        response = await client.post("/v1/classify", content=b'{"inputs": "x"}', headers=headers)
        accepted = await client.post(
            "/v1/classify",
            content=b'{"inputs": "x"}',
            headers={"content-type": "application/vnd.x+json; charset=utf-8"},
        )
    assert problem(response) == (415, "media-type-unsupported")
    assert accepted.status_code == 200


async def test_a_body_that_comes_too_slowly_is_a_timeout_of_its_own(serving: Any) -> None:
    """The deadline begins with the request, not with its last byte; the connection is given up."""

    async def chunks() -> Any:
        yield b'{"inputs": '
        await asyncio.sleep(10)

    async with serving(classifier(), timeout_seconds=0.05) as client:
        response = await client.post("/v1/classify", content=chunks(), headers=JSON)
    assert problem(response) == (408, "body-timeout")
    assert response.headers["connection"] == "close"


async def test_body_and_answer_share_one_deadline(serving: Any) -> None:
    """What the body took is not left for the answer."""

    async def chunks() -> Any:
        yield b'{"inputs": '
        await asyncio.sleep(0.7)
        yield b'"x"}'

    async with serving(classifier(seconds=0.7), timeout_seconds=1.2) as client:
        whole = await client.post("/v1/classify", json={"inputs": "x"})
        late = await client.post("/v1/classify", content=chunks(), headers=JSON)
    assert whole.status_code == 200
    assert problem(late) == (504, "timeout")


async def test_bodies_of_all_requests_are_bounded_together(serving: Any) -> None:
    """Many that are each allowed can't fill the memory; who is through leaves room."""
    first_is_in, go = asyncio.Event(), asyncio.Event()

    async def chunks() -> Any:
        yield b'{"inputs": "' + b" " * 1500
        first_is_in.set()
        await go.wait()
        yield b'x"}'

    body = b'{"inputs": "' + b" " * 1000 + b'"}'
    async with serving(classifier(), max_body_bytes=2048, max_bodies_bytes=2048) as client:
        first = asyncio.create_task(client.post("/v1/classify", content=chunks(), headers=JSON))
        async with asyncio.timeout(10):
            await first_is_in.wait()
        refused = await client.post("/v1/classify", content=body, headers=JSON)
        go.set()
        assert (await first).status_code == 200
        assert (await client.post("/v1/classify", content=body, headers=JSON)).status_code == 200
    assert problem(refused) == (429, "queue-full")
    assert refused.headers["retry-after"]
    assert "2048" in refused.json()["detail"]
    assert "bodies" in refused.json()["detail"]


async def test_a_request_that_draining_cuts_off_is_told_so(serving: Any) -> None:
    """It is counted as 503, not as a client that left."""
    lifecycle = Lifecycle()
    async with serving(classifier(seconds=0.5), lifecycle) as client:
        request = asyncio.create_task(client.post("/v1/classify", json={"inputs": "x"}))
        async with asyncio.timeout(10):
            while (
                'cloze_in_flight_requests{model="dummy",version="local"} 1.0' not in (await client.get("/metrics")).text
            ):
                await asyncio.sleep(0.005)
        lifecycle.drain()
        request.cancel()
        response = await request
        counted = (await client.get("/metrics")).text
    assert problem(response) == (503, "shutting-down")
    assert response.headers["retry-after"]
    assert lifecycle.abandoned == 1
    assert 'cloze_requests_total{model="dummy",route="/v1/classify",status="503",version="local"} 1.0' in counted
    assert 'status="499",version="local"} 0.0' in counted
    assert 'route="/v1/classify",status_class="5xx",version="local"}' in counted


async def test_a_failure_to_load_while_draining_is_no_failure() -> None:
    """The process was asked to end; that it would have failed doesn't matter any more."""
    lifecycle = Lifecycle()
    lifecycle.drain()
    lifecycle.fail(FatalError(ExitCode.INTERNAL, "LoadFailed", "too late"))
    assert lifecycle.state is State.DRAINING
    assert lifecycle.failure is None


async def test_another_tasks_route_says_which_task_is_loaded(serving: Any) -> None:
    """And where it answers."""
    async with serving(classifier()) as client:
        response = await client.post("/v1/fill-mask", json={"inputs": "[MASK]"})
    assert problem(response) == (409, "task-mismatch")
    assert response.json()["loaded_task"] == "sequence-classification"
    assert response.json()["route"] == "/v1/classify"


async def test_unknown_routes_and_methods_are_problems(serving: Any) -> None:
    """And a path that a client made up is no metric label."""
    async with serving(classifier()) as client:
        unknown = await client.get("/v1/poetry")
        assert problem(unknown) == (404, "not-found")
        assert all(
            path in unknown.json()["detail"] for path in ("/v1/classify", "/v1/feedback", "/v2", "/openapi.json")
        )
        assert problem(await client.get("/v1/classify")) == (405, "method-not-allowed")
        counted = (await client.get("/metrics")).text
    assert "poetry" not in counted
    assert 'route="unmatched",status="404"' in counted


async def test_a_path_with_a_slash_too_many_is_unknown(serving: Any) -> None:
    """Not redirected: a client that follows would send its body twice, or lose it."""
    async with serving(classifier()) as client:
        response = await client.post("/v1/classify/", json={"inputs": "x"})
    assert problem(response) == (404, "not-found")


async def test_token_classification_takes_exactly_one_form(serving: Any) -> None:
    """Texts or words."""
    async with serving(lambda: dummy_model(Task.TOKEN_CLASSIFICATION)) as client:
        both = await client.post("/v1/token-classify", json={"inputs": "a", "words": [["a"]]})
        words = await client.post("/v1/token-classify", json={"words": [["a", "\u0007", "b"]]})
    assert problem(both) == (422, "input-invalid")
    tags = words.json()["results"][0]["tags"]
    assert [tag["word"] for tag in tags] == ["a", "\u0007", "b"]
    assert tags[1]["label"] is None, "the tokenizer finds nothing in a control character"


async def test_a_slow_answer_is_a_timeout(serving: Any) -> None:
    """With a problem document, at the deadline."""
    async with serving(classifier(seconds=0.5), timeout_seconds=0.05) as client:
        response = await client.post("/v1/classify", json={"inputs": "x"})
    assert problem(response) == (504, "timeout")


@pytest.mark.parametrize("bound", [{"max_queue_tokens": 24}, {"max_wait_seconds": 0.1}])
async def test_a_full_queue_answers_429_with_a_time_to_come_back(serving: Any, bound: dict[str, float]) -> None:
    """Nothing is lost: the accepted ones are answered."""
    async with serving(classifier(seconds=0.05), max_batch_tokens=8, **bound) as client:
        replies = await asyncio.gather(*(client.post("/v1/classify", json={"inputs": "abc def"}) for _ in range(30)))
        counted = (await client.get("/metrics")).text
    statuses = [reply.status_code for reply in replies]
    assert set(statuses) == {200, 429}
    for reply in replies:
        if reply.status_code == 429:
            assert problem(reply) == (429, "queue-full")
            assert int(reply.headers["retry-after"]) >= 1
    assert f'route="/v1/classify",status="429",version="local"}} {float(statuses.count(429))}' in counted
    assert 'route="/v1/classify",status_class="4xx",version="local"}' in counted
    assert 'cloze_queue_tokens{model="dummy",version="local"} 0.0' in counted
    assert 'cloze_in_flight_requests{model="dummy",version="local"} 0.0' in counted


async def test_before_the_model_is_loaded_probes_tell_it() -> None:
    """Alive, not ready, and requests are told to come back."""
    go = threading.Event()
    lifecycle = Lifecycle()

    def load() -> Any:
        assert go.wait(10)
        return dummy_model(Task.SEQUENCE_CLASSIFICATION)

    app = create_app(Settings(model=("models:/mails/7",)), [load], lifecycle)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client,
    ):
        assert (await client.get("/healthz")).status_code == 200
        expected = {"state": "loading", "stage": "fetching", "reason": "", "message": ""}
        unready = await client.get("/readyz")
        assert (unready.status_code, unready.json()) == (503, {**expected, "models": []})
        limits = (await client.get("/v1/models")).json()["limits"]
        assert (await client.get("/v1/models")).json() == {**expected, "limits": limits, "models": []}
        lifecycle.report(Stage.FETCHING, "RegistryUnavailable", "http://mlflow: connection refused")
        held_up = (await client.get("/readyz")).json()
        assert (held_up["reason"], held_up["message"]) == ("RegistryUnavailable", "http://mlflow: connection refused")
        assert (await client.get("/v1/models")).json() == {**held_up, "limits": limits, "models": []}
        early = await client.post("/v1/classify", json={"inputs": "x"})
        assert problem(early) == (503, "model-loading")
        assert early.headers["retry-after"]
        counted = (await client.get("/metrics")).text
        assert 'cloze_requests_total{model="mails",route="/v1/classify",status="503",version="7"} 1.0' in counted
        go.set()
        async with asyncio.timeout(10):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.005)
        ready = (await client.get("/v1/models")).json()
        assert (ready["state"], ready["stage"], ready["reason"]) == ("ready", None, "")
        (loaded,) = (await client.get("/readyz")).json()["models"]
        assert loaded == {name: ready["models"][0][name] for name in ("name", "version", "digest")}
        lifecycle.drain()
        assert (await client.get("/readyz")).status_code == 503
        draining = await client.post("/v1/classify", json={"inputs": "x"})
        assert (draining.status_code, draining.headers["connection"]) == (200, "close")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FatalError(ExitCode.ARTIFACT_INVALID, "DigestMismatch", "no"), "DigestMismatch"),
        (RuntimeError("private"), "LoadFailed"),
    ],
)
async def test_a_failure_to_load_is_kept_for_the_exit(serving: Any, error: Exception, reason: str) -> None:
    """The server stays unready; whoever runs it ends it."""
    lifecycle = Lifecycle()

    def load() -> Any:
        raise error

    async with serving(load, lifecycle) as client:
        unready = await client.get("/readyz")
    assert (unready.status_code, unready.json()["reason"]) == (503, reason)
    assert lifecycle.state is State.FAILED
    assert lifecycle.failure is not None
    assert lifecycle.failure.reason == reason
    assert "private" not in str(lifecycle.failure)


async def test_metrics_are_those_of_the_contract(serving: Any) -> None:
    """Names as declared, series under the loaded model only, stages timed."""
    async with serving(classifier()) as client:
        await client.post("/v1/classify", json={"inputs": ["ab", "abcd", "é☃"]})
        text = (await client.get("/metrics")).text
    for metric in (metrics.REQUESTS, metrics.REQUEST_DURATION, metrics.BATCH_TOKENS, metrics.QUEUE_TOKENS):
        assert f"# TYPE {metric.name}" in text
    for stage in ("tokenize", "queue", "infer", "post"):
        assert f'cloze_stage_duration_seconds_count{{model="dummy",stage="{stage}",version="local"}} 1.0' in text
    assert 'cloze_unknown_tokens_total{model="dummy",version="local"} 1.0' in text
    assert (
        'cloze_request_duration_seconds_bucket{le="60.0",length="32",model="dummy",route="/v1/classify",'
        'status_class="2xx"' in text
    )
    assert 'task="sequence-classification",version="local"} 1.0' in text
    assert 'model=""' not in text
    assert "process_resident_memory_bytes" in text


async def test_series_of_errors_exist_before_the_first_error(serving: Any) -> None:
    """A rate over a series that appears with its first error would miss it; durations of errors are kept apart."""
    async with serving(classifier()) as client:
        before = (await client.get("/metrics")).text
        await client.post("/v1/classify", json={})
        after = (await client.get("/metrics")).text
    for status in (200, 422, 429, 499, 500, 503, 504):
        assert (
            f'cloze_requests_total{{model="dummy",route="/v1/classify",status="{status}",version="local"}} 0.0'
            in before
        )
    assert 'route="/v1/fill-mask"' not in before, "the loaded model doesn't answer there"
    labels = 'length="none",model="dummy",route="/v1/classify",status_class="4xx",version="local"'
    assert f"cloze_request_duration_seconds_count{{{labels}}} 1.0" in after
    assert 'status_class="2xx"' not in after


async def test_only_answered_inputs_count_as_unknown_or_truncated(serving: Any) -> None:
    """A refused text says nothing about what the model is asked."""
    async with serving(lambda: dummy_model(Task.FILL_MASK)) as client:
        refused = await client.post("/v1/fill-mask", json={"inputs": "☃ " * 200, "truncate": "right"})
        text = (await client.get("/metrics")).text
    assert problem(refused) == (422, "mask-missing")
    assert 'cloze_unknown_tokens_total{model="dummy",version="local"} 0.0' in text
    assert 'cloze_truncated_inputs_total{model="dummy",version="local"} 0.0' in text


def test_every_declared_metric_can_be_made() -> None:
    """One function for all kinds."""
    registry = CollectorRegistry()
    for metric in metrics.ALL:
        instrument(metric, registry)
    for metric in metrics.ALL:
        assert f"# HELP {metric.name}".encode() in generate_latest(registry)


def test_a_rename_keeps_requests_in_flight() -> None:
    """A request that began before the model was known leaves the gauge that it entered."""
    telemetry = Telemetry()
    telemetry.request_started()
    telemetry.bind("m", "1")
    telemetry.request_finished("/v1/models", 200, 0.1)
    assert b'cloze_in_flight_requests{model="m",version="1"} 0.0' in generate_latest(telemetry.registry)


def test_nothing_of_the_model_is_counted_while_muted() -> None:
    """Not even under the name that was asked for, where a scrape would see it before the model is ready."""
    telemetry = Telemetry("m", "1")
    silent = generate_latest(telemetry.registry)
    with telemetry.muted():
        telemetry.stage("infer", 0.1)
        telemetry.batch([3], 4)
        telemetry.answered(unknown=1, truncated=1)

    def of_the_model(text: bytes) -> list[bytes]:
        return [line for line in text.splitlines() if line.startswith(b"cloze_") and b"_created" not in line]

    assert of_the_model(generate_latest(telemetry.registry)) == of_the_model(silent)
    telemetry.batch([3], 4)
    assert of_the_model(generate_latest(telemetry.registry)) != of_the_model(silent)


def test_the_problem_table_is_complete() -> None:
    """Every type has a status and a title."""
    assert set(TABLE) == set(ProblemType)


async def test_the_schema_describes_requests_replies_and_problems(serving: Any) -> None:
    """Of each task."""
    async with serving(classifier()) as client:
        schema = (await client.get("/openapi.json")).json()
    assert {"/v1/fill-mask", "/v1/classify", "/v1/token-classify", "/v1/models"} <= set(schema["paths"])
    assert "truncate" in json.dumps(schema["components"]["schemas"]["ClassifyRequest"])
    replies = schema["paths"]["/v1/classify"]["post"]["responses"]
    assert replies["200"]["content"]["application/json"]["schema"]["$ref"].endswith("ClassifyReply")
    assert set(replies) >= {"408", "413", "415", "422", "429", "503", "504"}


async def test_an_unexpected_error_is_a_problem_without_its_text(
    serving: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in the reply nor in the log as the formatter writes it."""

    def fail(*_: Any) -> Any:
        raise ValueError("the user's secret")

    async with serving(classifier()) as client:
        monkeypatch.setattr(Classify, "result", fail)
        response = await client.post("/v1/classify", json={"inputs": "x"})
    assert problem(response) == (500, "internal")
    assert "secret" not in response.text
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert any('"exception": "ValueError"' in line for line in lines)
    assert not any("secret" in line for line in lines)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_what_is_wrong_with_a_probe_has_an_id(serving: Any, path: str) -> None:
    """As any other refusal, though probes themselves have none."""
    async with serving(classifier()) as client:
        response = await client.post(path)
    assert problem(response) == (405, "method-not-allowed")
    assert response.headers["x-request-id"]


async def test_limits_are_told_before_they_are_met(serving: Any) -> None:
    """As they were set; a request at a limit is answered, one above it isn't."""
    asked = {"max_inputs": 3, "max_characters": 50, "max_body_bytes": 500, "max_queue_tokens": 400}
    async with serving(classifier(), timeout_seconds=7.5, max_batch_tokens=64, **asked) as client:
        told = (await client.get("/v1/models")).json()["limits"]
        statuses = [
            (await client.post("/v1/classify", json={"inputs": ["x" * told["characters"]] * count})).status_code
            for count in (told["inputs"], told["inputs"] + 1)
        ]
    assert told == {"body_bytes": 500, "inputs": 3, "characters": 50, "tokens": 400, "seconds": 7.5}
    assert statuses == [200, 413]
