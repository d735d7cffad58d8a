"""Rolling updates lose no request: real processes, real sockets, real signals."""

# What is awaited lives in another thread or process, so there is no event to wait for.
# ruff: noqa: ASYNC110

import asyncio
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

pytestmark = pytest.mark.anyio

BODY = json.dumps({"inputs": "some words"}).encode()
REQUEST = (
    b"POST /v1/classify HTTP/1.1\r\nHost: server\r\nContent-Type: application/json\r\n"
    b"Content-Length: " + str(len(BODY)).encode() + b"\r\n\r\n" + BODY
)


@dataclass
class Tally:
    """What one client saw."""

    answered: int = 0
    announced: int = 0
    failures: list[str] = field(default_factory=list)


async def keep_asking(port: int, tally: Tally) -> None:
    """One connection in constant use, dialled anew only between requests, until nobody listens."""
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    while True:
        if reader is None or writer is None or reader.at_eof():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                return
        try:
            writer.write(REQUEST)
            lines = (await reply(reader)).decode().lower().split("\r\n")
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            tally.failures.append(repr(error))
            reader = None
            continue
        if " 200 " in lines[0]:
            tally.answered += 1
        else:
            tally.failures.append(lines[0])
        if "connection: close" in lines:
            tally.announced += 1
            writer.close()
            reader = None


async def test_a_rolling_update_under_load_fails_no_request(start_server: Any) -> None:
    """From the signal to the closed port every request is answered; the exit code is 0."""
    server = start_server("--model", "dummy:?seconds=0.002", "--lame-duck-seconds", "1")
    server.wait_for_event("ready")
    port = urlsplit(server.url).port
    tallies = [Tally() for _ in range(8)]
    clients = [asyncio.create_task(keep_asking(port, tally)) for tally in tallies]
    async with asyncio.timeout(20):
        while min(tally.answered for tally in tallies) < 20:
            await asyncio.sleep(0.005)
        before = sum(tally.answered for tally in tallies)
        server.process.send_signal(signal.SIGTERM)
        async with httpx.AsyncClient() as client:
            while (await client.get(server.url + "/readyz")).status_code != 503:
                await asyncio.sleep(0.005)
        await asyncio.gather(*clients)
    assert await asyncio.to_thread(server.process.wait, 10) == 0
    assert [failure for tally in tallies for failure in tally.failures] == []
    assert sum(tally.answered for tally in tallies) > before + 20, "requests were served while lame"
    assert all(tally.announced for tally in tallies)


async def test_accepted_requests_are_finished_after_the_port_closed(start_server: Any) -> None:
    """Also those that wait in the queue, without any lame-duck time."""
    server = start_server("--model", "dummy:?seconds=0.2", "--lame-duck-seconds", "0", "--max-batch-tokens", "16")
    server.wait_for_event("ready")
    async with httpx.AsyncClient(timeout=30) as client:
        asked = [
            asyncio.create_task(client.post(server.url + "/v1/classify", json={"inputs": "some words"}))
            for _ in range(8)
        ]
        await metrics_hold(client, server.url, 'cloze_in_flight_requests{model="dummy",version="local"} 8.0')
        server.process.send_signal(signal.SIGTERM)
        replies = await asyncio.gather(*asked)
    assert [reply.status_code for reply in replies] == [200] * 8
    assert await asyncio.to_thread(server.process.wait, 10) == 0


async def test_a_signal_while_loading_ends_at_once(start_server: Any) -> None:
    """Nobody waits for a server that was never ready."""
    server = start_server(
        "--model", "models:/mails/1", "--mlflow-uri", "http://127.0.0.1:9", "--cache", "/nonexistent/cache"
    )
    server.wait_for_event("registry unreachable: will try again")
    async with httpx.AsyncClient() as client:
        assert (await client.get(server.url + "/healthz")).status_code == 200
        assert (await client.get(server.url + "/readyz")).status_code == 503
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.process.wait, 10) == 0
    assert time.monotonic() - started < 4


