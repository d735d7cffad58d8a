"""Prometheus' answers, good and bad, over real connections."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from cloze_operator import prometheus as module
from cloze_operator.analysis.counters import Series
from cloze_operator.decide.answers import Unavailable
from cloze_operator.prometheus import Prometheus
from cloze_operator.telemetry import PROMETHEUS_ERRORS


class Stub:
    """Answers each question the same way, and remembers what was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.body = b""
        self.wait = threading.Event()
        self.wait.set()
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.forms: list[dict[str, str]] = []

    def say(self, document: Any, status: int = 200) -> None:
        self.status, self.body = status, json.dumps(document).encode()


@pytest.fixture
def stub() -> Iterator[Stub]:
    found = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            found.paths.append(self.path)
            found.headers.append({name.lower(): value for name, value in self.headers.items()})
            found.forms.append({name: values[0] for name, values in form.items()})
            found.wait.wait(30)
            self.send_response(found.status)
            self.send_header("Content-Length", str(len(found.body)))
            self.end_headers()
            self.wfile.write(found.body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
            """Questions aren't worth a line."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield found
    found.wait.set()
    server.shutdown()
    server.server_close()
    thread.join()


def ask(url: str, *, times: int = 1, between: Callable[[], object] = lambda: None, **settings: Any) -> Any:
    """The answer to the last of some questions."""

    async def scenario() -> Any:
        prometheus = Prometheus(url, **settings)
        try:
            for _ in range(times - 1):
                await prometheus.range("up", 100.0, 130.0, 15.0)
                between()
            return await prometheus.range("up", 100.0, 130.0, 15.0)
        finally:
            await prometheus.close()

    return asyncio.run(scenario())


def matrix(*series: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": "matrix", "result": list(series)}, **more}


GOOD = matrix({"metric": {"pod": "a"}, "values": [[100, "1"], [115.5, "NaN"], [130, "+Inf"]]})


def test_series_are_read_and_the_question_is_put_under_the_address_path(stub: Stub) -> None:
    stub.say(GOOD)
    (one,) = ask(f"{stub.url}/prometheus", headers={"X-Scope-OrgID": "tenant"})
    assert isinstance(one, Series)
    assert one.labels == {"pod": "a"}
    assert [at for at, _ in one.samples] == [100, 115.5, 130]
    assert [str(value) for _, value in one.samples] == ["1.0", "nan", "inf"]
    assert stub.paths == ["/prometheus/api/v1/query_range"]
    form = stub.forms[0]
    assert (form["query"], form["start"], form["end"], form["step"]) == ("up", "100.000", "130.000", "15")
    assert stub.headers[0]["x-scope-orgid"] == "tenant"


def test_a_token_is_read_anew_for_each_question(stub: Stub, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    stub.say(GOOD)
    ask(stub.url, times=2, between=lambda: token.write_text("second\n"), token_file=str(token))
    assert [headers["authorization"] for headers in stub.headers] == ["Bearer first", "Bearer second"]


def test_a_missing_token_is_said_and_nothing_is_asked(stub: Stub, tmp_path: Path) -> None:
    refused = ask(stub.url, token_file=str(tmp_path / "none"))
    assert isinstance(refused, Unavailable)
    assert str(tmp_path / "none") in refused.message
    assert not stub.paths


@pytest.mark.parametrize(
    ("document", "status", "expected"),
    [
        ({"status": "error", "errorType": "bad_data", "error": "parse error"}, 400, "HTTP 400: parse error"),
        ({"message": "no such tenant"}, 401, "HTTP 401"),
        ([], 200, "refused"),
        ({"status": "success"}, 200, "isn't understood"),
        (matrix({"metric": {}, "values": [[1, "many"]]}), 200, "isn't understood"),
        (matrix(warnings=["remote_read: refused"]), 200, "only a part of the answer: remote_read"),
    ],
)
def test_what_is_no_answer_is_said_and_counted(stub: Stub, document: Any, status: int, expected: str) -> None:
    before = PROMETHEUS_ERRORS._value.get()
    stub.say(document, status)
    refused = ask(stub.url)
    assert isinstance(refused, Unavailable)
    assert expected in refused.message
    assert PROMETHEUS_ERRORS._value.get() == before + 1


def test_a_note_on_the_query_is_an_answer(stub: Stub) -> None:
    stub.say(GOOD | {"warnings": ["PromQL info: metric might not be a counter"], "infos": ["anything"]})
    assert len(ask(stub.url)) == 1


def test_a_page_of_a_proxy_is_no_answer(stub: Stub) -> None:
    stub.status, stub.body = 502, b"<html>Bad gateway</html>"
    assert "HTTP 502: <html>Bad gateway" in ask(stub.url).message


def test_silence_ends_at_the_time_limit(stub: Stub) -> None:
    stub.say(GOOD)
    stub.wait.clear()
    assert "doesn't answer" in ask(stub.url, timeout_seconds=0.2).message


def test_nobody_there_is_said_without_the_password() -> None:
    refused = ask("http://user:secret@127.0.0.1:1")
    assert "127.0.0.1:1 doesn't answer" in refused.message
    assert "secret" not in refused.message


def test_more_than_the_memory_allows_is_not_read(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 10)
    stub.say(GOOD)
    assert "more than" in ask(stub.url).message
