"""The Open Inference Protocol as KServe's own client speaks it, which has an environment of its own."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.full,
    pytest.mark.skipif("UV" not in os.environ, reason="installs the client by uv: make full-serving"),
]

PINS = Path(__file__).with_name("kserve.txt")
CACHE = Path.home() / ".cache" / "cloze" / "clients"
TEXTS = ["my card was charged twice", "größer als ☃", ""]


@pytest.fixture(scope="module")
def interpreter() -> Path:
    """Python of an environment that has the client; made when it is missing."""
    folder = CACHE / f"kserve-{hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        uv = os.environ["UV"]
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(python), "-r", str(PINS)]
        subprocess.run(install, check=True)
        (folder / "complete").touch()
    return python


async def test_kserves_client_gets_what_the_tasks_route_answers(start_server: Any, interpreter: Path) -> None:
    """With tensors in binary and in JSON; what is wrong reaches whoever asked."""
    server = start_server("--model", "spam=dummy:", "--model", "masks=dummy:fill-mask")
    await asyncio.to_thread(server.wait_for_event, "ready")
    command = [str(interpreter), str(Path(__file__).with_name("kserve_client.py")), str(server.url)]
    done = await asyncio.to_thread(
        subprocess.run, command, input=json.dumps(TEXTS), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["live"], told["ready"]) == (True, True)
    assert told["models"] == {"spam": True, "other": False}
    replies = [value for name, value in told.items() if name.startswith("binary=")]
    assert len(replies) == 4
    assert all(reply == replies[0] for reply in replies)
    assert replies[0]["id"] == "7"
    results = [json.loads(each) for each in replies[0]["response"]]
    assert len(results) == len(TEXTS)
    labels = [[each["label"] for each in result["predictions"]] for result in results]
    assert replies[0]["labels"] == labels
    for row, result in zip(replies[0]["scores"], results, strict=True):
        assert row == pytest.approx([each["score"] for each in result["predictions"]])
    assert "[MASK]" in told["refusal"]
