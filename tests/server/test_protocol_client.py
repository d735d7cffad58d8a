"""The Open Inference Protocol as Triton's own client speaks it."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

triton = pytest.importorskip("tritonclient.http", reason="the environment is older than the lock: make venv")
from tritonclient.utils import InferenceServerException  # noqa: E402 - needs what was just looked for

pytestmark = pytest.mark.anyio

TEXTS = ["my card was charged twice", "größer als ☃", ""]


async def ready(server: Any) -> str:
    """Address of a server that answers."""
    await asyncio.to_thread(server.wait_for_event, "ready")
    return str(server.url).removeprefix("http://")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [None, True, False])
async def test_the_official_client_gets_what_the_tasks_route_answers(
    start_server: Any, binary_in: bool, binary_out: bool | None
) -> None:
    """With its defaults, which are binary, and with JSON."""
    address = await ready(start_server("--model", "spam=dummy:", "--model", "masks=dummy:fill-mask"))
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("spam")
        assert client.is_model_ready("masks", "local")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == "cloze"
        described = client.get_model_metadata("spam")
        assert [each["name"] for each in described["outputs"]] == ["labels", "scores", "response"]

        text = triton.InferInput("text", [len(TEXTS)], "BYTES")
        text.set_data_from_numpy(np.array([each.encode() for each in TEXTS], np.object_), binary_data=binary_in)
        outputs = None
        if binary_out is not None:
            names = ("labels", "scores", "response")
            outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
        reply = client.infer("spam", [text], outputs=outputs, request_id="7", parameters={"top_k": 2})
    assert reply.get_response()["id"] == "7"
    results = [json.loads(each) for each in reply.as_numpy("response")]
    labels = [[each if isinstance(each, str) else each.decode() for each in row] for row in reply.as_numpy("labels")]
    assert labels == [[each["label"] for each in result["predictions"]] for result in results]
    scores = [[each["score"] for each in result["predictions"]] for result in results]
    np.testing.assert_allclose(reply.as_numpy("scores"), scores, rtol=1e-6)
    assert len(results) == len(TEXTS)


async def test_the_official_client_is_told_what_is_wrong(start_server: Any, tmp_path: Path) -> None:
    """In a sentence, also for want of a key, which it can send."""
    keys = tmp_path / "keys"
    keys.write_text(f"shop:{hashlib.sha256(b'one').hexdigest()}\n")
    address = await ready(start_server("--model", "masks=dummy:fill-mask", "--api-keys", str(keys)))
    text = triton.InferInput("text", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"no mask here"], np.object_))
    with triton.InferenceServerClient(address) as client:
        with pytest.raises(InferenceServerException, match=r"\[MASK\]") as error:
            client.infer("masks", [text], headers={"x-api-key": "one"})
        assert error.value.status() == "422"
        with pytest.raises(InferenceServerException, match="send a key") as error:
            client.infer("masks", [text])
        assert error.value.status() == "401"
