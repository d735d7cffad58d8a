"""The registry's answers, from a real MLflow server and from a broken one."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from cloze_operator.decide.answers import NotFound, Unavailable, Version
from cloze_operator.decide.verdict import AliasMove
from cloze_operator.registry import AliasMovedError, Registry, RegistryError

DIGEST = "sha256:" + "a" * 64
UID = "9b2d6a53-6a6b-4f3a-9a56-1f0a5a0d7e11"

Result = TypeVar("Result")


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server with one model of two versions."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("mlflow")
    options = ["--backend-store-uri", f"sqlite:///{folder}/db", "--artifacts-destination", str(folder / "artifacts")]
    command = [program, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *options]
    address = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        )
        try:
            _fill(address, server, folder / "log")
            yield address
        finally:
            server.terminate()
            server.wait(timeout=20)


def _fill(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while not _answers(address):
        assert server.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < end, "MLflow doesn't start"
        time.sleep(0.3)
    with httpx.Client(base_url=f"{address}/api/2.0/mlflow", timeout=30) as client:
        client.post("/registered-models/create", json={"name": "encoder"}).raise_for_status()
        for uid in ("other", UID):
            tags = [{"key": "cloze.dev/digest", "value": DIGEST}, {"key": "cloze.dev/job-uid", "value": uid}]
            body = {"name": "encoder", "source": "mlflow-artifacts:/x", "tags": tags}
            client.post("/model-versions/create", json=body).raise_for_status()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False


def ask(address: str, question: Callable[[Registry], Awaitable[Result]], **options: Any) -> Result:
    """One question to a registry at an address."""

    async def scenario() -> Result:
        registry = Registry(address, **options)
        try:
            return await question(registry)
        finally:
            await registry.close()

    return asyncio.run(scenario())


def test_versions_and_aliases_of_a_real_server(mlflow: str) -> None:
    """MLflow's own spellings of found and not found are understood."""
    assert ask(mlflow, lambda registry: registry.version("encoder", "1")) == Version("encoder", "1", DIGEST)
    for missing in (("encoder", "9"), ("nobody", "1")):
        assert isinstance(ask(mlflow, lambda registry, at=missing: registry.version(*at)), NotFound)
        assert isinstance(ask(mlflow, lambda registry, at=missing: registry.behind(at[0], "champion")), NotFound)
    found = ask(mlflow, lambda registry: registry.of_job("encoder", UID))
    assert found == Version("encoder", "2", DIGEST)
    assert isinstance(ask(mlflow, lambda registry: registry.of_job("encoder", "unknown")), NotFound)
    assert isinstance(ask(mlflow, lambda registry: registry.of_job("nobody", UID)), NotFound)


def test_alias_moves_only_from_where_it_was_seen(mlflow: str) -> None:
    """A move that was decided on older knowledge is refused."""
    ask(mlflow, lambda registry: registry.move(AliasMove("encoder", "challenger", "1", None)))
    assert ask(mlflow, lambda registry: registry.behind("encoder", "challenger")) == Version("encoder", "1", DIGEST)
    with pytest.raises(AliasMovedError, match="points to 1, not to nothing"):
        ask(mlflow, lambda registry: registry.move(AliasMove("encoder", "challenger", "2", None)))
    ask(mlflow, lambda registry: registry.move(AliasMove("encoder", "challenger", "2", "1")))
    assert ask(mlflow, lambda registry: registry.behind("encoder", "challenger")) == Version("encoder", "2", DIGEST)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (httpx.Response(503, text="upstream is away"), "HTTP 503: upstream is away"),
        (httpx.Response(403, text="Invalid Host header"), "HTTP 403: Invalid Host header"),
        (httpx.Response(500, json={"error_code": "INTERNAL_ERROR", "message": "boom"}), "HTTP 500: boom"),
        (httpx.Response(200, text="<html>"), "doesn't answer"),
    ],
)
def test_refusal_is_no_answer(reply: httpx.Response, said: str) -> None:
    """Anything but found and not found is Unavailable, in the registry's own words."""
    transport = httpx.MockTransport(lambda _: reply)
    found = ask("http://registry", lambda registry: registry.version("m", "1"), transport=transport)
    assert isinstance(found, Unavailable)
    assert said in found.message


def test_unreachable_registry_is_no_answer() -> None:
    """Neither reads nor moves pretend that nothing is there."""
    address = "http://127.0.0.1:1"
    for question in (lambda r: r.version("m", "1"), lambda r: r.behind("m", "a"), lambda r: r.of_job("m", "u")):
        assert isinstance(ask(address, question), Unavailable)
    with pytest.raises(RegistryError, match="doesn't answer"):
        ask(address, lambda registry: registry.move(AliasMove("m", "a", "1", None)))
