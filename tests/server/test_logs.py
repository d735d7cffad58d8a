"""Log lines: what they tell, and that nobody waits for them to be read."""

import io
import json
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cloze_server import logs


class Gated(io.StringIO):
    """A stream that takes nothing until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.tried, self.open = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        """Wait, then keep it."""
        self.tried.set()
        assert self.open.wait(10)
        return super().write(text)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """One of its own, which hands nothing on."""
    made = logging.Logger("of-a-test")
    yield made
    for handler in made.handlers:
        handler.close()


def lines(text: str) -> list[dict[str, Any]]:
    """What a log holds."""
    return [json.loads(line) for line in text.splitlines()]


def test_who_logs_waits_for_nobody_and_is_told_what_was_lost(logger: logging.Logger) -> None:
    """Lines keep their order; those that found no room are counted."""
    stream = Gated()
    handler = logs.QueuedHandler(stream, most=3)
    handler.setFormatter(logs.JsonFormatter())
    logger.addHandler(handler)
    logger.warning("first")
    assert stream.tried.wait(10)
    for number in range(5):
        logger.warning("further %d", number)
    stream.open.set()
    handler.close()
    written = lines(stream.getvalue())
    events = [line["event"] for line in written]
    assert events[:2] == ["first", "further 0"]
    assert [event for event in events if event.startswith("further")] == ["further 0", "further 1", "further 2"]
    assert [line["lines"] for line in written if line["event"].startswith("log lines were lost")] == [2]


def test_the_end_does_not_wait_for_a_stream_that_nobody_reads(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for ever."""
    monkeypatch.setattr(logs, "_FAREWELL_SECONDS", 0.05)
    stream = Gated()
    handler = logs.QueuedHandler(stream, most=1)
    logger.addHandler(handler)
    for _ in range(3):
        logger.warning("a line")
    closing = threading.Thread(target=handler.close)
    closing.start()
    closing.join(5)
    assert not closing.is_alive()
    stream.open.set()


def test_lines_name_the_model_and_the_request_and_hold_no_text(start_server: Any, tmp_path: Any) -> None:
    """By name, version and digest."""
    keys = tmp_path / "keys"
    keys.write_text("shop:" + "0" * 64)
    server = start_server("--model", "dummy:sequence-classification", "--api-keys", str(keys))
    server.wait_for_event("ready")
    keys.write_text("nonsense of a secret")
    os.utime(keys, (1, 1))
    event = "API keys can't be read: the former ones stay in force"
    for _ in range(20):
        httpx.post(
            server.url + "/v1/classify",
            json={"inputs": "a text of a user"},
            headers={"x-request-id": "mine", "x-api-key": "k"},
        )
        if any(line["event"] == event for line in server.log()):
            break
        threading.Event().wait(0.2)
    line = server.wait_for_event(event)
    assert (line["model"], line["version"], line["request_id"]) == ("dummy", "local", "mine")
    assert line["digest"].startswith("sha256:")
    assert "text of a user" not in server.log_path.read_text()
    assert "nonsense" not in server.log_path.read_text()
