"""Requests to the two served models, through their Services, with the answers compared to the labels."""

import concurrent.futures
import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass(slots=True)
class Traffic:
    """What came back."""

    sent: int = 0
    failed: int = 0
    right: int = 0
    judged: int = 0
    seconds: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Latency in seconds that this share of requests stayed under."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))] if self.seconds else 0.0


@contextlib.contextmanager
def forwarded(namespace: str, service: str, port: int = 80) -> Iterator[str]:
    """Base URL of a Service on this machine while the block runs, by `kubectl port-forward`: works on any cluster."""
    command = ["kubectl", "--namespace", namespace, "port-forward", f"service/{service}", f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            local = re.search(r"127\.0\.0\.1:(\d+)", line)
            if local is None:
                raise RuntimeError(f"kubectl port-forward to service {namespace}/{service} didn't start: {line!r}")
            yield f"http://127.0.0.1:{local[1]}"
        finally:
            process.terminate()


def _judge(route: str, row: dict[str, Any], reply: dict[str, Any]) -> tuple[int, int]:
    """Right answers and answers compared, of one request."""
    result = reply["results"][0]
    if route == "/v1/classify":
        return int(result["predictions"][0]["label"] == row["label"]), 1
    return sum(tag["label"] == label for tag, label in zip(result["tags"], row["labels"], strict=True)), len(
        row["labels"]
    )


def send(base: str, route: str, rows: list[dict[str, Any]], connections: int = 4) -> Traffic:
    """Send one request for each row over a few connections at once."""

    def one(row: dict[str, Any]) -> tuple[float, int, int] | None:
        """Seconds, right answers and answers compared; None for a request without a usable reply."""
        body = {"truncate": "right"} | ({"inputs": row["text"]} if "text" in row else {"words": [row["tokens"]]})
        started = time.perf_counter()
        try:
            response = client.post(route, json=body)
            response.raise_for_status()
            seconds = time.perf_counter() - started
            return seconds, *_judge(route, row, response.json())
        except (httpx.HTTPError, KeyError, IndexError, ValueError):
            return None

    traffic = Traffic()
    with (
        httpx.Client(base_url=base, timeout=60) as client,
        concurrent.futures.ThreadPoolExecutor(max_workers=connections) as pool,
    ):
        for outcome in pool.map(one, rows):
            traffic.sent += 1
            if outcome is None:
                traffic.failed += 1
                continue
            traffic.seconds.append(outcome[0])
            traffic.right += outcome[1]
            traffic.judged += outcome[2]
    return traffic
