"""Several models in one process: who answers, what is counted where, and when the process is ready."""

# What is awaited lives in another thread, so there is no event to wait for.
# ruff: noqa: ASYNC110

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.task import Task
from cloze_server.app import create_app
from cloze_server.dummy import dummy_model
from cloze_server.echo import write_artifact
from cloze_server.exits import ExitCode, FatalError
from cloze_server.hosting import choose
from cloze_server.lifecycle import Lifecycle, State
from cloze_server.loading import load_model
from cloze_server.model import LoadedModel, identity
from cloze_server.problems import ProblemError
from cloze_server.settings import Settings

pytestmark = pytest.mark.anyio


def model(name: str, task: Task = Task.SEQUENCE_CLASSIFICATION, version: str = "1") -> LoadedModel:
    """The stand-in under another name."""
    return replace(dummy_model(task), name=name, version=version, digest=f"sha256:{name}")


def loads(*models: LoadedModel) -> list[Callable[[], LoadedModel]]:
    """A loader for each."""
    return [lambda each=each: each for each in models]


SPAM, TOPIC, MASKS = model("spam"), model("topic", version="4"), model("masks", Task.FILL_MASK)


def chosen(models: list[LoadedModel], task: Task | None, wanted: str | None, *, complete: bool = True) -> str:
    """Who answers, or which problem is told."""
    try:
        return identity(models[choose(models, task, wanted, complete=complete)])
    except ProblemError as problem:
        return problem.kind


@pytest.mark.parametrize(
    ("task", "wanted", "expected"),
    [
        (Task.FILL_MASK, None, "masks/1"),
        (Task.FILL_MASK, "masks", "masks/1"),
        (Task.FILL_MASK, "masks/1", "masks/1"),
        (Task.FILL_MASK, "masks/2", "model-unknown"),
        (Task.FILL_MASK, "spam", "task-mismatch"),
        (Task.FILL_MASK, "", "model-unknown"),
        (Task.SEQUENCE_CLASSIFICATION, None, "model-ambiguous"),
        (Task.SEQUENCE_CLASSIFICATION, "topic", "topic/4"),
        (Task.SEQUENCE_CLASSIFICATION, "spam", "model-ambiguous"),
        (Task.SEQUENCE_CLASSIFICATION, "spam/2", "spam/2"),
        (Task.TOKEN_CLASSIFICATION, None, "task-mismatch"),
        (None, "topic", "topic/4"),
        (None, None, "model-ambiguous"),
    ],
)
def test_a_request_finds_its_model(task: Task | None, wanted: str | None, expected: str) -> None:
    """By name, by name and version, or as the only one of its task."""
    assert chosen([SPAM, model("spam", version="2"), TOPIC, MASKS], task, wanted) == expected


def test_while_models_are_loaded_only_a_named_one_answers() -> None:
    """The one that is still missing might be the one that is meant."""
    assert chosen([SPAM], Task.SEQUENCE_CLASSIFICATION, None, complete=False) == "model-loading"
    assert chosen([SPAM], Task.SEQUENCE_CLASSIFICATION, "topic", complete=False) == "model-loading"
    assert chosen([SPAM], Task.SEQUENCE_CLASSIFICATION, "spam", complete=False) == "spam/1"


def test_who_only_stands_in_is_no_choice() -> None:
    """As long as somebody else is one: two that stand in for each other are."""

    def unnamed(*aside: str) -> str:
        return identity(models[choose(models, SPAM.task, None, complete=True, aside=aside)])

    models = [SPAM, TOPIC]
    assert unnamed("topic/4") == "spam/1"
    assert unnamed("spam/1") == "topic/4"
    with pytest.raises(ProblemError, match="could answer"):
        unnamed("spam/1", "topic/4")


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("12"), st.sampled_from(Task)), unique_by=lambda m: m[:2]
    ),
    st.sampled_from(Task),
    st.sampled_from([None, "a", "b", "c/1", "c/2", "d"]),
)
def test_who_answers_is_the_only_one_that_fits(
    known: list[tuple[str, str, Task]], task: Task, wanted: str | None
) -> None:
    """Whatever is loaded: never one of several, never one of another name or task."""
    models = [replace(TOPIC, name=name, version=version, task=each) for name, version, each in known]
    fitting = [each for each in models if each.task is task and wanted in (None, each.name, identity(each))]
    answer = chosen(models, task, wanted)
    assert (answer in [identity(each) for each in models]) == (len(fitting) == 1)
    if len(fitting) == 1:
        assert answer == identity(fitting[0])


