"""Another artifact behind the same reference takes the place of the former one without a gap, or not at all."""

# What is awaited lives in another thread or process, so there is no event to wait for.
# ruff: noqa: ASYNC110

import asyncio
import contextlib
import json
import signal
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from cloze_api.manifest import MANIFEST_FILE
from cloze_server.app import create_app
from cloze_server.echo import ECHO_FILE, write_artifact
from cloze_server.exits import ExitCode, FatalError
from cloze_server.lifecycle import Lifecycle, State
from cloze_server.loading import current_digest, load_model
from cloze_server.model import LoadedModel
from cloze_server.reload import Origin, Reloading
from cloze_server.service import Service
from cloze_server.settings import Settings

pytestmark = pytest.mark.anyio

BODY = json.dumps({"inputs": "some words"}).encode()
REQUEST = (
    b"POST /v1/echo HTTP/1.1\r\nHost: server\r\nContent-Type: application/json\r\n"
    b"Content-Length: " + str(len(BODY)).encode() + b"\r\n\r\n" + BODY
)


def put(place: Path, seed: int, *, unnamed: str = "", **more: Any) -> str:
    """Another artifact where the reference leads, at once as far as a reader can see; its digest.

    unnamed: a file that its manifest doesn't name.
    """
    made = place.with_name(f"made-{seed}")
    digest = write_artifact(made, **{"name": "probe", "seed": seed, **more})
    if unnamed:
        (made / unnamed).touch()
    link = place.with_name("next")
    link.symlink_to(made)
    link.replace(place)
    return digest


class Server:
    """An application in this process that serves folders, and is told to look at them."""

    def __init__(self, *folders: Path, **settings: Any) -> None:
        self.settings = Settings(model=tuple(map(str, folders)), **settings)
        self.lifecycle = Lifecycle()
        stop = threading.Event()
        # Of what was loaded, as long as it is in use.
        self.backends: list[weakref.ref[Any]] = []

        def load(place: int) -> LoadedModel:
            model = load_model(place, self.settings, stop, Lifecycle())
            self.backends.append(weakref.ref(model.backend))
            return model

        loaders = [partial(load, place) for place in range(len(folders))]
        origins = [
            Origin(partial(current_digest, each, self.settings), loader)
            for each, loader in zip(self.settings.model, loaders, strict=True)
        ]
        self.reloading = Reloading(origins)
        self.app = create_app(self.settings, loaders, self.lifecycle, self.reloading)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Once it is ready."""
        transport = httpx.ASGITransport(self.app)
        async with (
            self.app.router.lifespan_context(self.app),
            httpx.AsyncClient(transport=transport, base_url="http://server", timeout=30) as client,
        ):
            await until(lambda: self.lifecycle.state is State.READY)
            yield client

    def look(self) -> None:
        """As the signal does."""
        self.reloading.asked.put(True)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def described(client: httpx.AsyncClient, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first model as described, once it is as wanted."""
    async with asyncio.timeout(20):
        while not wanted(found := (await client.get("/v1/models")).json()["models"][0]):
            await asyncio.sleep(0.005)
    return dict(found)


async def keep_asking(port: int, digests: list[str], stop: asyncio.Event) -> None:
    """One connection in constant use; the digest of each reply, in its body and its header alike."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while not stop.is_set():
        writer.write(REQUEST)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        assert (head[0], body["digest"]) == ("http/1.1 200 ok", headers["x-cloze-digest"])
        digests.append(body["digest"])
    writer.close()


def freed(server: Any) -> int:
    """How many models are gone."""
    return sum(line["event"] == "the former model is freed" for line in server.log())


def threads(server: Any) -> int:
    """Threads of a server's process."""
    return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))


