"""Who may ask: API keys as hashes in a file that may change at any time, and pages of other origins."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.task import Task
from cloze_server import keys
from cloze_server.dummy import dummy_model
from cloze_server.exits import ExitCode, FatalError
from cloze_server.keys import KeyFile, new_key, owner, parse, presented

pytestmark = pytest.mark.anyio


def hashed(name: str, key: str) -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}\n"


def loads() -> Any:
    return dummy_model(Task.SEQUENCE_CLASSIFICATION)


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def ask(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post("/v1/classify", json={"inputs": "x"}, headers=sent)


async def test_without_a_known_key_nothing_is_answered(serving: Any, tmp_path: Path) -> None:
    """With one, in either header, everything is."""
    path = tmp_path / "keys"
    path.write_text("# who may ask\n\n" + hashed("shop", "one") + hashed("mail", "two") + hashed("mail", "three"))
    async with serving(loads, api_keys=path) as client:
        for headers in (
            *({"authorization": f"Bearer {key}"} for key in ("one", "two", "three")),
            *({"authorization": "bearer one"}, {"x_api_key": "one"}),
            {"authorization": "Basic b25lOg==", "x_api_key": "two"},
        ):
            assert (await ask(client, **headers)).status_code == 200, headers
        for headers in (
            *({}, {"authorization": "Bearer four"}, {"authorization": "one"}, {"authorization": "Bearer "}),
            *({"x_api_key": ""}, {"x_api_key": hashlib.sha256(b"one").hexdigest()}, {"x_api_key": "shop"}),
            {"authorization": "Bearer four", "x_api_key": "one"},
        ):
            refused = await ask(client, **headers)
            assert (refused.status_code, refused.json()["type"].rsplit("/")[-1]) == (401, "unauthorized"), headers
            assert refused.headers["www-authenticate"].startswith('Bearer realm="cloze"')
            assert "four" not in refused.text
        counted = (await client.get("/metrics")).text
    assert 'route="/v1/classify",status="401",version="local"} 8.0' in counted


async def test_probes_metrics_and_the_schema_need_no_key(serving: Any, tmp_path: Path) -> None:
    """What is asked by machines that have none; anything else is refused, also a route that doesn't exist."""
    path = tmp_path / "keys"
    path.write_text(hashed("shop", "one"))
    async with serving(loads, api_keys=path) as client:
        for route in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
            assert (await client.get(route)).status_code == 200, route
        for route in ("/v1/models", "/v1/poetry", "/metrics/", "http://server//metrics"):
            assert (await client.get(route)).status_code == 401, route


async def test_a_key_is_asked_for_before_the_body_is_read(serving: Any, tmp_path: Path) -> None:
    """Who has none can't fill the memory."""
    path = tmp_path / "keys"
    path.write_text(hashed("shop", "one"))
    read = 0

    async def chunks() -> Any:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b" " * 1000

    async with serving(loads, api_keys=path) as client:
        refused = await client.post("/v1/classify", content=chunks(), headers={"content-type": "application/json"})
    assert refused.status_code == 401
    assert read == 0


def test_a_changed_file_counts_within_a_second(tmp_path: Path) -> None:
    """Written over, replaced, or reached by another link, as a mounted Secret's."""
    clock, path = Clock(), tmp_path / "keys"
    path.write_text(hashed("shop", "one"))
    file = KeyFile(path, clock=clock)

    def known() -> set[str]:
        clock.now += 1
        return {key for key in ("one", "two", "three", "four") if file.owner(key.encode())}

    assert known() == {"one"}
    path.write_text(hashed("shop", "two"))
    assert known() == {"two"}
    (tmp_path / "new").write_text(hashed("shop", "one"))
    (tmp_path / "new").replace(path)
    assert known() == {"one"}

    for folder, key in (("..1", "three"), ("..2", "four")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "keys").write_text(hashed("shop", key))
        os.utime(tmp_path / folder / "keys", ns=(0, 0))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "mounted").symlink_to("..data/keys")
    file = KeyFile(tmp_path / "mounted", clock=clock)
    assert known() == {"three"}
    (tmp_path / "..next").symlink_to("..2")
    (tmp_path / "..next").replace(tmp_path / "..data")
    assert known() == {"four"}


def test_the_file_is_not_looked_at_for_each_request(tmp_path: Path) -> None:
    """Once a second is enough."""
    clock, path = Clock(), tmp_path / "keys"
    path.write_text(hashed("shop", "one"))
    file = KeyFile(path, clock=clock)
    path.write_text(hashed("shop", "two"))
    clock.now = 0.9
    assert file.owner(b"one") == "shop"
    clock.now = 1.1
    assert file.owner(b"one") is None


