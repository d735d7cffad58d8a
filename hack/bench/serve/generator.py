"""HTTP load from a process of its own: `python generator.py PLAN RESULT`, both JSON.

The plan is a JSON file: address, path, headers, bodies (base64), tokens (of each body), seconds, warm_up_seconds, and
either `connections` (closed loop: each sends its next request when it has its reply) or `rate` (open loop: requests
arrive at random times, exponentially distributed, and are late from when they were due, not from when they were sent).
A client of its own, since the usual ones cost more of the two cores than a small model does; its CPU time is told.
"""

import asyncio
import base64
import collections
import json
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

import httptools
import uvloop


class Connection(asyncio.Protocol):
    """One request at a time on a connection that is kept."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._parser: Any = None
        self._reply: asyncio.Future[tuple[int, bytes]] | None = None
        self._body: list[bytes] = []
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(exc or ConnectionResetError("closed before the reply"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        self._body.append(part)

    def on_message_complete(self) -> None:
        if self._reply is not None and not self._reply.done():
            self.open = self.open and self._parser.should_keep_alive()
            self._reply.set_result((self._parser.get_status_code(), b"".join(self._body)))

    async def request(self, data: bytes) -> tuple[int, bytes]:
        """Status and body. Raises OSError."""
        self._body, self._parser = [], httptools.HttpResponseParser(self)
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return await self._reply


class Load:
    """What was sent and what came back."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.host, _, port = plan["address"].partition(":")
        self.port = int(port)
        bodies = [base64.b64decode(body) for body in plan["bodies"]]
        self.requests = [self._request(body) for body in bodies]
        self.tokens: list[int] = plan["tokens"]
        self.random = random.Random(plan.get("seed", 0))  # noqa: S311 - a schedule
        self.order = self._shuffled()
        self.latencies: list[float] = []
        self.statuses: collections.Counter[str] = collections.Counter()
        self.answered = self.answered_tokens = 0
        self.replies: dict[int, str] = {}
        self.idle: list[Connection] = []
        self.began = self.end = 0.0

    def _shuffled(self) -> list[int]:
        order = list(range(len(self.requests)))
        self.random.shuffle(order)
        return order

    def _request(self, body: bytes) -> bytes:
        plan = self.plan
        head = [f"POST {plan['path']} HTTP/1.1", f"host: {plan['address']}", f"content-length: {len(body)}"]
        head += [f"{name}: {value}" for name, value in plan["headers"].items()]
        return "\r\n".join([*head, "", ""]).encode() + body

    async def one(self, number: int, due: float) -> None:
        """Send a request and note its reply."""
        index = self.order[number % len(self.order)]
        connection = self.idle.pop() if self.idle else None
        try:
            if connection is None or not connection.open:
                _, connection = await asyncio.get_running_loop().create_connection(Connection, self.host, self.port)
            status, body = await connection.request(self.requests[index])
        except OSError as error:
            self.statuses[type(error).__name__] += 1
            return
        self.idle.append(connection)
        now = time.perf_counter()
        self.statuses[str(status)] += 1
        if status == 200 and now >= self.began:
            self.latencies.append(now - due)
            # What comes later took part of its time after the measurement.
            if now <= self.end:
                self.answered += 1
                self.answered_tokens += self.tokens[index]
            if index not in self.replies:
                self.replies[index] = base64.b64encode(body).decode()

    async def run(self) -> dict[str, Any]:
        """Warm up, then measure; the figures."""
        start = time.perf_counter()
        self.began = start + self.plan["warm_up_seconds"]
        end = self.end = self.began + self.plan["seconds"]
        if "rate" in self.plan:
            await self._open(end)
        else:
            numbers = iter(range(1 << 60))
            await asyncio.gather(*(self._closed(numbers, end) for _ in range(self.plan["connections"])))
        used = resource.getrusage(resource.RUSAGE_SELF)
        ordered = sorted(self.latencies)
        seconds = self.plan["seconds"]

        def quantile(share: float) -> float:
            return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else 0.0

        return {
            "requests_per_second": round(self.answered / seconds, 2),
            "tokens_per_second": round(self.answered_tokens / seconds, 1),
            "p50_ms": quantile(0.5),
            "p95_ms": quantile(0.95),
            "p99_ms": quantile(0.99),
            "statuses": dict(self.statuses),
            "generator_cpu": round((used.ru_utime + used.ru_stime) / (time.perf_counter() - start), 3),
            "replies": self.replies,
            "latencies_ms": [round(1000 * each, 3) for each in self.latencies],
        }

    async def _closed(self, numbers: Any, end: float) -> None:
        while (now := time.perf_counter()) < end:
            await self.one(next(numbers), now)

    async def _open(self, end: float) -> None:
        waiting: set[asyncio.Task[None]] = set()
        due, number = time.perf_counter(), 0
        while due < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(self.one(number, due))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            number += 1
            due += self.random.expovariate(self.plan["rate"])
        if waiting:
            await asyncio.wait(waiting, timeout=60)


def main() -> None:
    """Run the plan and write what came of it."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(uvloop.run(Load(plan).run())), encoding="utf-8")


if __name__ == "__main__":
    main()