async def test_a_reload_under_load_fails_no_request(start_server: Any, tmp_path: Path) -> None:
    """By the signal, several times; no reply is of an older artifact than one before it, and no thread is left over."""
    place, stop = tmp_path / "model", asyncio.Event()
    expected = [put(place, 0)]
    server = start_server("--model", str(place))
    server.wait_for_event("ready")
    seen: list[list[str]] = [[] for _ in range(4)]
    clients = [asyncio.create_task(keep_asking(urlsplit(server.url).port, each, stop)) for each in seen]
    await until(lambda: all(seen))
    before = threads(server)
    for seed in range(1, 4):
        expected.append(put(place, seed))
        server.process.send_signal(signal.SIGHUP)
        await until(lambda: all(each[-1] == expected[-1] for each in seen) or any(each.done() for each in clients))
        await until(
            lambda: [line["event"] for line in server.log()].count("the former model is freed") == len(expected) - 1
        )
    stop.set()
    await asyncio.gather(*clients)
    for each in seen:
        assert [digest for index, digest in enumerate(each) if each[index - 1 : index] != [digest]] == expected
    # A thread of the tokenizers begins with the first request that needs it.
    assert threads(server) <= before + 4
    assert server.process.poll() is None


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another model"])
async def test_requests_in_flight_are_answered_by_the_model_that_they_reached(tmp_path: Path, beside: bool) -> None:
    """While new ones are answered by the new one; then the former is gone."""
    place = tmp_path / "model"
    former = put(place, 0, delay_seconds=2.0)
    write_artifact(tmp_path / "other", name="other")
    server = Server(place, *([tmp_path / "other"] if beside else []))
    async with server.client() as client:
        client.headers["x-cloze-model"] = "probe"
        late = asyncio.create_task(client.post("/v1/echo", json={"inputs": "a"}))
        late_by_protocol = asyncio.create_task(
            client.post(
                "/v2/models/probe/infer",
                json={"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]},
            )
        )
        text = 'cloze_in_flight_requests{model="probe",version="local"} 2.0'
        async with asyncio.timeout(10):
            while text not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.005)
        new = put(place, 1)
        server.look()
        await described(client, lambda model: model["digest"] == new)
        assert not late.done()
        assert (await client.post("/v1/echo", json={"inputs": "a"})).json()["digest"] == new
        assert (await late).json()["digest"] == former
        assert (await late_by_protocol).status_code == 200
        # Its threads hold on to it as long as they are there.
        await until(lambda: server.backends[0]() is None)
        assert server.backends[-1]() is not None
        metrics = (await client.get("/metrics")).text
    assert f'digest="{former}"' not in metrics
    assert f'digest="{new}"' in metrics
    assert 'cloze_requests_total{model="probe",route="/v1/echo",status="200",version="local"} 2.0' in metrics
    assert 'cloze_stage_duration_seconds_count{model="probe",stage="infer",version="local"} 3.0' in metrics
    assert 'cloze_reload_events_total{result="loaded"} 1.0' in metrics


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda folder: (folder / ECHO_FILE).write_text("{}"), "FileCorrupt"),
        (lambda folder: (folder / MANIFEST_FILE).unlink(), "ReferenceUnavailable"),
        (lambda folder: (folder / "more").touch(), "FileUnlisted"),
    ],
)
async def test_what_fails_is_refused_and_the_former_model_goes_on(
    tmp_path: Path, break_it: Callable[[Path], Any], reason: str
) -> None:
    """The reason is told; once it is mended, a look takes it."""
    place = tmp_path / "model"
    former = put(place, 0)
    server = Server(place)
    async with server.client() as client:
        new = put(place, 1)
        break_it(place)
        server.look()
        refused = (await described(client, lambda model: "refused" in model))["refused"]
        assert refused["reason"] == reason
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post("/v1/echo", json={"inputs": "a"})).json()["digest"] == former
        metrics = (await client.get("/metrics")).text
        assert 'cloze_reload_events_total{result="refused"} 1.0' in metrics
        again = put(place, 2)
        server.look()
        assert "refused" not in await described(client, lambda model: model["digest"] == again)
    assert new != again


async def test_one_that_fails_to_warm_up_or_is_another_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's name and task are what clients rely on; and one that gives no answer must not take over."""

    async def fail(_: Service) -> None:
        raise FatalError(ExitCode.ARTIFACT_INVALID, "GraphInvalid", "no answer")

    place = tmp_path / "model"
    former = put(place, 0)
    server = Server(place)
    async with server.client() as client:
        put(place, 1, name="other")
        server.look()
        refused = (await described(client, lambda model: "refused" in model))["refused"]
        assert refused["reason"] == "ModelDiffers"
        put(place, 2)
        monkeypatch.setattr(Service, "warm_up", fail)
        server.look()
        await described(client, lambda model: model["refused"]["reason"] == "GraphInvalid")
        assert (await client.post("/v1/echo", json={"inputs": "a"})).json()["digest"] == former


async def test_a_server_looks_by_itself_where_it_is_told_to(tmp_path: Path) -> None:
    """Of several models the one that changed is replaced; one that was refused is not loaded again and again."""
    first, second = tmp_path / "a" / "model", tmp_path / "b" / "model"
    for each in (first, second):
        each.parent.mkdir()
    put(first, 0)
    stays = put(second, 0, name="stays")
    server = Server(first, second, reload_seconds=0.01)
    loads: list[int] = []
    async with server.client() as client:
        new = put(first, 1)
        await described(client, lambda model: model["digest"] == new)
        assert (await client.get("/v1/models")).json()["models"][1]["digest"] == stays
        origin = server.reloading.origins[0]
        put(first, 2, unnamed="more")
        await described(client, lambda model: "refused" in model)
        looks = 0

        def counted() -> str | None:
            nonlocal looks
            looks += 1
            return origin.digest()

        server.reloading.origins[0] = Origin(counted, lambda: loads.append(1))  # type: ignore[index,arg-type,return-value,func-returns-value]
        await until(lambda: looks >= 5)
    assert loads == []


async def test_a_pinned_digest_stays(tmp_path: Path) -> None:
    """Whatever the reference leads to by now."""
    place = tmp_path / "model"
    former = put(place, 0)
    server = Server(place, digest=(former,), reload_seconds=0.01)
    async with server.client() as client:
        put(place, 1)
        server.look()
        await until(server.reloading.asked.empty)
        for _ in range(20):
            assert (await client.post("/v1/echo", json={"inputs": "a"})).json()["digest"] == former
        assert "refused" not in (await client.get("/v1/models")).json()["models"][0]