@pytest.mark.parametrize("content", [None, b"", b"# none\n", b"shop:abc\n", b"\xff\xfe", b"shop:" + b"0" * (1 << 21)])
def test_a_file_that_cannot_be_read_changes_nothing(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The former keys stay in force; it is logged once and counted each time, and a repaired file counts again."""
    clock, path, complaints = Clock(), tmp_path / "keys", []
    path.write_text(hashed("shop", "one"))
    file = KeyFile(path, lambda: complaints.append(1), clock)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    for _ in range(3):
        clock.now += 1
        assert file.owner(b"one") == "shop"
    assert len(complaints) == 3
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    path.write_text(hashed("shop", "two"))
    clock.now += 1
    assert (file.owner(b"two"), file.owner(b"one")) == ("shop", None)
    assert len(complaints) == 3


async def test_an_unreadable_file_shows_in_the_metrics(serving: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Where an alert finds it."""
    path = tmp_path / "keys"
    path.write_text(hashed("shop", "one"))
    monkeypatch.setattr(keys, "_LOOK_SECONDS", 0.0)
    async with serving(loads, api_keys=path) as client:
        assert "cloze_key_file_errors_total 0.0" in (await client.get("/metrics")).text
        path.unlink()
        assert (await ask(client, x_api_key="one")).status_code == 200
        assert "cloze_key_file_errors_total 1.0" in (await client.get("/metrics")).text


@pytest.mark.parametrize("content", [None, b"", b"no key"])
async def test_a_server_does_not_start_with_a_file_that_it_cannot_use(
    serving: Any, tmp_path: Path, content: bytes | None
) -> None:
    """Neither open to everybody nor closed to all."""
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FatalError, match="--api-keys") as error:
        async with serving(loads, api_keys=path):
            pass
    assert (error.value.code, error.value.reason) == (ExitCode.CONFIGURATION, "ApiKeysInvalid")


@given(st.lists(st.text(min_size=1), min_size=1, max_size=20, unique=True), st.text())
def test_only_the_keys_of_the_file_have_an_owner(known: list[str], other: str) -> None:
    """Whatever their number, order and content."""
    keys = [key.encode("utf-8", "surrogatepass") for key in known]
    text = "".join(f"owner-{number}:{hashlib.sha256(key).hexdigest()}\n" for number, key in enumerate(keys))
    hashes = parse(text)
    assert [owner(hashes, key) for key in keys] == [f"owner-{number}" for number in range(len(keys))]
    asked = other.encode("utf-8", "surrogatepass")
    assert (owner(hashes, asked) is None) == (asked not in keys)


def test_a_wrong_line_is_named_by_its_number_alone() -> None:
    """It may hold a key that somebody put there by mistake."""
    with pytest.raises(ValueError, match="line 2") as error:
        parse(hashed("shop", "one") + "cloze_secret\n")
    assert "secret" not in str(error.value)


def test_a_new_key_is_printed_once_with_its_line() -> None:
    """As the command does it; the line lets exactly that key in."""
    done = subprocess.run(
        [sys.executable, "-m", "cloze_server.main", "key", "new", "shop"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line[0] != " ")
    assert owner(parse(found["line"].strip()), found["key"].strip().encode()) == "shop"
    assert new_key("shop")[0] != new_key("shop")[0]
    for wrong in ("", "a b", "a:b", "-", "x" * 64):
        with pytest.raises(FatalError):
            new_key(wrong)


def test_a_bearer_token_comes_before_the_other_header() -> None:
    """So that a gateway's own key doesn't hide a client's."""
    assert presented({b"authorization": b"Bearer  a ", b"x-api-key": b"b"}) == b"a"
    assert presented({b"x-api-key": b"b"}) == b"b"
    assert presented({}) is None


async def test_pages_of_other_origins_are_let_in_by_name_alone(serving: Any, tmp_path: Path) -> None:
    """None by default; those that are let in may read every header, also of a refusal, and ask without a key first."""
    path = tmp_path / "keys"
    path.write_text(hashed("shop", "one"))
    preflight = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,authorization,traceparent",
    }
    async with serving(loads) as client:
        closed = await ask(client, origin="https://app.example")
    async with serving(loads, api_keys=path, cors_origins=("https://app.example",)) as client:
        asked = await client.options("/v1/classify", headers=preflight)
        answered = await ask(client, origin="https://app.example", x_api_key="one")
        refused = await ask(client, origin="https://app.example")
        stranger = await ask(client, origin="https://other.example", x_api_key="one")
    assert "access-control-allow-origin" not in closed.headers
    assert asked.status_code == 200
    assert "authorization" in asked.headers["access-control-allow-headers"].lower()
    for reply in (asked, answered, refused):
        assert reply.headers["access-control-allow-origin"] == "https://app.example"
    assert "server-timing" in answered.headers["access-control-expose-headers"]
    assert refused.status_code == 401
    assert "access-control-allow-origin" not in stranger.headers
