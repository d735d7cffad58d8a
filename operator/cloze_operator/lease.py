"""The Lease that lets one operator of several act. Which, and until when, is decided in `decide.election`.

It is renewed in a thread with an event loop and connections of its own, so that nothing that the operator does can
delay it. Once lost, the process ends where it stands: whatever it was about to write is another's business by then.
"""

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from cloze_operator.act import event_manifest
from cloze_operator.cluster import Cluster, ClusterError
from cloze_operator.decide.election import (
    RELEASED,
    Lost,
    Moment,
    Record,
    Seen,
    Take,
    Terms,
    Wait,
    decide,
    is_overdue,
    look,
)
from cloze_operator.decide.fields import Object, dig
from cloze_operator.decide.verdict import Event
from cloze_operator.telemetry import LEADER

logger = logging.getLogger(__name__)

_VERSION: Final = "coordination.k8s.io/v1"
#: Of a lease that was given back: the API server takes none of no duration.
_RELEASED_SECONDS: Final = 1.0


def clock() -> Moment:
    """Seconds that go on while the machine sleeps, where it can tell: a lease runs out meanwhile."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def identity(pod: str) -> str:
    """A name that no other process has had: a container that was restarted in its pod isn't the one that held it."""
    return f"{pod or socket.gethostname()}_{uuid.uuid4()}"


