"""Gangs of ranks of `one_rank.py`, as processes."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import warm

PROGRAM = Path(__file__).with_name("one_rank.py")


def start(folder: Path, world: int, *scenarios: dict[str, Any]) -> list[warm.Process]:
    """As many ranks, each with the scenarios; what they say is in the folder's `log-WORLD-RANK`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    started = []
    for rank in range(world):
        environment = os.environ | place | {"RANK": str(rank), "OMP_NUM_THREADS": "1"}
        with log(folder, world, rank).open("a") as output:
            started.append(warm.start([str(PROGRAM), str(folder), *map(json.dumps, scenarios)], environment, output))
    return started


def log(folder: Path, world: int, rank: int) -> Path:
    return folder / f"log-{world}-{rank}"
