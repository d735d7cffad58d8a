"""Clients that send little, read nothing, or leave: they hold neither the engine nor the memory, nor others off."""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

HEAD = b"POST /v1/%b HTTP/1.1\r\nHost: server\r\nContent-Type: application/json\r\n"
MOST = 20
# Its reply is some 3 MB: more than the kernels on both sides keep.
LONG = {"words": [["☃" * 7] * 8192] * 4, "truncate": "right"}


class Server:
    """One that runs, and what it says of itself."""

    def __init__(self, process: Any) -> None:
        process.wait_for_event("ready")
        self.url = process.url
        self.port = urlsplit(process.url).port
        self.pid = process.process.pid

    def request(self, route: str, body: Any) -> bytes:
        content = json.dumps(body, ensure_ascii=False).encode()
        return HEAD % route.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content

    def ask(self, **headers: str) -> httpx.Response:
        """On a connection of its own."""
        return httpx.post(self.url + "/v1/classify", json={"inputs": "x"}, headers=headers, timeout=30)

    def metric(self, name: str) -> float:
        """The sum of a metric's series whose line holds the name."""
        text = httpx.get(self.url + "/metrics", timeout=30).text
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))

    def until(self, name: str, value: float) -> None:
        """Wait for a metric."""
        deadline = time.monotonic() + 20
        while (found := self.metric(name)) != value:
            assert time.monotonic() < deadline, f"{name} is {found}"
            time.sleep(0.02)

    @contextmanager
    def dialled(self, count: int) -> Iterator[list[socket.socket]]:
        with ExitStack() as stack:
            yield [stack.enter_context(socket.create_connection(("127.0.0.1", self.port), 20)) for _ in range(count)]


@pytest.fixture(scope="module")
def impatient(start_shared_server: Any) -> Server:
    """One that waits for four seconds, ten times as long as it takes to make the long reply."""
    models = ("--model", "dummy:", "--model", "t=dummy:token-classification")
    return Server(start_shared_server(*models, "--timeout-seconds", "4"))


@pytest.fixture(scope="module")
def patient(start_shared_server: Any) -> Server:
    """One of which every batch takes half a second, with few connections."""
    options = ("--max-batch-tokens", "3", "--max-connections", str(MOST), "--max-wait-seconds", "600")
    return Server(start_shared_server("--model", "dummy:?seconds=0.5", *options))


def received(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    found = b""
    try:
        while part := connection.recv(1 << 16):
            found += part
    except ConnectionResetError:
        found += b"reset"
    return found


def test_a_head_that_trickles_is_given_up(impatient: Server) -> None:
    """By a deadline from its first byte, however often another follows."""
    with impatient.dialled(1) as (connection,):
        connection.settimeout(0.05)
        found = b""
        sent = 0
        while not found:
            try:
                connection.sendall(b"GET / HTTP/1.1\r\nX: " if not sent else b"y")
                found = connection.recv(1 << 16)
            except TimeoutError:
                sent += 1
            assert sent < 400
    assert b"408" in found
    assert b"head-timeout" in found
    assert sent > 5


def test_a_body_that_trickles_is_given_up(impatient: Server) -> None:
    """It is the request's own time that passes; nothing of it stays."""
    with impatient.dialled(30) as connections:
        for connection in connections:
            connection.sendall(HEAD % b"classify" + b"Content-Length: 100000\r\n\r\n" + b" " * 50_000)
        assert impatient.ask().status_code == 200
        assert all(b"408" in received(connection) for connection in connections)
    impatient.until("cloze_in_flight_requests", 0)


def test_a_client_that_reads_no_reply_is_given_up(impatient: Server) -> None:
    """Its requests too, which hold their bodies; others are answered meanwhile."""
    before = impatient.metric("cloze_ended_connections_total")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", impatient.port))
        # The server reads no more of them than it answers.
        connection.settimeout(0.2)
        with suppress(OSError):
            connection.sendall(impatient.request("token-classify", LONG) * 8)
        assert impatient.ask().status_code == 200
        impatient.until("cloze_ended_connections_total", before + 1)
        impatient.until("cloze_in_flight_requests", 0)


def test_a_client_that_reads_slowly_gets_its_reply(impatient: Server) -> None:
    """As long as it goes on reading, though it takes longer than the server waits for one that doesn't."""
    whole = httpx.post(impatient.url + "/v1/token-classify", json=LONG, timeout=30).content
    began = time.monotonic()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", impatient.port))
        connection.sendall(impatient.request("token-classify", LONG).replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        found = b""
        # Of which the last is taken at once; it is the pace before that counts.
        while time.monotonic() - began < 6 and (part := connection.recv(8192)):
            found += part
            time.sleep(0.02)
        found += received(connection)
    assert found.partition(b"\r\n\r\n")[2] == whole


def test_silent_connections_make_room_for_one_that_asks(patient: Server) -> None:
    """Those that have been silent for longest are closed; none is refused."""
    before = patient.metric("cloze_ended_connections_total")
    with patient.dialled(10 * MOST) as connections:
        assert patient.ask().status_code == 200
        assert patient.metric("cloze_open_connections") <= MOST
        assert received(connections[0]) == b""
        assert patient.metric("cloze_ended_connections_total") >= before + 9 * MOST
        # The youngest is as good as any.
        connections[-1].sendall(
            patient.request("classify", {"inputs": "x"}).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        )
        assert b" 200 OK" in received(connections[-1])


def test_where_all_are_busy_one_too_many_is_told_so(patient: Server) -> None:
    """With a time to come back; probes are answered all the same."""
    with patient.dialled(MOST) as connections:
        for connection in connections:
            connection.sendall(HEAD % b"classify" + b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n")
            assert b"100 Continue" in connection.recv(100)
        refused = patient.ask()
        assert httpx.get(patient.url + "/healthz").status_code == 200
    assert (refused.status_code, refused.json()["type"].rpartition("/")[2]) == (503, "too-many-connections")
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["connection"] == "close"
    patient.until("cloze_in_flight_requests", 0)
    assert patient.ask().status_code == 200


def test_work_of_clients_that_left_is_dropped(patient: Server) -> None:
    """The queue is empty long before it could have been worked off, and the model has seen next to none of it."""
    patient.until("cloze_in_flight_requests", 0)
    before = patient.metric("cloze_batch_tokens_count")
    with patient.dialled(MOST - 2) as connections:
        for connection in connections:
            connection.sendall(patient.request("classify", {"inputs": ["x"] * 10}))
        patient.until("cloze_in_flight_requests", len(connections))
        assert patient.metric("cloze_queue_tokens") > 0
    patient.until("cloze_queue_tokens", 0)
    patient.until("cloze_in_flight_requests", 0)
    # Of 180 batches.
    assert patient.metric("cloze_batch_tokens_count") - before < 30