def _end(reason: str) -> None:
    """End the process without any cleanup, which could write."""
    logger.critical("%s: ending at once", reason)
    os._exit(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the lease is, and who asks for it."""

    namespace: str
    name: str
    identity: str


class Lease:
    """One candidate. Its thread begins with `acquire` and ends with `release`; all else may be asked from any thread.

    end: ends the process, and doesn't return.
    """

    def __init__(
        self,
        place: Place,
        *,
        terms: Terms | None = None,
        connect: Callable[[], Awaitable[Cluster]] | None = None,
        clock: Callable[[], Moment] = clock,
        end: Callable[[str], None] = _end,
    ) -> None:
        self._place = place
        self._terms = terms or Terms()
        # No waiting for a server that asks for quiet: the deadline doesn't wait either, and the pace is slow enough.
        self._connect = connect or (lambda: Cluster.connect(patience=0.0))
        self._clock = clock
        self._end = end
        self._seen: Seen | None = None
        self._object: Object | None = None
        self._renewed: Moment | None = None
        self._beat = clock()
        self._wake = asyncio.Event()
        self._acquired: Callable[[], object] = lambda: None
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        LEADER.set(0)

    @property
    def is_held(self) -> bool:
        """Whether this process leads."""
        return self._renewed is not None

    @property
    def has_looked(self) -> bool:
        """Whether the lease could be read: a standby that can't reach it is of no use."""
        return self._seen is not None

    def silence(self) -> float:
        """Seconds since the thread last showed that it lives, whatever the API server answered."""
        return self._clock() - self._beat

    async def acquire(self) -> None:
        """Ask for the lease until this process leads."""
        loop, leads = asyncio.get_running_loop(), asyncio.Event()
        self._acquired = lambda: loop.call_soon_threadsafe(leads.set)
        self._thread.start()
        await leads.wait()

    def fence(self) -> None:
        """Before each write: a process that was stopped for a while ends here, before it touches what is another's."""
        renewed = self._renewed
        if renewed is None or is_overdue(self._terms, renewed, self._clock()):
            self._end("a write without the lease")

    def release(self) -> None:
        """Give the lease back, so that the next one needn't wait for it to run out. Nothing may be written after."""
        self._stop.set()
        if loop := self._loop:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._wake.set)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._hold())
        except Exception:
            logger.exception("the lease's thread has failed")
            self._end("nobody renews the lease")

    async def _hold(self) -> None:
        self._loop = asyncio.get_running_loop()
        cluster = await self._connect()
        try:
            while not self._stop.is_set():
                await self._pause(await self._step(cluster))
            await self._give_back(cluster)
        finally:
            await cluster.close()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _step(self, cluster: Cluster) -> float:
        """Look, and write if it is time to. Seconds until the next step."""
        began = self._clock()
        try:
            # A third: one connection that hangs doesn't cost the lease.
            async with asyncio.timeout(self._until(self._terms.renew_deadline / 3)):
                wait = await self._try(cluster, began)
        except (ClusterError, TimeoutError, OSError) as error:
            logger.warning("the lease can't be read or written: %s", error or type(error).__name__)
            wait = self._terms.retry
        self._beat = self._clock()
        if self._renewed is not None and is_overdue(self._terms, self._renewed, self._beat):
            self._lose(Lost(f"it couldn't be renewed for {self._beat - self._renewed:.1f} s"))
        return self._until(max(0.0, began + wait - self._beat))

    def _until(self, seconds: float) -> float:
        """So many seconds, or what is left of the deadline."""
        if self._renewed is None:
            return seconds
        return max(0.0, min(seconds, self._renewed + self._terms.renew_deadline - self._clock()))

    async def _try(self, cluster: Cluster, began: Moment) -> float:
        place = self._place
        self._object = await cluster.get("Lease", place.namespace, place.name)
        self._seen = look(self._seen, _record(self._object), self._clock())
        step = decide(self._terms, place.identity, self._seen, renewed=self._renewed, now=self._clock(), stamp=_stamp())
        if isinstance(step, Lost):
            self._lose(step)
        if isinstance(step, Take):
            self._object = await cluster.put(_manifest(place, step.record, self._object))
            self._seen = Seen(step.record, self._clock())
            fresh, self._renewed = self._renewed is None, began
            if fresh:
                await self._lead(cluster, self._object)
        return step.seconds if isinstance(step, Wait) else self._terms.retry

    async def _lead(self, cluster: Cluster, lease: Object) -> None:
        LEADER.set(1)
        logger.info("leading", extra={"lease": f"{self._place.namespace}/{self._place.name}"})
        self._acquired()
        await self._tell(cluster, lease, "became leader")

    async def _give_back(self, cluster: Cluster) -> None:
        if self._renewed is None or self._object is None:
            return
        self._renewed = None
        LEADER.set(0)
        record = _record(self._object)
        assert record is not None
        free = replace(record, holder=RELEASED, duration=_RELEASED_SECONDS, renewed=_stamp())
        try:
            async with asyncio.timeout(self._terms.retry):
                lease = await cluster.put(_manifest(self._place, free, self._object))
                await self._tell(cluster, lease, "stopped leading")
        except (ClusterError, TimeoutError, OSError) as error:
            logger.warning("the lease runs out by itself, as it can't be given back: %s", error or "no answer")

    def _lose(self, lost: Lost) -> None:
        self._renewed = None
        self._stop.set()
        self._end(f"the lease {self._place.namespace}/{self._place.name} is lost: {lost.reason}")

    async def _tell(self, cluster: Cluster, lease: Object, what: str) -> None:
        """An event on the lease, as other leaders leave one. Who holds it stands in the lease itself too."""
        event = Event("Normal", "LeaderElection", f"{self._place.identity} {what}")
        named = {"apiVersion": _VERSION, "kind": "Lease", **lease}
        try:
            await cluster.record(event_manifest(named, event, datetime.now(UTC)))
        except ClusterError as error:
            logger.warning("no event %s: %s", event.reason, error)


def _stamp() -> str:
    """The present time as a Lease has it, for people: nothing is decided from it."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _record(lease: Object | None) -> Record | None:
    """What a Lease says; one that was made without a spec counts as released."""
    if lease is None:
        return None
    return Record(
        holder=str(dig(lease, "spec", "holderIdentity") or RELEASED),
        duration=float(dig(lease, "spec", "leaseDurationSeconds") or 0),
        acquired=str(dig(lease, "spec", "acquireTime") or ""),
        renewed=str(dig(lease, "spec", "renewTime") or ""),
        transitions=int(dig(lease, "spec", "leaseTransitions") or 0),
    )


def _manifest(place: Place, record: Record, old: Object | None) -> dict[str, Any]:
    """The Lease to write: a new one, or the one that was read with another spec, refused if it has changed since."""
    metadata = {} if old is None else dict(old["metadata"])
    return {
        "apiVersion": _VERSION,
        "kind": "Lease",
        "metadata": {**metadata, "namespace": place.namespace, "name": place.name},
        "spec": {
            "holderIdentity": record.holder,
            "leaseDurationSeconds": int(record.duration),
            "acquireTime": record.acquired,
            "renewTime": record.renewed,
            "leaseTransitions": record.transitions,
        },
    }
