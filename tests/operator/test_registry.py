"""The registry's answers, from a real MLflow server and from a broken one."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import httpx
import pytest
from prometheus_client import REGISTRY

from cloze_operator.decide.answers import NotFound, Unavailable, Version
from cloze_operator.decide.verdict import AliasMove
from cloze_operator.registry import AliasMovedError, Registry, RegistryError

DIGEST = "sha256:" + "a" * 64
ADDRESS = "http://localhost:5000"
UID = "9b2d6a53-6a6b-4f3a-9a56-1f0a5a0d7e11"

Result = TypeVar("Result")


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.ASGITransport]:
    """MLflow's own server application, within this process, with one model of two versions."""
    store = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/db"
    with pytest.MonkeyPatch.context() as patch:
        # How `mlflow server` hands its options to the application.
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", store)
        patch.setenv("_MLFLOW_SERVER_REGISTRY_STORE", store)
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "s3://bucket")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.server.fastapi_app import app  # noqa: PLC0415 - it reads the environment when it is imported

        transport = httpx.ASGITransport(app)
        asyncio.run(_fill(transport))
        yield transport


async def _fill(transport: httpx.ASGITransport) -> None:
    async with httpx.AsyncClient(transport=transport, base_url=f"{ADDRESS}/api/2.0/mlflow", timeout=60) as client:
        (await client.post("/registered-models/create", json={"name": "encoder"})).raise_for_status()
        for uid in ("other", UID):
            tags = [{"key": "cloze.dev/digest", "value": DIGEST}, {"key": "cloze.dev/job-uid", "value": uid}]
            body = {"name": "encoder", "source": "s3://bucket/model", "tags": tags}
            (await client.post("/model-versions/create", json=body)).raise_for_status()


def ask(
    transport: httpx.AsyncBaseTransport | None, question: Callable[[Registry], Awaitable[Result]], uri: str = ADDRESS
) -> Result:
    """One question to a registry."""

    async def scenario() -> Result:
        registry = Registry(uri, transport)
        try:
            return await question(registry)
        finally:
            await registry.close()

    return asyncio.run(scenario())


def test_versions_and_aliases_of_a_real_server(mlflow: httpx.ASGITransport) -> None:
    """MLflow's own spellings of found and not found are understood."""
    assert ask(mlflow, lambda registry: registry.version("encoder", "1")) == Version("encoder", "1", DIGEST)
    for missing in (("encoder", "9"), ("nobody", "1")):
        assert isinstance(ask(mlflow, lambda registry, at=missing: registry.version(*at)), NotFound)
        assert isinstance(ask(mlflow, lambda registry, at=missing: registry.behind(at[0], "champion")), NotFound)
    found = ask(mlflow, lambda registry: registry.of_job("encoder", UID))
    assert found == Version("encoder", "2", DIGEST)
    assert isinstance(ask(mlflow, lambda registry: registry.of_job("encoder", "unknown")), NotFound)
    assert isinstance(ask(mlflow, lambda registry: registry.of_job("nobody", UID)), NotFound)


def test_alias_moves_only_from_where_it_was_seen(mlflow: httpx.ASGITransport) -> None:
    """A move that was decided on older knowledge is refused."""
    ask(mlflow, lambda registry: registry.move(AliasMove("encoder", "challenger", "1", None, "Registered")))
    assert ask(mlflow, lambda registry: registry.behind("encoder", "challenger")) == Version("encoder", "1", DIGEST)
    with pytest.raises(AliasMovedError, match="points to 1, not to nothing"):
        ask(mlflow, lambda registry: registry.move(AliasMove("encoder", "challenger", "2", None, "Registered")))
    ask(mlflow, lambda registry: registry.move(AliasMove("encoder", "challenger", "2", "1", "Registered")))
    assert ask(mlflow, lambda registry: registry.behind("encoder", "challenger")) == Version("encoder", "2", DIGEST)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (httpx.Response(503, text="upstream is away"), "HTTP 503: upstream is away"),
        (httpx.Response(403, text="Invalid Host header"), "HTTP 403: Invalid Host header"),
        (httpx.Response(500, json={"error_code": "INTERNAL_ERROR", "message": "boom"}), "HTTP 500: boom"),
        (httpx.Response(200, text="<html>"), "doesn't answer"),
        (httpx.Response(404, json={"message": "route not found"}), "HTTP 404: route not found"),
        (httpx.Response(404, json=["not found"]), "HTTP 404"),
    ],
)
def test_refusal_is_no_answer(reply: httpx.Response, said: str) -> None:
    """Anything but found and not found is Unavailable, in the registry's own words."""
    transport = httpx.MockTransport(lambda _: reply)
    found = ask(transport, lambda registry: registry.version("m", "1"))
    assert isinstance(found, Unavailable)
    assert said in found.message


def test_refused_move_is_an_error() -> None:
    """A version that is gone can't get an alias: pretending that it has one would never end. The refusal is counted."""
    before = REGISTRY.get_sample_value("cloze_registry_errors_total", {"operation": "set-alias"}) or 0.0
    missing = httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no version 1"})
    transport = httpx.MockTransport(lambda _: missing)
    with pytest.raises(RegistryError, match="refused set-alias with HTTP 404: no version 1"):
        ask(transport, lambda registry: registry.move(AliasMove("m", "a", "1", None, "Registered")))
    assert REGISTRY.get_sample_value("cloze_registry_errors_total", {"operation": "set-alias"}) == before + 1


def test_unreachable_registry_is_no_answer() -> None:
    """Neither reads nor moves pretend that nothing is there."""
    address = "http://127.0.0.1:1"
    for question in (lambda r: r.version("m", "1"), lambda r: r.behind("m", "a"), lambda r: r.of_job("m", "u")):
        assert isinstance(ask(None, question, address), Unavailable)
    with pytest.raises(RegistryError, match="doesn't answer"):
        ask(None, lambda registry: registry.move(AliasMove("m", "a", "1", None, "Registered")), address)
