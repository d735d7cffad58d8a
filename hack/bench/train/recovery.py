"""How long a run trains nothing after a rank was killed, as processes of this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PATIENCE_SECONDS = 180


def _progress(port: int) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=5) as reply:
            found: dict[str, Any] = json.load(reply)
    except OSError:
        return {}
    return found


def _ranks(workspace: Path) -> list[int]:
    """Processes of the run's ranks: their environment names its folder."""
    mark, found = f"CLOZE_WORKSPACE={workspace}\0".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            is_rank = (entry / "comm").read_text().startswith("cloze-rank-")
            if is_rank and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


@contextmanager
def _started(job: Path, workspace: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    command = [str(Path(sys.executable).with_name("cloze-train")), "run", str(job), "--progress-port", str(port)]
    environment = os.environ | {"CLOZE_WORKSPACE": str(workspace), "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def _until(process: "subprocess.Popen[bytes]", port: int, step: int) -> dict[str, Any]:
    """The first progress that has a checkpoint and more steps than `step`."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        found = _progress(port)
        if found.get("checkpointStep") and found["step"] > max(step, found["checkpointStep"]):
            return found
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit("the run doesn't train")
        time.sleep(0.02)


def seconds_without_training(job: dict[str, Any], rounds: int) -> list[float]:
    """From a rank's death by SIGKILL to the first new step of the run that was started again, as Kubernetes would."""
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        file, workspace = Path(scratch, "job.json"), Path(scratch, "workspace").resolve()
        file.write_text(json.dumps(job), encoding="utf-8")
        found = []
        reached = 0
        for _ in range(rounds):
            with _started(file, workspace, port) as process:
                reached = _until(process, port, reached)["checkpointStep"]
                began = time.monotonic()
                os.kill(_ranks(workspace)[-1], signal.SIGKILL)
                process.wait(timeout=_PATIENCE_SECONDS)
            with _started(file, workspace, port) as process:
                reached = _until(process, port, reached)["step"]
                found.append(time.monotonic() - began)
        return found