async def test_a_request_names_its_model_in_the_body_or_in_a_header(serving: Any) -> None:
    """The reply says who answered, also by digest; two names that differ are refused."""
    async with serving(loads(SPAM, TOPIC, MASKS)) as client:
        body = await client.post("/v1/classify", json={"inputs": "x", "model": "topic/4"})
        header = await client.post("/v1/classify", json={"inputs": "x"}, headers={"x-cloze-model": "spam"})
        alone = await client.post("/v1/fill-mask", json={"inputs": "[MASK]"})
        both = await client.post(
            "/v1/classify", json={"inputs": "x", "model": "topic"}, headers={"x-cloze-model": "spam"}
        )
    for reply, name, version in ((body, "topic", "4"), (header, "spam", "1"), (alone, "masks", "1")):
        assert (reply.json()["model"], reply.json()["version"]) == (name, version)
        sent = [reply.headers[f"x-cloze-{each}"] for each in ("model", "version", "digest")]
        assert sent == [name, version, f"sha256:{name}"]
    assert (both.status_code, both.json()["type"].rsplit("/")[-1]) == (422, "input-invalid")


async def test_who_cannot_be_found_is_told_what_there_is(serving: Any) -> None:
    """The documents list the models, and don't repeat what was asked for."""
    async with serving(loads(SPAM, TOPIC, MASKS)) as client:
        several = await client.post("/v1/classify", json={"inputs": "x"})
        unknown = await client.post("/v1/classify", json={"inputs": "x", "model": "secret"})
        mismatch = await client.post("/v1/classify", json={"inputs": "x", "model": "masks"})
    assert (several.status_code, several.json()["models"]) == (409, ["spam/1", "topic/4"])
    assert (unknown.status_code, unknown.json()["models"]) == (404, ["spam/1", "topic/4", "masks/1"])
    assert (mismatch.status_code, mismatch.json()["route"]) == (409, "/v1/fill-mask")
    assert "secret" not in unknown.text
    assert "x-cloze-model" not in several.headers


async def test_each_model_is_counted_for_itself(serving: Any) -> None:
    """In one registry; what belongs to no model is under no name."""
    async with serving(loads(SPAM, TOPIC), deployment="mails") as client:
        for name in ("spam", "spam", "topic"):
            await client.post("/v1/classify", json={"inputs": "x", "model": name})
        await client.post("/v1/classify", json={"inputs": "x"})
        described = (await client.get("/v1/models")).json()["models"]
        text = (await client.get("/metrics")).text
    assert [(each["name"], each["version"]) for each in described] == [("spam", "1"), ("topic", "4")]
    for name, version, count in (("spam", 1, 2), ("topic", 4, 1)):
        replies = f'model="{name}",route="/v1/classify",status="200",version="{version}"'
        assert f"cloze_requests_total{{{replies}}} {count}.0" in text
        labels = f'model="{name}",version="{version}"'
        assert f"cloze_batch_tokens_count{{{labels}}} {count}.0" in text
        assert f"cloze_in_flight_requests{{{labels}}} 0.0" in text
        assert f'deployment="mails",digest="sha256:{name}",model="{name}",revision=""' in text
    assert 'cloze_requests_total{model="",route="/v1/classify",status="409",version=""} 1.0' in text
    assert 'cloze_in_flight_requests{model="",version=""} 0.0' in text


async def test_each_model_has_a_queue_of_its_own(serving: Any) -> None:
    """A full one doesn't close the others."""
    slow = replace(dummy_model(Task.SEQUENCE_CLASSIFICATION, 0.3), name="slow")
    body = {"inputs": "abc", "model": "slow"}
    async with serving(loads(slow, SPAM), max_batch_tokens=8, max_queue_tokens=8) as client:
        busy = [asyncio.create_task(client.post("/v1/classify", json=body)) for _ in range(6)]
        # A refusal comes at once, while the accepted ones wait.
        await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)
        quick = await client.post("/v1/classify", json=body | {"model": "spam"})
        await asyncio.wait(busy)
    assert 429 in [each.result().status_code for each in busy]
    assert quick.status_code == 200


