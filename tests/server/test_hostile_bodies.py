"""Bodies that no client of good will sends: each has its answer, none is repeated, and the server goes on."""

import json
from typing import Any

import httpx
import pytest

JSON = {"content-type": "application/json"}
ANSWERED = (200, "")
INVALID = (422, "input-invalid")
NO_JSON = (400, "body-invalid")


def of_text(text: str, **members: Any) -> bytes:
    """A request of a text."""
    return json.dumps({"inputs": text, **members}, ensure_ascii=False).encode()


def of_json(value: str) -> bytes:
    """A request whose `inputs` are spelt like this."""
    return b'{"inputs": %b}' % value.encode()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"", NO_JSON, id="nothing"),
        pytest.param(b" \r\n\t", NO_JSON, id="white space"),
        pytest.param(b'{"inputs": "secret \xff\xfe"}', NO_JSON, id="no UTF-8"),
        pytest.param(b'{"inputs": "secret \xc3', NO_JSON, id="half a character"),
        pytest.param(b'{"inputs": "secret \xed\xa0\x80"}', INVALID, id="a surrogate in UTF-8"),
        pytest.param(of_json(r'"secret \ud800"'), INVALID, id="a lone surrogate"),
        pytest.param(of_json(r'"secret \udc00\ud800"'), INVALID, id="surrogates the wrong way round"),
        pytest.param(of_json(r'"\ud83d\ude00"'), ANSWERED, id="a pair of surrogates"),
        pytest.param(of_text("\0" * 60_000), ANSWERED, id="a flood of NUL"),
        pytest.param(of_text("\u200b" * 60_000), ANSWERED, id="a flood of zero-width spaces"),
        pytest.param(of_text("\u2060\ufeff\u200d" * 20_000), ANSWERED, id="a flood of joiners"),
        pytest.param(of_text("a" + "\u0301" * 60_000), ANSWERED, id="a flood of accents"),
        pytest.param(of_text("\u202e" * 30_000 + "secret"), ANSWERED, id="a flood of direction marks"),
        pytest.param(of_text("\U0001f469\u200d" * 20_000), ANSWERED, id="a flood of joined emoji"),
        pytest.param(of_text("\ufdfa" * 60_000, truncate="right"), ANSWERED, id="a flood of ligatures that unfold"),
        pytest.param(of_text("!" * 60_000), (422, "input-too-long"), id="a flood of punctuation"),
        pytest.param(of_text("!" * 60_000, truncate="right"), ANSWERED, id="a flood of punctuation to cut"),
        pytest.param(
            of_text("!" * 65_000, truncate="window", stride=60), (413, "request-too-large"), id="a flood of windows"
        ),
        pytest.param(of_text("!" * 70_000), (422, "input-too-long"), id="too many characters"),
        pytest.param(of_text(""), ANSWERED, id="an empty text"),
        pytest.param(of_text(" \t\n\u3000"), ANSWERED, id="a text of white space"),
        pytest.param(of_text("[CLS] [SEP] [PAD] [MASK] [UNK]"), ANSWERED, id="special tokens"),
        pytest.param(b'{"inputs": "' + b"secret " * 1_500_000 + b'"}', (413, "body-too-large"), id="10 MB"),
        pytest.param(json.dumps({"inputs": ["a"] * 100_000}).encode(), (413, "too-many-inputs"), id="100,000 inputs"),
        pytest.param(json.dumps({"inputs": [1] * 200_000}).encode(), INVALID, id="200,000 wrong inputs"),
        pytest.param(b"[" * 500_000, NO_JSON, id="deep arrays"),
        pytest.param(b'{"a":' * 150_000, NO_JSON, id="deep objects"),
        pytest.param(of_json("[" * 100_000 + "]" * 100_000), NO_JSON, id="deep inputs"),
        pytest.param(of_json("[" * 100 + "]" * 100), INVALID, id="lists in lists"),
        *(
            pytest.param(of_json(value), INVALID, id=f"inputs {value}")
            for value in ("null", "7", "true", "{}", "[]", "[null]", "[7]", '["a", 7]', '[["a"]]', "NaN", "-Infinity")
        ),
        *(pytest.param(value.encode(), INVALID, id=f"body {value}") for value in ("null", "[]", '"a"', "7", "NaN")),
        pytest.param(of_json("1" + "0" * 5000), NO_JSON, id="a number of 5,000 digits"),
        pytest.param(b'{"inputs": "secret", "secret": 1}', INVALID, id="an unknown field"),
        pytest.param(b'{"inputs": "secret", "inputs": "a"}', ANSWERED, id="a field twice"),
        pytest.param(of_text("a", timeout_ms=10**399), ANSWERED, id="a deadline of 400 digits"),
        pytest.param(of_text("a", timeout_ms=-(10**399)), INVALID, id="a deadline before the beginning"),
        pytest.param(of_text("a", timeout_ms=float("nan")), INVALID, id="no number for a deadline"),
        pytest.param(of_text("a", top_k=10**399), ANSWERED, id="more labels than there are"),
        pytest.param(of_text("a", top_k=float("inf")), INVALID, id="infinitely many labels"),
        pytest.param(of_text("! " * 500, truncate="window", stride=10**399), INVALID, id="a stride of 400 digits"),
        pytest.param(of_text("a", truncate="secret"), INVALID, id="an unknown truncation"),
        pytest.param(of_text("a", model="c\0"), (404, "model-unknown"), id="NUL in a model's name"),
    ],
)
def test_each_body_has_its_answer(all_tasks: Any, body: bytes, expected: tuple[int, str]) -> None:
    """By type; a refusal doesn't repeat the text."""
    reply = httpx.post(all_tasks.url + "/v1/classify", content=body, headers=JSON, timeout=30)
    kind = reply.json()["type"].rpartition("/")[2] if reply.status_code >= 400 else ""
    assert (reply.status_code, kind) == expected
    assert "secret" not in reply.text


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(of_text("secret"), (422, "mask-missing"), id="no mask"),
        pytest.param(of_text(""), (422, "mask-missing"), id="an empty text"),
        pytest.param(of_text("[MASK] or [MASK]"), ANSWERED, id="two masks"),
        pytest.param(of_text("[MASK]" * 100, top_k=1000), (413, "request-too-large"), id="a flood of masks"),
        pytest.param(of_text("[mask] [MASK"), (422, "mask-missing"), id="nearly a mask"),
        pytest.param(of_text("a " * 500 + "[MASK]", truncate="right"), (422, "mask-missing"), id="a mask that is cut"),
    ],
)
def test_masks_are_counted_before_they_are_filled(all_tasks: Any, body: bytes, expected: tuple[int, str]) -> None:
    """None is one too few; as many as the reply has room for are answered."""
    reply = httpx.post(all_tasks.url + "/v1/fill-mask", content=body, headers=JSON, timeout=30)
    document = reply.json()
    kind = document["type"].rpartition("/")[2] if reply.status_code >= 400 else ""
    assert (reply.status_code, kind) == expected
    if expected == ANSWERED:
        assert len(document["results"][0]["masks"]) == 2


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/token-classify", b'{"words": [["secret", ""], []]}'),
        ("/v1/token-classify", rb'{"words": [["\ud800"]]}'),
        ("/v1/token-classify", b'{"words": [' + b'["a"],' * 100_000 + b"[]]}"),
        ("/v1/token-classify", b'{"inputs": "a", "words": [["secret"]]}'),
        ("/v1/answer", b'{"question": "secret", "context": null}'),
        ("/v1/answer", rb'{"question": "\ud800", "context": "a"}'),
        ("/v1/answer", b'{"inputs": [{"question": "secret"}]}'),
        ("/v1/answer", of_text("secret")),
        ("/v1/answer", b'{"question": "secret", "context": "a", "no_answer": "yes"}'),
        ("/v1/classify", of_text("secret", top_k="2")),
        ("/v1/classify", of_text("secret", top_k=True)),
        ("/v1/classify", of_text("secret", timeout_ms="50")),
        ("/v1/embeddings", b'{"input": []}'),
        ("/v1/embeddings", b'{"input": "a", "dimensions": 1' + b"0" * 399 + b"}"),
        ("/v1/embeddings", b'{"input": [1, 2, 3]}'),
        ("/v1/similarity", b'{"source": "secret"}'),
        ("/v1/similarity", b'{"pairs": [["secret"]]}'),
        ("/v1/similarity", b'{"pairs": [' + b'["a", "b"],' * 50_000 + b'["a", "b"]]}'),
    ],
)
def test_other_tasks_refuse_what_does_not_fit(all_tasks: Any, route: str, body: bytes) -> None:
    """As what it is, without the text."""
    reply = httpx.post(all_tasks.url + route, content=body, headers=JSON, timeout=30)
    assert 400 <= reply.status_code < 429, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert "secret" not in reply.text


