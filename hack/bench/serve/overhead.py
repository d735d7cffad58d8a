"""What serving costs besides the model."""

import os
import sys
from pathlib import Path

import measure
from measure import Spread
from servers import PEERS, PORT, Server
from workload import Workload

_TEXT = "Free entry in a weekly competition to win tickets, text now."
_CONNECTIONS = (1, 16)


def _dummy() -> Server:
    """Ours, with a model that costs nothing, and with all that it does by default."""
    return Server(
        name="cloze, dummy model",
        command=lambda *_: [
            *(sys.executable, "-m", "cloze_server.main", "--model", "dummy:sequence-classification"),
            *("--host", "127.0.0.1", "--port", str(PORT), "--lame-duck-seconds", "0"),
        ],
        path="/v1/classify",
        body=lambda text: {"inputs": text},
        answer=lambda _: ("", 0.0),
        environment={"CLOZE_TERMINATION_LOG": os.devnull, "CLOZE_LOG_LEVEL": "warning"},
        ready="/readyz",
    )


def _echo() -> Server:
    return Server(
        name="bare Starlette echo",
        command=lambda *_: [
            *(sys.executable, "-m", "uvicorn", "--app-dir", str(PEERS), "--port", str(PORT)),
            *("--log-level", "error", "--no-access-log", "starlette_app:app"),
        ],
        path="/echo",
        body=lambda text: {"inputs": text},
        answer=lambda _: ("", 0.0),
    )


def overhead(*, rounds: int, seconds: float) -> None:
    """Requests a second of a model that costs nothing over those of a bare echo, and the milliseconds added."""
    work = Workload([_TEXT] * 16, [[0] * 16] * 16)
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    candidates = (_echo(), _dummy())
    for _ in range(rounds):
        for server in candidates:
            rungs = measure.ladder(server, Path(), work, seconds=seconds, threads=2, connections=_CONNECTIONS)
            for count, rung in rungs.items():
                found.setdefault((server.name, count), []).append(rung)
    echo, ours = (candidate.name for candidate in candidates)
    rows = []
    for count in _CONNECTIONS:
        pairs = list(zip(found[echo, count], found[ours, count], strict=True))
        rows.append(
            (
                count,
                Spread(tuple(bare["requests_per_second"] for bare, _ in pairs)),
                Spread(tuple(full["requests_per_second"] for _, full in pairs)),
                Spread(tuple(full["requests_per_second"] / bare["requests_per_second"] for bare, full in pairs)),
                Spread(tuple(full["p50_ms"] - bare["p50_ms"] for bare, full in pairs)),
            )
        )
    heads = ("connections", "echo, requests/s", "dummy model, requests/s", "ratio", "added to the median, ms")
    measure.table(heads, rows)