async def test_the_process_is_ready_when_all_models_are() -> None:
    """What is loaded answers by its name meanwhile."""
    go = threading.Event()

    def later() -> LoadedModel:
        assert go.wait(10)
        return TOPIC

    lifecycle = Lifecycle()
    app = create_app(Settings(model=("dummy:", "dummy:")), [*loads(SPAM), later], lifecycle)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client,
    ):
        async with asyncio.timeout(10):
            while not (await client.get("/v1/models")).json()["models"]:
                await asyncio.sleep(0.005)
        assert (await client.get("/readyz")).status_code == 503
        named = await client.post("/v1/classify", json={"inputs": "x", "model": "spam"})
        unnamed = await client.post("/v1/classify", json={"inputs": "x"})
        assert (named.status_code, unnamed.status_code) == (200, 503)
        go.set()
        async with asyncio.timeout(10):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.005)
        assert len((await client.get("/v1/models")).json()["models"]) == 2


async def test_one_that_fails_to_load_ends_the_process(serving: Any) -> None:
    """With its own reason; so do two that can't be told apart."""

    def fail() -> LoadedModel:
        raise FatalError(ExitCode.MODEL_NOT_FOUND, "ModelNotFound", "no")

    for second, reason in ((fail, "ModelNotFound"), (loads(SPAM)[0], "ModelReferenceInvalid")):
        lifecycle = Lifecycle()
        async with serving([*loads(SPAM), second], lifecycle) as client:
            assert (await client.get("/readyz")).status_code == 503
        assert lifecycle.state is State.FAILED
        assert lifecycle.failure is not None
        assert lifecycle.failure.reason == reason


async def test_several_models_start_from_the_command_line(start_server: Any) -> None:
    """`--model` several times, with names; the environment does the same."""
    arguments = ("--model", "spam=dummy:", "--model", "masks=dummy:fill-mask")
    for server in (
        start_server(*arguments),
        start_server(environment={"CLOZE_MODEL_URI": "spam=dummy: masks=dummy:fill-mask"}),
    ):
        async with httpx.AsyncClient(base_url=server.url) as client:
            async with asyncio.timeout(30):
                while (await client.get("/readyz")).status_code != 200:
                    await asyncio.sleep(0.02)
            names = [each["name"] for each in (await client.get("/v1/models")).json()["models"]]
        assert names == ["spam", "masks"]


def test_each_model_is_held_to_its_own_digest(tmp_path: Path) -> None:
    """An artifact that another model's digest fits is refused."""
    folders = [tmp_path / name for name in ("one", "other")]
    digests = tuple(write_artifact(folder, name=folder.name) for folder in folders)
    settings = Settings(model=tuple(map(str, folders)), digest=digests)
    loaded = [load_model(place, settings, threading.Event(), Lifecycle()).digest for place in (0, 1)]
    assert tuple(loaded) == digests
    swapped = replace(settings, digest=(digests[0], digests[0]))
    with pytest.raises(FatalError, match="expected") as refused:
        load_model(1, swapped, threading.Event(), Lifecycle())
    assert refused.value.reason == "DigestMismatch"


async def test_a_model_may_have_limits_of_its_own(serving: Any) -> None:
    """The others keep those of the process; all are told."""
    async with serving(loads(SPAM, TOPIC), limit=("topic/4:max-inputs=1", "spam:max-characters=8")) as client:
        statuses = {}
        for name in ("spam", "topic"):
            for kind, inputs in (("two", ["a", "b"]), ("long", "a" * 9)):
                reply = await client.post("/v1/classify", json={"inputs": inputs, "model": name})
                statuses[name, kind] = reply.status_code
        told = (await client.get("/v1/models")).json()
    assert {key for key, status in statuses.items() if status == 200} == {("spam", "two"), ("topic", "long")}
    assert {status for status in statuses.values() if status != 200} <= {400, 413, 422}
    assert told["limits"]["inputs"] == 256
    assert [each["limits"]["inputs"] for each in told["models"]] == [256, 1]
    assert [each["limits"]["characters"] for each in told["models"]] == [8, 65_536]


async def test_a_limit_of_a_model_that_is_not_there_ends_the_process(serving: Any) -> None:
    """It would hold for nobody, and nobody would know."""
    lifecycle = Lifecycle()
    async with serving(loads(SPAM), lifecycle, limit=("spma:max-inputs=1",)):
        assert lifecycle.failure is not None
    assert lifecycle.failure.reason == "LimitInvalid"
    assert "'spma' is none of the models spam/1" in str(lifecycle.failure)