async def test_a_client_that_leaves_is_withdrawn_and_counted(start_server: Any) -> None:
    """Its text, if not yet in a batch, never reaches the model, and no gauge leaks."""
    server = start_server("--model", "dummy:?seconds=1", "--max-batch-tokens", "16")
    server.wait_for_event("ready")
    port = urlsplit(server.url).port
    async with httpx.AsyncClient() as client:
        writers = []
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(REQUEST)
            writers.append(writer)
        await metrics_hold(client, server.url, 'cloze_in_flight_requests{model="dummy",version="local"} 3.0')
        for writer in writers:
            writer.close()
        await metrics_hold(
            client,
            server.url,
            'cloze_requests_total{model="dummy",route="/v1/classify",status="499",version="local"} 3.0',
        )
        await metrics_hold(client, server.url, 'cloze_queue_tokens{model="dummy",version="local"} 0.0')
        await metrics_hold(client, server.url, 'cloze_in_flight_requests{model="dummy",version="local"} 0.0')
        await metrics_hold(client, server.url, 'cloze_batch_tokens_count{model="dummy",version="local"} 1.0')


async def test_a_second_signal_ends_at_once_and_tells_whom_it_abandons(start_server: Any) -> None:
    """The client gets a problem document, the operator the count."""
    server = start_server("--model", "dummy:?seconds=0.5", "--max-batch-tokens", "16")
    server.wait_for_event("ready")
    async with httpx.AsyncClient(timeout=30) as client:
        asked = [
            asyncio.create_task(client.post(server.url + "/v1/classify", json={"inputs": "some words"}))
            for _ in range(8)
        ]
        await metrics_hold(client, server.url, 'cloze_in_flight_requests{model="dummy",version="local"} 8.0')
        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while (await client.get(server.url + "/readyz")).status_code != 503:
                await asyncio.sleep(0.005)
        server.process.send_signal(signal.SIGTERM)
        replies = await asyncio.gather(*asked)
    abandoned = [reply for reply in replies if reply.status_code != 200]
    assert abandoned, "the second signal didn't wait for the queue"
    for refused in abandoned:
        assert refused.status_code == 503
        assert refused.json()["type"].endswith("shutting-down")
    assert await asyncio.to_thread(server.process.wait, 10) == 30
    assert server.wait_for_event("drained")["abandoned"] == len(abandoned)
    left = json.loads(server.termination_log.read_text())
    assert left["reason"] == "RequestsAbandoned"
    assert left["message"].startswith(f"{len(abandoned)} accepted request")


async def test_an_idle_kept_connection_is_served_while_lame_and_closed_in_order(start_server: Any) -> None:
    """Gateways keep connections for minutes: one gets its reply with a farewell, the other an end without a reset."""
    server = start_server("--model", "dummy:", "--lame-duck-seconds", "1")
    server.wait_for_event("ready")
    port = urlsplit(server.url).port
    busy_reader, busy_writer = await asyncio.open_connection("127.0.0.1", port)
    idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(20):
        for reader, writer in ((busy_reader, busy_writer), (idle_reader, idle_writer)):
            writer.write(REQUEST)
            assert b" 200 " in await reply(reader)
        server.process.send_signal(signal.SIGTERM)
        async with httpx.AsyncClient() as client:
            while (await client.get(server.url + "/readyz")).status_code != 503:
                await asyncio.sleep(0.005)
        busy_writer.write(REQUEST)
        farewell = await reply(busy_reader)
        assert b" 200 " in farewell
        assert b"connection: close" in farewell.lower()
        assert await busy_reader.read() == b""
        assert await idle_reader.read() == b"", "closed, not reset"
        assert await asyncio.to_thread(server.process.wait, 10) == 0


def test_a_signal_before_the_server_is_up_ends_the_process() -> None:
    """A container's first process has no handler but its own, and would ignore the signal."""
    code = (
        "import os, signal, time; from cloze_server import main;"
        "main.read = lambda *_: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(5));"
        "main.main()"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0


async def reply(reader: asyncio.StreamReader) -> bytes:
    """Head of the next reply; its body is read too."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length:" in line)
    await reader.readexactly(length)
    return head


async def metrics_hold(client: httpx.AsyncClient, url: str, line: str) -> None:
    """Wait until the metrics say so."""
    async with asyncio.timeout(10):
        while line not in (await client.get(url + "/metrics")).text:
            await asyncio.sleep(0.005)