SHAPES = [
    "[0]",
    "[2]",
    "[1, 2]",
    "[1, 1, 1, 1]",
    "[-1]",
    "[1.5]",
    "[1e400]",
    "[NaN]",
    "[" + "9" * 400 + "]",
    "[[1]]",
    "1",
]
SIZES = ["-1", "0", "10", "4294967296", "1" + "0" * 399, "1e9", "NaN", '"11"', "null"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_that_lies_is_refused(all_tasks: Any, shape: str) -> None:
    """Before there is room made for it."""
    content = b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": %b, "data": ["secret"]}]}' % shape.encode()
    reply = httpx.post(all_tasks.url + "/v2/models/sequence-classification/infer", content=content, headers=JSON)
    assert reply.status_code in (400, 413, 422), reply.text
    assert list(reply.json()) == ["error"]
    assert "secret" not in reply.text


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "data", [b"\x06\0\0\0secret!", b"\xff\xff\xff\xffsecret!", b"\x07\0\0\0secret\xff", b"\0" * 11]
)
def test_binary_data_that_is_none_is_refused(all_tasks: Any, size: str, data: bytes) -> None:
    """By whatever size it claims; a text says its own length, and is UTF-8."""
    head = (
        b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": %b}}]}'
        % size.encode()
    )
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    reply = httpx.post(all_tasks.url + "/v2/models/sequence-classification/infer", content=head + data, headers=headers)
    assert reply.status_code in (400, 422), reply.text
    assert list(reply.json()) == ["error"]
    assert "secret" not in reply.text
