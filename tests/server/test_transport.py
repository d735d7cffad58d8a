"""Bytes on real sockets that no client of good will sends, and what becomes of the connection."""

import json
import re
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BODY = b'{"inputs": "hello"}'
LINE = b"POST /v1/classify HTTP/1.1\r\n"
HEADERS = b"Host: server\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
CLOSE = b"Connection: close\r\n"
WHOLE = LINE + HEADERS + LENGTH + b"\r\n" + BODY


@pytest.fixture(scope="module")
def port(start_shared_server: Any) -> int:
    """Where a server of two models listens that asks for no patience."""
    server = start_shared_server(
        *("--model", "c=dummy:", "--model", "d=dummy:token-classification"),
        *("--timeout-seconds", "1", "--max-connections", "1000"),
    )
    server.wait_for_event("ready")
    found = urlsplit(server.url).port
    assert found
    return found


def exchange(port: int, data: bytes, *, parts: int = 1 << 20, seconds: float = 10) -> bytes:
    """All that comes back until the server closes; what is sent may be refused halfway."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        try:
            for at in range(0, len(data), parts):
                connection.sendall(data[at : at + parts])
        except (BrokenPipeError, ConnectionResetError):
            pass
        while part := connection.recv(1 << 16):
            received += part
    return received


def replies(received: bytes) -> list[tuple[int, dict[bytes, bytes], bytes]]:
    """Status, headers and body of each reply, which must be whole."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        line, *lines = head.split(b"\r\n")
        matched = re.fullmatch(rb"HTTP/1\.1 ([1-5][0-9]{2}) .*", line)
        assert matched, received[:200]
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(b":") for each in lines)}
        length = int(headers.get(b"content-length", b"0"))
        assert len(rest) >= length
        found.append((int(matched[1]), headers, rest[:length]))
        received = rest[length:]
    return found


def only(received: bytes) -> tuple[int, str]:
    """Status of the only reply, and the last part of its problem's type."""
    ((status, headers, body),) = replies(received)
    if status < 400:
        return status, ""
    assert headers[b"content-type"] == b"application/problem+json"
    document = json.loads(body)
    assert headers[b"x-request-id"].decode() == document["request_id"]
    assert document["status"] == status
    return status, document["type"].rpartition("/")[2]


