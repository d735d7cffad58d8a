"""Requests through the gateway to an echo model: each text is sent once, and each reply must be its own hash.

    python flood.py ADDRESS HOST RATE

Sends RATE requests a second (0: as fast as it can) until its standard input ends; then one line of JSON says what came
back. Runs as a process of its own, so that the test's waiting doesn't slow it down.
"""

import asyncio
import collections
import hashlib
import json
import sys
import time
from typing import Any

import aiohttp

CONNECTIONS = 8
ROUTE = "/v1/echo"


class Flood:
    """What was sent and what came back."""

    def __init__(self, address: str, host: str, rate: float) -> None:
        self.address = address
        self.headers = {"Host": host}
        self.rate = rate
        self.sent = 0
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.versions: collections.Counter[str] = collections.Counter()
        self.mixed_up = 0
        self.slowest = 0.0
        self.stopped = asyncio.Event()
        self.began = time.monotonic()

    async def run(self) -> dict[str, Any]:
        """Send until told to stop; the counts."""
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.gather(*(self._send(session) for _ in range(CONNECTIONS)))
        return {
            "sent": self.sent,
            "outcomes": dict(self.outcomes),
            "versions": dict(self.versions),
            "mixedUp": self.mixed_up,
            "slowest": round(self.slowest, 3),
        }

    async def _send(self, session: aiohttp.ClientSession) -> None:
        while not self.stopped.is_set():
            number = self.sent
            self.sent += 1
            if self.rate:
                due = self.began + number / self.rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            # Of all lengths, so that each class of them has some.
            text = f"request {number} " + "word " * (number % 40)
            started = time.monotonic()
            try:
                async with session.post(self.address + ROUTE, json={"inputs": text}, headers=self.headers) as response:
                    reply = await response.json(content_type=None)
                    self.outcomes[str(response.status)] += 1
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                self.outcomes[type(error).__name__] += 1
                continue
            self.slowest = max(self.slowest, time.monotonic() - started)
            if response.status == 200:
                self.versions[str(reply["version"])] += 1
                wanted = hashlib.sha256(text.encode()).hexdigest()
                self.mixed_up += reply["results"][0]["sha256"] != wanted


async def main() -> None:
    """Flood, stop at the end of standard input, and tell."""
    flood = Flood(sys.argv[1], sys.argv[2], float(sys.argv[3]))
    running = asyncio.create_task(flood.run())
    sys.stdout.write("sending\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    flood.stopped.set()
    sys.stdout.write(json.dumps(await running) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
