"""The pages for people, as bytes: whole in themselves, under a strict policy, and off when told so."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from cloze_api.task import Task
from cloze_server.dummy import dummy_model
from cloze_server.settings import read

pytestmark = pytest.mark.anyio


def load() -> Any:
    return dummy_model(Task.FILL_MASK)


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_page_is_whole_in_itself(serving: Any, path: str) -> None:
    """Nothing of it is fetched; only what it brings may run, by hash."""
    async with serving(load) as client:
        reply = await client.get(path)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", reply.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    outside = re.sub(r"data:image[^\"]*", "", reply.text)
    assert not re.search(r"https?://|//[a-z]+\.|<link [^>]*stylesheet|<script [^>]*src|@import|innerHTML", outside)
    assert reply.headers["x-content-type-options"] == "nosniff"


async def test_pages_need_no_key_and_are_no_models_requests(serving: Any, tmp_path: Path) -> None:
    """They hold nothing of a model: what they ask for does."""
    (tmp_path / "keys").write_text(f"shop:{'0' * 64}\n")
    async with serving(load, api_keys=tmp_path / "keys") as client:
        statuses = [(await client.get(path)).status_code for path in ("/", "/docs", "/openapi.json", "/v1/models")]
        counted = (await client.get("/metrics")).text
    assert statuses == [200, 200, 200, 401]
    assert 'route="/docs"' not in counted


async def test_pages_can_be_switched_off(serving: Any) -> None:
    """By a flag or the environment; the schema stays."""
    async with serving(load, playground=False) as client:
        statuses = [(await client.get(path)).status_code for path in ("/", "/docs", "/openapi.json")]
    assert statuses == [404, 404, 200]
    assert read(["--model", "x"], {}).playground is True
    assert read(["--model", "x", "--no-playground"], {}).playground is False
    assert read(["--model", "x"], {"CLOZE_PLAYGROUND": "false"}).playground is False
    assert read(["--model", "x", "--playground", "true"], {"CLOZE_PLAYGROUND": "false"}).playground is True


async def test_a_model_says_what_stands_for_a_blank(serving: Any) -> None:
    """For who writes a text; other models have none."""
    for task, mask in ((Task.FILL_MASK, "[MASK]"), (Task.SEQUENCE_CLASSIFICATION, None)):
        async with serving(lambda task=task: dummy_model(task)) as client:
            assert (await client.get("/v1/models")).json()["models"][0]["mask"] == mask
