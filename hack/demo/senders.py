"""A steady stream of real requests through the gateway, and what came back of it."""

import asyncio
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp

ROUTE = "/v1/classify"
#: Requests that may wait for their replies; beyond them the stream is slower than asked.
IN_FLIGHT = 64
#: Scores of one version for one text differ by less: batches of other shapes round differently.
ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request.

    row: number of the text that was sent. began: on the monotonic clock. seconds: until the reply was read. status:
    0 without a reply. version: of the model that answered or failed, as the reply's header says; empty when no server
    has spoken. label, score: of a usable answer.
    """

    row: int
    began: float
    seconds: float
    status: int
    version: str = ""
    label: str = ""
    score: float = 0.0

    @property
    def is_answer(self) -> bool:
        """Whether the sender got what was asked for."""
        return self.status == 200 and bool(self.label)

    @property
    def is_own_failure(self) -> bool:
        """Whether the model itself failed: the reply arrived, and says so."""
        return self.status == 500 and bool(self.version)

    @property
    def is_lost(self) -> bool:
        """Whether the request got lost on its way, to a server or in one."""
        return not self.is_answer and not self.is_own_failure


@dataclass(slots=True)
class Tally:
    """One version's replies. right: labels as the mail has them."""

    requests: int = 0
    failed: int = 0
    right: int = 0
    seconds: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Seconds that this share of the answers stayed under; 0 without answers."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))] if self.seconds else 0.0


def by_version(replies: Iterable[Reply], labels: Sequence[str]) -> dict[str, Tally]:
    """Tallies by version, of the replies in which one has spoken. labels: the right one of each row."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    for reply in replies:
        if not reply.version:
            continue
        tally = tallies[reply.version]
        tally.requests += 1
        tally.failed += reply.is_own_failure
        if reply.is_answer:
            tally.right += reply.label == labels[reply.row]
            tally.seconds.append(reply.seconds)
    return dict(tallies)


def mixed_up(replies: Iterable[Reply]) -> int:
    """Answers other than what the same version said of the same text before: somebody else's."""
    said: dict[tuple[str, int], Reply] = {}
    found = 0
    for reply in replies:
        if reply.is_answer:
            before = said.setdefault((reply.version, reply.row), reply)
            found += reply.label != before.label or abs(reply.score - before.score) > ROUNDING
    return found


def read_reply(row: int, began: float, seconds: float, *, status: int, version: str, raw: bytes) -> Reply:
    """A reply with its answer, if its body has exactly one."""
    try:
        body = json.loads(raw)
        (result,) = body["results"]
        label, score = str(result["predictions"][0]["label"]), float(result["predictions"][0]["score"])
        told = str(body["version"])
    except (KeyError, IndexError, TypeError, ValueError):
        return Reply(row, began, seconds, status, version)
    if told != version:
        # Nobody's answer, if its header speaks of another version than its body.
        return Reply(row, began, seconds, status, version)
    return Reply(row, began, seconds, status, version, label, score)


class Load:
    """Sends texts at a steady rate, in a thread of its own, from entering to leaving the block.

    address: the gateway's. host: the name that its route answers to. rate: requests a second.
    """

    def __init__(self, address: str, host: str, texts: Sequence[str], rate: float) -> None:
        self._address, self._host, self._texts, self._rate = address, host, texts, rate
        self._replies: list[Reply] = []
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def replies(self, since: float = 0.0) -> list[Reply]:
        """What has come back of the requests that began at this time or later. Raises what has ended the stream."""
        if self._failure is not None:
            raise RuntimeError("the requests' sender has failed") from self._failure
        return [reply for reply in list(self._replies) if reply.began >= since]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._send_all())
        except BaseException as error:  # noqa: BLE001 - told to whoever asks for the replies
            self._failure = error

    async def _send_all(self) -> None:
        room = asyncio.Semaphore(IN_FLIGHT)
        began = time.monotonic()
        number = 0
        connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
        timeout = aiohttp.ClientTimeout(total=60)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            # Leaving it waits for the replies that are still due.
            asyncio.TaskGroup() as group,
        ):
            while not self._stopping.is_set():
                await asyncio.sleep(began + number / self._rate - time.monotonic())
                await room.acquire()
                task = group.create_task(self._send(session, number % len(self._texts)))
                task.add_done_callback(lambda _: room.release())
                number += 1

    async def _send(self, session: aiohttp.ClientSession, row: int) -> None:
        body = {"inputs": self._texts[row], "truncate": "right"}
        began = time.monotonic()
        try:
            async with session.post(self._address + ROUTE, json=body, headers={"Host": self._host}) as response:
                version = response.headers.get("x-cloze-version", "")
                raw = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            self._replies.append(Reply(row, began, time.monotonic() - began, 0))
            return
        self._replies.append(
            read_reply(row, began, time.monotonic() - began, status=response.status, version=version, raw=raw)
        )