INVALID = (400, "request-invalid")
LARGE = (431, "head-too-large")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(LINE + HEADERS + CLOSE + LENGTH + b"\r\n" + BODY, (200, ""), id="sound"),
        pytest.param(LINE + HEADERS + CLOSE + CHUNKED + b"\r\n" + CHUNKS + b"\r\n", (200, ""), id="sound chunks"),
        # Two readings of where a body ends would let one request hide in another.
        pytest.param(LINE + HEADERS + LENGTH + CHUNKED + b"\r\n" + CHUNKS, INVALID, id="length and chunks"),
        pytest.param(LINE + HEADERS + CHUNKED + LENGTH + b"\r\n" + CHUNKS, INVALID, id="chunks and length"),
        pytest.param(LINE + HEADERS + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY, INVALID, id="two lengths"),
        pytest.param(LINE + HEADERS + b"Content-Length: -1\r\n\r\n" + BODY, INVALID, id="negative length"),
        pytest.param(LINE + HEADERS + b"Content-Length: 1e3\r\n\r\n" + BODY, INVALID, id="no length"),
        pytest.param(LINE + HEADERS + b"Content-Length: %d\r\n\r\n" % (1 << 64), INVALID, id="overflowing length"),
        pytest.param(LINE + HEADERS + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS, INVALID, id="unknown coding"),
        pytest.param(
            LINE + HEADERS + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS, INVALID, id="space before colon"
        ),
        pytest.param(LINE + HEADERS + b"X-Folded: a\r\n b\r\n\r\n", INVALID, id="folded header"),
        pytest.param(WHOLE.replace(b"\r\n", b"\n"), INVALID, id="bare line feeds"),
        pytest.param(WHOLE.replace(b"\r\n", b"\r"), INVALID, id="bare carriage returns"),
        pytest.param(LINE + HEADERS + b"X-Nul: a\0b\r\n\r\n", INVALID, id="NUL in a header"),
        pytest.param(b"GET /v1/mod\0els HTTP/1.1\r\n\r\n", INVALID, id="NUL in a path"),
        pytest.param(b"GET /v1/\xff HTTP/1.1\r\n\r\n", INVALID, id="byte in a path"),
        pytest.param(LINE + HEADERS + CHUNKED + b"\r\n-1\r\n" + BODY, INVALID, id="negative chunk"),
        pytest.param(LINE + HEADERS + CHUNKED + b"\r\n1" + b"f" * 20 + b"\r\n" + BODY, INVALID, id="overflowing chunk"),
        pytest.param(b"BREW /v1/models HTTP/1.1\r\n\r\n", INVALID, id="unknown method"),
        pytest.param(b"CONNECT server:80 HTTP/1.1\r\n\r\n", INVALID, id="tunnel"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", INVALID, id="HTTP/2"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), INVALID, id="TLS"),
        pytest.param(bytes(range(256)), INVALID, id="noise"),
        # As many bytes as there are, and no more than a few are kept.
        pytest.param(LINE + HEADERS + b"X: " + b"y" * 10_000_000, LARGE, id="endless header"),
        pytest.param(LINE + HEADERS + b"X: y\r\n" * 100_000, LARGE, id="flood of headers"),
        pytest.param(LINE + HEADERS + b"X: y\r\n" * 12_000 + b"\r\n", LARGE, id="many headers"),
        pytest.param(b"GET /" + b"y" * 1_000_000, LARGE, id="endless path"),
        pytest.param(b"\r\n" * 500_000, LARGE, id="empty lines"),
        pytest.param(LINE + HEADERS + CHUNKED + b"\r\n1;" + b"y" * 1_000_000, LARGE, id="endless chunk extension"),
        pytest.param(LINE + HEADERS + CHUNKED + b"\r\n0\r\n" + b"X: y\r\n" * 100_000, LARGE, id="flood of trailers"),
        pytest.param(
            LINE + HEADERS + CLOSE + b"Content-Length: " + b"0" * 10_000 + b"19\r\n\r\n" + BODY,
            (413, "body-too-large"),
            id="length of zeros",
        ),
        pytest.param(
            LINE + HEADERS + CLOSE + b"Content-Length: 5000000000\r\n\r\n" + b" " * 10_000_000,
            (413, "body-too-large"),
            id="huge length",
        ),
        pytest.param(
            LINE + HEADERS + CHUNKED + CLOSE + b"\r\n" + b"10000\r\n%b\r\n" % (b" " * 65_536) * 160,
            (413, "body-too-large"),
            id="chunks without end",
        ),
        pytest.param(
            LINE + HEADERS + b"Content-Length: 999\r\n\r\n" + BODY, (408, "body-timeout"), id="length too long"
        ),
        pytest.param(LINE + HEADERS + CHUNKED + b"\r\n" + b"f" * 15, (408, "body-timeout"), id="half a chunk"),
        pytest.param(LINE + HEADERS + b"X-Half: ", (408, "head-timeout"), id="half a head"),
        pytest.param(b"\r\n", (408, "head-timeout"), id="an empty line"),
        pytest.param(b"GET /v1/models%00 HTTP/1.1\r\n" + CLOSE + b"\r\n", (404, "not-found"), id="encoded NUL"),
        pytest.param(b"GET //v1/models HTTP/1.1\r\n" + CLOSE + b"\r\n", (404, "not-found"), id="two slashes"),
        pytest.param(b"GET /v1/../v1/models HTTP/1.1\r\n" + CLOSE + b"\r\n", (404, "not-found"), id="dots"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\n" + CLOSE + b"\r\n", (404, "not-found"), id="asterisk"),
        pytest.param(b"TRACE /v1/models HTTP/1.1\r\n" + CLOSE + b"\r\n", (405, "method-not-allowed"), id="TRACE"),
        pytest.param(b"CONNECT /v1/models HTTP/1.1\r\n\r\n", (405, "method-not-allowed"), id="CONNECT"),
        pytest.param(
            LINE + HEADERS + CLOSE + b"X-Cloze-Model: \xff\xfe\r\n" + LENGTH + b"\r\n" + BODY,
            (404, "model-unknown"),
            id="bytes in a header",
        ),
    ],
)
def test_what_is_no_sound_request_gets_one_clear_reply(port: int, data: bytes, expected: tuple[int, str]) -> None:
    """A problem document that can be read to its end, though the server stops reading; then the connection ends."""
    assert only(exchange(port, data)) == expected


