"""What serving costs besides the model."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import measure
import servers
from measure import Spread
from workload import Workload

_TEXT = "Free entry in a weekly competition to win tickets, text now."
_CONNECTIONS = (1, 16)
_DUMMY = "dummy:sequence-classification"


class _Collector(BaseHTTPRequestHandler):
    """Takes traces and forgets them."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def _collector() -> Iterator[str]:
    """The address of a collector."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def overhead(*, rounds: int, seconds: float) -> None:
    """Requests a second of a model that costs nothing over those of a bare echo, and the milliseconds added."""
    work = Workload([_TEXT] * 16, [[0] * 16] * 16)
    echo = servers.starlette()
    found: dict[str, dict[int, list[dict[str, float]]]] = {}
    with _collector() as address:
        traced = ("--otlp-endpoint", address, "--trace-sample-ratio")
        candidates = (
            echo,
            servers.ours(name="dummy model", model=_DUMMY),
            servers.ours(name="…traced, 1 %", model=_DUMMY, flags=(*traced, "0.01")),
            servers.ours(name="…traced, all", model=_DUMMY, flags=(*traced, "1")),
        )
        for _ in range(rounds):
            for server in candidates:
                rungs = measure.ladder(server, Path(), work, seconds=seconds, threads=2, connections=_CONNECTIONS)
                for count, rung in rungs.items():
                    found.setdefault(server.name, {}).setdefault(count, []).append(rung)
    rows = []
    for name, by_count in found.items():
        for count, rungs_of_server in by_count.items():
            pairs = list(zip(found[echo.name][count], rungs_of_server, strict=True))
            rows.append(
                (
                    name,
                    count,
                    Spread(tuple(rung["requests_per_second"] for rung in rungs_of_server)),
                    Spread(tuple(own["requests_per_second"] / bare["requests_per_second"] for bare, own in pairs)),
                    Spread(tuple(own["p50_ms"] - bare["p50_ms"] for bare, own in pairs)),
                )
            )
    heads = ("server", "connections", "requests/s", "times the echo's", "added to its median, ms")
    measure.table(heads, rows)
