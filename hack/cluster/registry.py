"""The image registry on this machine's loopback: one process and one store for all clusters."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from pathlib import Path

from . import node, process, state
from .console import ClusterError, say


def start(cache: Path, port: int) -> None:
    """Start the registry unless it runs; it outlives this command and the cluster that asked first."""
    folder = cache / "registry"
    if running := process.recall(folder / "process.json"):
        if answers(port):
            return
        raise ClusterError(f"the registry runs as process {running.pid} on another port than {port}: {_stop_first()}")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    state.write(folder / "config.json", json.dumps(_configuration(folder / "data", port), indent=2) + "\n")
    with (folder / "log").open("w") as log:
        started = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.json")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    identity = process.identify(started.pid)
    if identity:
        process.remember(folder / "process.json", identity)
    deadline = time.monotonic() + 15
    while not answers(port):
        if started.poll() is not None or time.monotonic() > deadline:
            raise ClusterError(f"the image registry did not start on 127.0.0.1:{port}, see {folder / 'log'}")
        time.sleep(0.05)
    say(f"image registry on 127.0.0.1:{port}")


def stop(cache: Path) -> bool:
    """Stop the registry if it runs; its images stay."""
    record = cache / "registry" / "process.json"
    running = process.recall(record)
    if running:
        process.terminate(running, grace=5)
    record.unlink(missing_ok=True)
    return running is not None


def owner(cache: Path) -> process.Identity | None:
    return process.recall(cache / "registry" / "process.json")


def port(cache: Path) -> int | None:
    """The port of the registry that runs, or None when none does."""
    if owner(cache) is None:
        return None
    with contextlib.suppress(ValueError):
        configuration = state.read(cache / "registry" / "config.json") or {}
        return int(configuration.get("http", {}).get("addr", "").rpartition(":")[2])
    return None


def answers(port: int) -> bool:
    return node.reachable(f"http://127.0.0.1:{port}/v2/")


def _configuration(data: Path, port: int) -> dict[str, object]:
    return {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(data)},
            "delete": {"enabled": True},
            "cache": {"blobdescriptor": "inmemory"},
        },
        "http": {"addr": f"127.0.0.1:{port}"},
    }


def _stop_first() -> str:
    return "run `registry down` with no cluster up, or set CLOZE_REGISTRY_PORT as it was"
