"""The echo model: an artifact like any other, whose answers, failures and delays are known beforehand."""

# What is awaited lives in another process, so there is no event to wait for.
# ruff: noqa: ASYNC110

import asyncio
import hashlib
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloze_api.manifest import MANIFEST_FILE, verify_with_digest
from cloze_server import service
from cloze_server.echo import ECHO_FILE, write_artifact
from cloze_server.exits import ExitCode, FatalError
from cloze_server.faults import Faults
from cloze_server.lifecycle import Lifecycle
from cloze_server.loading import load_model
from cloze_server.settings import Settings

pytestmark = pytest.mark.anyio

TEXTS = ["a text", "another, longer text", "", "é☃ \t  white\nspace"]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def loads(folder: Path, digest: str | None = None) -> Any:
    """Loads an artifact as the process does."""
    settings = Settings(model=(str(folder),), digest=(digest,) if digest else ())
    return lambda: load_model(0, settings, threading.Event(), Lifecycle())


async def ask(client: httpx.AsyncClient, inputs: Any = "a") -> int:
    """Status of one reply."""
    return (await client.post("/v1/echo", json={"inputs": inputs})).status_code


async def test_each_text_is_answered_with_its_hash(serving: Any, tmp_path: Path) -> None:
    """In the order of the inputs; tokens are the words between white space."""
    digest = write_artifact(tmp_path, name="probe")
    async with serving(loads(tmp_path, digest)) as client:
        reply = await client.post("/v1/echo", json={"inputs": TEXTS}, headers={"x-request-id": "one"})
        single = (await client.post("/v1/echo", json={"inputs": TEXTS[0]})).json()
        described = (await client.get("/v1/models")).json()["models"][0]
    document = reply.json()
    assert [result["sha256"] for result in document["results"]] == [sha256(text) for text in TEXTS]
    assert [result["tokens"] for result in document["results"]] == [2, 3, 0, 3]
    assert (document["model"], document["version"], document["digest"]) == ("probe", "local", digest)
    assert (reply.headers["x-request-id"], reply.headers["x-cloze-model"]) == ("one", "probe")
    assert single["results"] == document["results"][:1]
    assert (described["task"], described["route"]) == ("echo", "/v1/echo")


async def test_a_long_text_is_refused_or_hashed_as_a_whole(serving: Any, tmp_path: Path) -> None:
    """By the bounds of the other tasks."""
    write_artifact(tmp_path, name="probe")
    text = "word " * 1025
    async with serving(loads(tmp_path)) as client:
        assert await ask(client, text) == 422
        assert await ask(client, "word " * 1024) == 200
        cut = (await client.post("/v1/echo", json={"inputs": text, "truncate": "right"})).json()["results"][0]
    assert (cut["tokens"], cut["truncated"], cut["sha256"]) == (1024, True, sha256(text))


def test_the_digest_is_a_function_of_the_arguments(tmp_path: Path) -> None:
    """Two that behave alike are one artifact, and any difference makes another."""
    variants: list[dict[str, Any]] = [
        {"name": "probe"},
        {"name": "other"},
        {"name": "probe", "error_ratio": 0.1},
        {"name": "probe", "delay_seconds": 0.1},
        {"name": "probe", "seed": 1},
    ]
    digests = [write_artifact(tmp_path / str(index), **each) for index, each in enumerate(variants)]
    assert len(set(digests)) == len(variants)
    assert write_artifact(tmp_path / "again", name="probe") == digests[0]
    assert verify_with_digest(tmp_path / "0")[1] == digests[0]


@pytest.mark.parametrize("wrong", [{"error_ratio": 1.1}, {"delay_seconds": -1}, {"seed": -1}, {"name": "a b"}])
def test_what_cannot_be_is_not_written(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """Nor into a folder that holds something else."""
    with pytest.raises(ValueError, match="validation error"):
        write_artifact(tmp_path / "new", **{"name": "probe", **wrong})
    assert not (tmp_path / "new" / MANIFEST_FILE).exists()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="isn't empty"):
        write_artifact(tmp_path, name="probe")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "FileMissing"),
        ("{", "EchoInvalid"),
        ('{"errorRatio": 2}', "EchoInvalid"),
        ('{"errorRation": 0.5}', "EchoInvalid"),
    ],
)
def test_a_wrong_echo_file_is_no_artifact(tmp_path: Path, content: str | None, reason: str) -> None:
    """Though its digests are right: a fault that is misspelt would prove nothing."""
    write_artifact(tmp_path, name="probe")
    manifest, _ = verify_with_digest(tmp_path)
    (tmp_path / ECHO_FILE).unlink()
    if content is not None:
        (tmp_path / ECHO_FILE).write_text(content)
    files = {} if content is None else {ECHO_FILE: sha256(content)}
    (tmp_path / MANIFEST_FILE).write_text(manifest.model_copy(update={"files": files}).model_dump_json())
    with pytest.raises(FatalError) as error:
        loads(tmp_path)()
    assert (error.value.code, error.value.reason) == (ExitCode.ARTIFACT_INVALID, reason)


