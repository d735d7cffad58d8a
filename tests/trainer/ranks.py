"""Gangs of ranks, of `one_rank.py` or another program, as processes."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import warm

PROGRAM = Path(__file__).with_name("one_rank.py")


def start(folder: Path, world: int, *scenarios: dict[str, Any]) -> list[warm.Process]:
    """As many ranks, each with the scenarios."""
    return gang(folder, world, [str(PROGRAM), str(folder), *map(json.dumps, scenarios)])


def gang(folder: Path, world: int, words: list[str], **own: str) -> list[warm.Process]:
    """As many ranks of a program; what they say is in the folder's `log-WORLD-RANK`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    started = []
    for rank in range(world):
        environment = os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"} | own
        with log(folder, world, rank).open("a") as output:
            started.append(warm.start(words, environment, output))
    return started


def finish(folder: Path, processes: list[warm.Process]) -> None:
    """Wait until all ranks have ended well; none is left behind."""
    try:
        for rank, process in enumerate(processes):
            assert process.wait(timeout=120) == 0, log(folder, len(processes), rank).read_text()
    finally:
        for process in processes:
            process.kill()


def log(folder: Path, world: int, rank: int) -> Path:
    return folder / f"log-{world}-{rank}"
