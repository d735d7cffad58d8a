"""The demo's stream of requests: its figures are what users saw, and no request is forgotten."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hack" / "demo"))

import senders  # noqa: E402 hack/ is no installed package

ANSWER = senders.Reply(row=0, began=1.0, seconds=0.1, status=200, version="1", label="ham", score=0.9)
FAILED = senders.Reply(row=1, began=1.0, seconds=0.1, status=500, version="2")


@pytest.mark.parametrize(
    ("reply", "lost"),
    [
        (ANSWER, False),
        (FAILED, False),
        (senders.Reply(0, 1.0, 60.0, 0), True),
        (senders.Reply(0, 1.0, 0.1, 502), True),
        (senders.Reply(0, 1.0, 0.1, 500), True),
        (replace(FAILED, status=503), True),
        (replace(FAILED, status=429), True),
        (replace(ANSWER, label=""), True),
    ],
)
def test_what_is_neither_answered_nor_failed_by_a_model_is_lost(reply: senders.Reply, lost: bool) -> None:
    """Only a 500 in which a model speaks is that model's own; a 200 without an answer helps nobody."""
    assert reply.is_lost == lost


def test_figures_are_by_version_and_of_answers() -> None:
    """A failure counts as a request, but neither as an answer nor for the latency."""
    replies = [ANSWER, replace(ANSWER, row=1, seconds=0.3), FAILED, senders.Reply(0, 1.0, 9.0, 0)]
    tallies = senders.by_version(replies, ["ham", "spam"])
    assert set(tallies) == {"1", "2"}
    assert (tallies["1"].requests, tallies["1"].failed, tallies["1"].right) == (2, 0, 1)
    assert (tallies["2"].requests, tallies["2"].failed, tallies["2"].seconds) == (1, 1, [])
    assert tallies["1"].quantile(0.95) == 0.3
    assert tallies["2"].quantile(0.95) == 0.0


def test_an_answer_that_differs_from_the_same_versions_is_anothers() -> None:
    """Another label or score for the same text; but not a rounded one, and not another version's."""
    fine = [replace(ANSWER, score=0.9001), replace(ANSWER, version="2", score=0.4), replace(ANSWER, row=1, score=0.1)]
    assert senders.mixed_up([ANSWER, *fine]) == 0
    assert senders.mixed_up([ANSWER, *fine, replace(ANSWER, score=0.95), replace(ANSWER, label="spam")]) == 2


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"version": "1", "results": []}', b"<html>"])
def test_a_body_without_an_answer_is_none(body: bytes) -> None:
    """Whatever the status says."""
    assert senders.read_reply(0, 1.0, 0.1, status=200, version="1", raw=body).is_lost


def test_a_body_of_another_version_than_its_header_is_no_answer() -> None:
    body = {"version": "2", "results": [{"predictions": [{"label": "ham", "score": 0.9}]}]}
    raw = json.dumps(body).encode()
    assert senders.read_reply(0, 1.0, 0.1, status=200, version="1", raw=raw).is_lost
    assert senders.read_reply(0, 1.0, 0.1, status=200, version="2", raw=raw).is_answer


@pytest.fixture
def gateway() -> Iterator[tuple[str, list[tuple[str, str]], threading.Semaphore]]:
    """A server that answers a good text, fails a bad one and hangs up on any other; what it got, each one signalled."""
    got: list[tuple[str, str]] = []
    arrived = threading.Semaphore(0)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            text = json.loads(self.rfile.read(int(self.headers["content-length"])))["inputs"]
            got.append((self.headers["host"], text))
            if text == "hang up":
                self.close_connection = True
            else:
                answer = {"version": "1", "results": [{"predictions": [{"label": "ham", "score": 0.9}]}]}
                body = json.dumps(answer if text == "good" else {"title": "failed"}).encode()
                self.send_response(200 if text == "good" else 500)
                self.send_header("x-cloze-version", "1")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            arrived.release()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", got, arrived
        server.shutdown()
        thread.join()


def test_every_request_is_accounted_for(gateway: tuple[str, list[tuple[str, str]], threading.Semaphore]) -> None:
    """One reply for each request, in which it is said whose it is; those still due are waited for at the end."""
    address, got, arrived = gateway
    with senders.Load(address, "spam.example.com", ["good", "bad", "hang up"], rate=200) as running:
        for _ in range(30):
            assert arrived.acquire(timeout=30)
    replies = running.replies()
    texts = [text for _, text in got]
    assert {host for host, _ in got} == {"spam.example.com"}
    assert sum(reply.is_answer for reply in replies) == texts.count("good")
    assert sum(reply.is_own_failure for reply in replies) == texts.count("bad")
    assert sum(reply.is_lost for reply in replies) == texts.count("hang up")
    assert running.replies(since=max(reply.began for reply in replies) + 1) == []
