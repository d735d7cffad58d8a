"""The keyed, rate-limited queue between everything that happens and the workers that reconcile.

A key is in the queue at most once, and one key is never worked on by two workers at a time. A key that fails waits
exponentially longer, and only itself: others pass it by.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How often one key may run. Times are in seconds.

    interval: between two starts of the same key, however many events there are.
    base, cap: wait after the first failure, which doubles with each one up to the cap.
    nudge: earliest retry of a failing key when an event tells that somebody has changed its object.
    """

    interval: float = 0.1
    base: float = 0.5
    cap: float = 120.0
    nudge: float = 1.0


class Schedule(Generic[Key]):
    """The queue's order as a plain data structure: every method takes the time, none waits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._turn = itertools.count()
        self._running: dict[Key, float] = {}
        self._later: dict[Key, float] = {}
        self._echoes: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._earliest: dict[Key, float] = {}

    def __len__(self) -> int:
        return len(self._due)

    def depth(self, now: float) -> int:
        """How many keys are due and wait."""
        return sum(at <= now for at in self._due.values())

    def add(self, key: Key, now: float, delay: float = 0.0, *, news: bool = True) -> None:
        """Run the key after `delay`, or at the earlier time that it already has.

        news: False for an event that is no reason to retry a failing key earlier than it would be.
        """
        at = max(now + delay, self._earliest.get(key, now))
        if key in self._running:
            later = self._later if news else self._echoes
            later[key] = min(at, later.get(key, at))
        elif key in self._failures and key in self._due and not news:
            return
        elif key not in self._due or at < self._due[key]:
            self._due[key] = at
            heapq.heappush(self._heap, (at, next(self._turn), key))

    def pop(self, now: float) -> Key | None:
        """The key that has been due for longest, which is now running; None when none is due."""
        while self._heap and self._heap[0][0] <= now:
            at, _, key = heapq.heappop(self._heap)
            # An entry that was overtaken by an earlier one of its key is stale.
            if self._due.get(key) == at:
                del self._due[key]
                self._running[key] = now
                self._earliest[key] = now + self._limits.interval
                return key
        return None

    def done(self, key: Key, now: float, *, failed: bool, again: float | None = None) -> None:
        """The key's run is over. A failed one is added again; another one if `again` says so or an event came."""
        del self._running[key]
        later, echo = self._later.pop(key, None), self._echoes.pop(key, None)
        if failed:
            failures = self._failures.get(key, 0)
            self._failures[key] = failures + 1
            wait = min(self._limits.cap, self._limits.base * 2 ** min(failures, 32))
            self._earliest[key] = now + min(wait, self._limits.nudge)
            self.add(key, now, wait)
        else:
            self._failures.pop(key, None)
            for at in (echo, None if again is None else now + again):
                if at is not None:
                    self.add(key, now, at - now)
        if later is not None:
            self.add(key, now, later - now)
        if key not in self._due and self._earliest.get(key, now) <= now:
            self._earliest.pop(key, None)

    def forget(self, key: Key) -> None:
        """The key's object is gone: it is due no more, and a new object of the same name starts afresh.

        What was told of while the key was running stays: it may be of the new object.
        """
        self._due.pop(key, None)
        self._failures.pop(key, None)
        self._earliest.pop(key, None)

    def next_due(self) -> float | None:
        """When the next key is due."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def longest_running(self, now: float) -> float:
        """Seconds for which the oldest run has been going on."""
        return max((now - since for since in self._running.values()), default=0.0)


class Queue(Generic[Key]):
    """A Schedule that workers wait on. It belongs to one event loop."""

    def __init__(self, limits: Limits | None = None, clock: Callable[[], float] | None = None) -> None:
        self._schedule: Schedule[Key] = Schedule(limits or Limits())
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._schedule)

    def depth(self) -> int:
        """How many keys are due and wait for a worker."""
        return self._schedule.depth(self._clock())

    def add(self, key: Key, delay: float = 0.0, *, news: bool = True) -> None:
        """Run the key after a delay, or earlier if it is due earlier; see Schedule.add."""
        self._schedule.add(key, self._clock(), delay, news=news)
        self._changed.set()

    async def get(self) -> Key:
        """The next key that is due. Each key that was got must be handed back by `done`."""
        while (key := self._schedule.pop(self._clock())) is None:
            self._changed.clear()
            due = self._schedule.next_due()
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - self._clock())):
                    await self._changed.wait()
            except TimeoutError:
                continue
        # Another worker may have slept through the same change.
        self._changed.set()
        return key

    def done(self, key: Key, *, failed: bool = False, again: float | None = None) -> None:
        """Hand a key back."""
        self._schedule.done(key, self._clock(), failed=failed, again=again)
        self._changed.set()

    def forget(self, key: Key) -> None:
        """The key's object is gone."""
        self._schedule.forget(key)

    def longest_running(self) -> float:
        """Seconds for which the oldest run has been going on."""
        return self._schedule.longest_running(self._clock())