def test_a_changed_echo_model_is_refused(tmp_path: Path) -> None:
    """By its digests, as any artifact."""
    digest = write_artifact(tmp_path, name="probe")
    with pytest.raises(FatalError) as error:
        loads(tmp_path, "sha256:" + "0" * 64)()
    assert error.value.reason == "DigestMismatch"
    (tmp_path / ECHO_FILE).write_text('{"errorRatio": 0.5}')
    with pytest.raises(FatalError) as error:
        loads(tmp_path, digest)()
    assert error.value.reason == "FileCorrupt"


def test_faults_have_the_asked_share_and_depend_on_the_seed() -> None:
    """None at 0, all at 1; within three standard deviations at 2 %."""
    count = 20_000
    failed = [number for number in range(count) if Faults(error_ratio=0.02, seed=7).fails(number)]
    assert abs(len(failed) - 0.02 * count) < 3 * (count * 0.02 * 0.98) ** 0.5
    assert failed != [number for number in range(count) if Faults(error_ratio=0.02, seed=8).fails(number)]
    assert not any(Faults(error_ratio=0).fails(number) for number in range(1000))
    assert all(Faults(error_ratio=1).fails(number) for number in range(1000))


async def test_requests_fail_by_their_number(serving: Any, tmp_path: Path) -> None:
    """As a problem document, counted as 500; what is refused has no number, nor has warming up."""
    faults = Faults(error_ratio=0.3, seed=5)
    write_artifact(tmp_path, name="probe", error_ratio=faults.error_ratio, seed=faults.seed)
    expected = [500 if faults.fails(number) else 200 for number in range(40)]
    async with serving(loads(tmp_path)) as client:
        assert await ask(client, []) == 422
        assert await ask(client, "word " * 2000) == 422
        statuses = [await ask(client) for _ in expected]
        failed = next(
            response
            for response in [await client.post("/v1/echo", json={"inputs": "a"}) for _ in range(40)]
            if response.status_code == 500
        )
        counted = (await client.get("/metrics")).text
    assert statuses == expected
    assert {200, 500} == set(expected)
    assert failed.json()["type"].endswith("problems/internal")
    total = sum(faults.fails(number) for number in range(80))
    assert f'cloze_requests_total{{model="probe",route="/v1/echo",status="500",version="local"}} {total}.0' in counted
    assert f'length="32",model="probe",route="/v1/echo",status_class="5xx",version="local"}} {total}.0' in counted


async def test_an_echo_model_that_always_fails_gets_ready(serving: Any, tmp_path: Path) -> None:
    """Its faults are for clients: a canary that never got ready would be another test."""
    write_artifact(tmp_path, name="probe", error_ratio=1)
    async with serving(loads(tmp_path)) as client:
        assert (await client.get("/readyz")).status_code == 200
        assert [await ask(client) for _ in range(5)] == [500] * 5


async def test_requests_are_delayed_side_by_side(serving: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for itself alone: what a slow model does to its latency, not to its throughput."""
    waiting, everyone, delays = 0, asyncio.Event(), set()

    async def meet(seconds: float) -> None:
        nonlocal waiting
        delays.add(seconds)
        waiting += 1
        if waiting == 8:
            everyone.set()
        await everyone.wait()

    write_artifact(tmp_path, name="probe", delay_seconds=0.25)
    async with serving(loads(tmp_path)) as client:
        monkeypatch.setattr(service, "sleep", meet)
        async with asyncio.timeout(20):
            statuses = await asyncio.gather(*(ask(client) for _ in range(8)))
    assert statuses == [200] * 8
    assert delays == {0.25}


async def test_a_delay_beyond_the_timeout_is_a_timeout(serving: Any, tmp_path: Path) -> None:
    """As with any slow model."""
    write_artifact(tmp_path, name="probe", delay_seconds=60)
    async with serving(loads(tmp_path), timeout_seconds=0.3) as client:
        assert await ask(client) == 504


async def test_delayed_requests_are_finished_while_draining(start_server: Any, tmp_path: Path) -> None:
    """From the command line to the last reply, in a process of its own."""
    folder = tmp_path / "artifact"
    command = [sys.executable, "-m", "cloze_server.echo", str(folder), "--name", "probe", "--delay-seconds", "0.5"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    server = start_server("--model", str(folder), "--digest", done.stdout.strip(), "--lame-duck-seconds", "0")
    server.wait_for_event("ready")
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        asked = [asyncio.create_task(client.post("/v1/echo", json={"inputs": str(number)})) for number in range(20)]
        in_flight = 'cloze_in_flight_requests{model="probe",version="local"} 20.0'
        async with asyncio.timeout(10):
            while in_flight not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.005)
        server.process.send_signal(signal.SIGTERM)
        replies = await asyncio.gather(*asked)
    assert [reply.json()["results"][0]["sha256"] for reply in replies] == [sha256(str(n)) for n in range(20)]
    assert await asyncio.to_thread(server.process.wait, 20) == 0
