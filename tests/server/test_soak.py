"""Hours of a server's life, or as many seconds as CLOZE_SOAK_SECONDS says: what it takes doesn't grow.

CLOZE_SOAK_MODEL is the folder of a classifier of texts that is served beside stand-ins; a tiny one when absent.
"""

import json
import os
import random
import socket
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from cloze_api.task import Task

SECONDS = float(os.environ.get("CLOZE_SOAK_SECONDS", "60"))
SHORT_SECONDS = 20.0
CLIENTS = 6
GROWTH_BYTES = 10 << 20
# On a machine that does other work as well, the longest request takes its time.
PATIENCE_SECONDS = 120
ROUTES = {
    "/v1/classify": "inputs",
    "/v1/token-classify": "inputs",
    "/v1/embeddings": "input",
    "/v1/echo": "inputs",
}
WORDS = ["card", "parcel", "☃", "größer", "a", "Rotterdam", "!", "2025"]
BROKEN = [b"", b"{", b"[" * 5000, b'{"inputs": "\xff"}', b'{"inputs": "\\ud800"}', b'{"inputs": 7}', b'{"inputs": []}']


class Client(threading.Thread):
    """Asks for this and that until it is told to stop, and keeps what it didn't expect."""

    def __init__(self, url: str, seed: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.strange: list[str] = []
        self.asked = 0
        self._url = url
        self._random = random.Random(seed)  # noqa: S311 - not a secret
        self._stopped = stop

    def run(self) -> None:
        """On a connection of its own, but for those that it leaves."""
        with httpx.Client(base_url=self._url, timeout=PATIENCE_SECONDS) as client:
            while not self._stopped.is_set():
                self.asked += 1
                kind = self._random.random()
                if kind < 0.8:
                    self._ask(client)
                elif kind < 0.9:
                    self._expect(client, self._random.choice(BROKEN), refused=True)
                else:
                    self._leave()

    def _ask(self, client: httpx.Client) -> None:
        route, name = self._random.choice(list(ROUTES.items()))
        texts = [self._text() for _ in range(self._random.choice([1, 1, 1, 2, 16]))]
        body = {name: texts, "truncate": self._random.choice(["right", "left", "window"])}
        self._expect(client, json.dumps(body).encode(), route)

    def _text(self) -> str:
        length = self._random.choice([0, 3, 3, 10, 40, 600])
        return " ".join(self._random.choices(WORDS, k=length))

    def _expect(self, client: httpx.Client, body: bytes, route: str = "/v1/classify", *, refused: bool = False) -> None:
        reply = client.post(route, content=body, headers={"content-type": "application/json"})
        # The queue may be full.
        if reply.status_code != 429 and (400 <= reply.status_code < 500) is not refused:
            self.strange.append(f"{route}: {reply.status_code} {reply.text[:300]}")

    def _leave(self) -> None:
        """In the middle of a head, of a body, or before the reply."""
        body = json.dumps({"inputs": [self._text() for _ in range(8)], "truncate": "right"}).encode()
        head = b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        whole = head % len(body) + body
        address = urlsplit(self._url)
        with socket.create_connection((address.hostname, address.port), 30) as connection:
            connection.sendall(whole[: self._random.randrange(len(whole) + 1)])


def rss(pid: int) -> int:
    """Bytes of memory that a process has."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def entries(pid: int, what: str) -> int:
    """How many of `task` (threads) or `fd` (descriptors) a process has."""
    return len(list(Path(f"/proc/{pid}/{what}").iterdir()))


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition that nobody announces."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("seconds", "until_warm"),
    [
        # Caches and arenas are full after some ten seconds, whatever the length.
        (SHORT_SECONDS, 1 / 2),
        pytest.param(SECONDS, 1 / 6, marks=[pytest.mark.full, pytest.mark.timeout(SECONDS + 600)]),
    ],
)
def test_what_a_server_takes_does_not_grow(
    start_server: Any, artifacts: Any, seconds: float, until_warm: float
) -> None:
    """Memory once the server is warm, until the end; threads; and descriptors once the clients are gone.

    until_warm: share of the time.
    """
    given = os.environ.get("CLOZE_SOAK_MODEL")
    folder = given or artifacts(Task.SEQUENCE_CLASSIFICATION).folder
    options = ["--model", f"sequence={folder}", "--model", "token=dummy:token-classification"]
    options += ["--model", "embedding=dummy:embedding", "--model", "echo=dummy:echo", "--cache-bytes", str(4 << 20)]
    options += ["--timeout-seconds", str(PATIENCE_SECONDS), "--drain-seconds", str(PATIENCE_SECONDS)]
    server = start_server(*options)
    server.wait_for_event("ready", PATIENCE_SECONDS)
    pid = server.process.pid
    descriptors = entries(pid, "fd")
    stop = threading.Event()
    clients = [Client(server.url, seed, stop) for seed in range(CLIENTS)]
    for client in clients:
        client.start()
    memory: list[int] = []
    threads: list[int] = []
    began = time.monotonic()
    # A measurement each second, and at least 30 of them.
    while time.monotonic() - began < seconds:
        memory.append(rss(pid))
        threads.append(entries(pid, "task"))
        stop.wait(min(1.0, seconds / 30))
        assert server.process.poll() is None, server.log()[-5:]
        assert all(client.is_alive() for client in clients)
    stop.set()
    for client in clients:
        client.join(PATIENCE_SECONDS)
    assert [line for client in clients for line in client.strange] == []
    early, late = int(len(memory) * until_warm), len(memory) - 5
    # Of a few each: bodies come and go.
    grown = statistics.median(memory[late:]) - statistics.median(memory[early : early + 5])
    # As one text: of a list only the first few would be shown.
    assert grown <= GROWTH_BYTES, " ".join(str(size >> 20) for size in memory)
    assert max(threads[late:]) <= max(threads[: early + 5])
    until(lambda: entries(pid, "fd") <= descriptors, "descriptors stay open")
    lines = httpx.get(server.url + "/metrics").text.splitlines()
    assert all(line.endswith(" 0.0") for line in lines if line.startswith("cloze_in_flight_requests{"))
    assert [line for line in server.log() if line["level"] in ("error", "critical")] == []
    assert sum(client.asked for client in clients) > (1 if given else 10) * seconds