@pytest.mark.parametrize("parts", [1, 7, 100])
def test_a_request_in_pieces_is_the_same_request(port: int, parts: int) -> None:
    """Wherever it is cut."""
    data = LINE + HEADERS + CLOSE + CHUNKED + b"\r\n" + CHUNKS + b"\r\n"
    whole = replies(exchange(port, data))[0]
    cut = replies(exchange(port, data, parts=parts))[0]
    assert (cut[0], cut[2]) == (200, whole[2])


def test_a_broken_request_behind_a_sound_one_spoils_nothing(port: int) -> None:
    """The sound one is answered, whole and alone; what follows it can't be told apart from its own rest."""
    (status, headers, _) = replies(exchange(port, WHOLE + b"NONSENSE\r\n\r\n" + WHOLE))[0]
    assert (status, headers[b"connection"]) == (200, b"close")


def test_pipelined_requests_are_answered_in_their_order(port: int) -> None:
    """Each with its own id."""
    requests = [WHOLE.replace(b"Host", b"X-Request-Id: %d\r\nHost" % number) for number in range(50)]
    received = exchange(port, b"".join(requests) + WHOLE.replace(b"Host", CLOSE + b"X-Request-Id: last\r\nHost"))
    assert [each[1][b"x-request-id"] for each in replies(received)] == [b"%d" % n for n in range(50)] + [b"last"]


def test_head_is_answered_as_get_without_a_body(port: int) -> None:
    """As load balancers and monitors ask; the connection stays usable."""
    for path in (b"/healthz", b"/v1/models", b"/metrics", b"/"):
        head = exchange(port, b"HEAD %b HTTP/1.1\r\nHost: server\r\n%b\r\n" % (path, CLOSE))
        assert head.startswith(b"HTTP/1.1 200 "), path
        lines, _, body = head.partition(b"\r\n\r\n")
        assert re.search(rb"\r\ncontent-length: [1-9]", lines)
        assert body == b""


def test_trailers_are_no_headers(port: int) -> None:
    """They come when the request was checked already: this one would name another model."""
    trailers = b"x-cloze-model: d\r\nx-request-id: trailed\r\n"
    data = LINE + HEADERS + CLOSE + CHUNKED + b"\r\n" + CHUNKS + trailers + b"\r\n"
    ((status, headers, _),) = replies(exchange(port, data))
    assert (status, headers[b"x-cloze-model"]) == (200, b"c")
    assert headers[b"x-request-id"] != b"trailed"


@pytest.mark.parametrize("offer", [b"h2c", b"websocket"])
def test_an_offer_to_upgrade_is_ignored_with_its_request_kept(port: int, offer: bytes) -> None:
    """Some clients offer it with every request; the body isn't lost, nor the connection."""
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nHTTP2-Settings: AAMAAABk\r\n" % offer
    data = LINE + HEADERS + upgrade + LENGTH + b"\r\n" + BODY
    found = replies(exchange(port, data + WHOLE + data.replace(b"Upgrade,", b"close, upgrade,")))
    assert [status for status, _, _ in found] == [200, 200, 200]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 4), st.binary(max_size=6)), min_size=1, max_size=5
    ),
    parts=st.sampled_from([1, 3, 50, 1 << 20]),
)
def test_no_request_with_a_few_other_bytes_fails_the_server(
    port: int, edits: list[tuple[int, int, bytes]], parts: int
) -> None:
    """It is answered, or refused; the last one, which is sound, always ends the connection."""
    data = WHOLE
    for at, removed, added in edits:
        data = data[:at] + added + data[at + removed :]
    try:
        received = exchange(port, data + LINE + HEADERS + CLOSE + LENGTH + b"\r\n" + BODY, parts=parts)
    except ConnectionResetError:
        # Who is refused and goes on sending for longer than the server lingers: on a busy machine, in many parts.
        assert parts < len(WHOLE)
        return
    assert all(status < 500 for status, _, _ in replies(received))


@pytest.fixture(autouse=True)
def _lives(port: int) -> Callable[[], None]:
    """Whatever was sent, the next client is answered."""
    assert only(exchange(port, LINE + HEADERS + CLOSE + LENGTH + b"\r\n" + BODY)) == (200, "")
    return lambda: None
