"""Replies that are kept for equal requests.

Off unless it is given bytes: replies of some tasks quote their inputs. Keys are digests under a secret of the process,
so that memory holds no input that wasn't in a reply, nor anything that a guessed input could be compared with.
"""

import asyncio
import secrets
import time
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

CacheResult = Literal["hit", "miss", "shared"]
"""Whether a reply was kept, had to be made, or was being made for an equal request."""

_SECRET = secrets.token_bytes(32)
# Of an entry beside what it holds: two places in ordered dictionaries, a key, and the objects of the reply.
_ENTRY_BYTES = 1024
_LABEL_BYTES = 128


@dataclass(frozen=True, slots=True)
class Tally:
    """What the metrics count of one model's answers to a request.

    unknown: tokens that the vocabulary doesn't have. truncated: inputs that were cut. labels: how many predictions of
    each label. confidences: the probability of each prediction. abstained: how many are below their threshold.
    """

    unknown: int = 0
    truncated: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)
    confidences: Sequence[float] = field(default_factory=lambda: array("d"))
    abstained: int = 0

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return 8 * len(self.confidences) + _LABEL_BYTES * len(self.labels)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as JSON, and what is counted of it each time that it is given.

    longest: tokens of the longest input. tally: of the model that was asked. fallback: of the one that was asked then;
    None where none was. fallbacks: what it did with how many inputs.
    """

    body: bytes
    longest: int
    tally: Tally
    fallback: Tally | None = None
    fallbacks: Mapping[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes that keeping it takes, about."""
        return _ENTRY_BYTES + len(self.body) + self.tally.size + (self.fallback.size if self.fallback else 0)


def key_of(*parts: str | bytes) -> bytes:
    """The key of a request: a digest that tells other parts apart, also where one ends and the next begins."""
    digest = blake2b(digest_size=32, key=_SECRET)
    for part in parts:
        coded = part.encode() if isinstance(part, str) else part
        digest.update(len(coded).to_bytes(8, "little"))
        digest.update(coded)
    return digest.digest()


@dataclass(eq=False, slots=True)
class _Flight:
    """A reply that is being made. waiting: how many requests it is for."""

    task: asyncio.Task[Reply]
    waiting: int = 0


class ReplyCache:
    """The least recently used replies go first when there are more bytes than allowed, and each goes at its age.

    Belongs to one event loop. bytes: what the kept replies take, about.
    """

    def __init__(
        self,
        max_bytes: int,
        ttl_seconds: float,
        changed: Callable[[int, int], None] = lambda size, evicted: None,  # noqa: ARG005 - the names say what they are
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """changed: told the bytes after each change, and how many replies were let go with it."""
        self.bytes = 0
        self._max_bytes = max_bytes
        self._ttl = ttl_seconds
        self._changed = changed
        self._clock = clock
        self._kept: OrderedDict[bytes, Reply] = OrderedDict()
        """The least recently used first."""
        self._ends: OrderedDict[bytes, float] = OrderedDict()
        """When each is too old; the oldest first."""
        self._flights: dict[bytes, _Flight] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._kept)

    async def get(self, key: bytes, make: Callable[[], Awaitable[Reply]]) -> tuple[Reply, CacheResult]:
        """The reply that is kept, or that `make` gives. Raises what it raises, which is not kept.

        Equal requests that come meanwhile wait for the same reply. It is made in a task of its own, which ends early
        only when none of them waits any more: that the first one leaves or is late harms no other.
        """
        self.sweep()
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return kept, "hit"
        flight = self._flights.get(key)
        result: CacheResult = "shared" if flight else "miss"
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(self._make(key, make)))
            # Asked for, so that a failure that nobody waited for isn't reported as forgotten.
            flight.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        flight.waiting += 1
        try:
            await asyncio.wait((flight.task,))
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                # Whoever asks from now on begins anew.
                self._forget(key, flight.task)
                flight.task.cancel()
        return flight.task.result(), result

    async def _make(self, key: bytes, make: Callable[[], Awaitable[Reply]]) -> Reply:
        try:
            reply = await make()
            self.put(key, reply)
        finally:
            self._forget(key, asyncio.current_task())
        return reply

    def _forget(self, key: bytes, task: asyncio.Task[Reply] | None) -> None:
        if (flight := self._flights.get(key)) is not None and flight.task is task:
            del self._flights[key]

    def put(self, key: bytes, reply: Reply) -> None:
        """Keep a reply; one that alone is too large isn't kept."""
        if reply.size > self._max_bytes:
            return
        self._drop(key)
        self._kept[key] = reply
        self._ends[key] = self._clock() + self._ttl
        self.bytes += reply.size
        evicted = 0
        while self.bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))
            evicted += 1
        self._changed(self.bytes, evicted)
        self._schedule()

    def sweep(self) -> None:
        """Let go of what is too old."""
        now = self._clock()
        evicted = 0
        while self._ends:
            key, end = next(iter(self._ends.items()))
            if end > now:
                break
            self._drop(key)
            evicted += 1
        if evicted:
            self._changed(self.bytes, evicted)

    def close(self) -> None:
        """Let go of everything."""
        if self._timer is not None:
            self._timer.cancel()
        self._kept.clear()
        self._ends.clear()
        self.bytes = 0

    def _drop(self, key: bytes) -> None:
        if (reply := self._kept.pop(key, None)) is not None:
            del self._ends[key]
            self.bytes -= reply.size

    def _schedule(self) -> None:
        """Also without any request, nothing is kept for longer than promised."""
        if self._timer is None and self._ends:
            seconds = max(0.0, next(iter(self._ends.values())) - self._clock())
            self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.sweep()
        self._schedule()
