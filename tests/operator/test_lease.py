"""The lease's thread: it takes, renews and gives back, and ends the process when it can't be sure."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
from prometheus_client import REGISTRY

from cloze_operator.cluster import Cluster, ClusterError
from cloze_operator.controller import Controller
from cloze_operator.decide.election import Terms
from cloze_operator.endpoint import illness, readiness
from cloze_operator.lease import Lease, Place, identity

Document = dict[str, Any]

TERMS = Terms(duration=1, renew_deadline=0.6, retry=0.02)


class Server:
    """One Lease as an API server keeps it."""

    def __init__(self) -> None:
        self.lease: Document | None = None
        self.events: list[str] = []
        self.error: Exception | None = None
        self.hangs = False
        self.writes = 0

    async def get(self, kind: str, namespace: str, name: str) -> Document | None:
        assert (kind, namespace, name) == ("Lease", "ns", "lease")
        if self.hangs:
            await asyncio.Event().wait()
        if self.error:
            raise self.error
        return deepcopy(self.lease)

    async def put(self, manifest: Document) -> Document:
        version = manifest["metadata"].get("resourceVersion")
        if version != (self.lease or {"metadata": {"resourceVersion": None}})["metadata"]["resourceVersion"]:
            raise ClusterError(409, "Conflict", "it has changed")
        self.writes += 1
        self.lease = deepcopy(manifest)
        self.lease["metadata"] |= {"resourceVersion": str(self.writes), "uid": "u"}
        return deepcopy(self.lease)

    async def record(self, event: Document) -> None:
        assert (event["involvedObject"]["kind"], event["reason"]) == ("Lease", "LeaderElection")
        self.events.append(event["message"])

    async def close(self) -> None:
        """Nothing to close."""

    def hold(self, holder: str) -> None:
        """Somebody else writes."""
        self.writes += 1
        self.lease = {
            "metadata": {"name": "lease", "namespace": "ns", "uid": "u", "resourceVersion": str(self.writes)},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 60},
        }

    @property
    def holder(self) -> str | None:
        return None if self.lease is None else self.lease["spec"]["holderIdentity"]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def ended() -> "Ended":
    return Ended()


class Ended:
    """The end of the process, as the lease wants it."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.happened = threading.Event()

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self.happened.set()


@pytest.fixture
def candidate(server: Server, ended: Ended) -> Iterator[Callable[..., Lease]]:
    made: list[Lease] = []

    async def connect() -> Cluster:
        found: Any = server
        return found  # type: ignore[no-any-return]

    def make(name: str = "me", terms: Terms = TERMS) -> Lease:
        place = Place(namespace="ns", name="lease", identity=name)
        made.append(Lease(place, terms=terms, connect=connect, end=ended))
        return made[-1]

    yield make
    for lease in made:
        lease.release()


def leading() -> float | None:
    return REGISTRY.get_sample_value("cloze_operator_leader")


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not check():  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(0.005)


def test_free_lease_is_taken_renewed_and_given_back(server: Server, candidate: Callable[..., Lease]) -> None:
    """The metric and the events tell; what was given back is free for the next."""

    async def scenario() -> None:
        lease = candidate()
        assert leading() == 0
        await lease.acquire()
        assert (server.holder, lease.is_held, leading()) == ("me", True, 1)
        first = server.writes
        await until(lambda: server.writes > first + 2)
        await asyncio.to_thread(lease.release)
        assert (server.holder, lease.is_held, leading()) == ("", False, 0)

    asyncio.run(scenario())
    assert server.events == ["me became leader", "me stopped leading"]


def test_standby_takes_over_what_is_given_back(server: Server, candidate: Callable[..., Lease]) -> None:
    """Without waiting for it to run out, and it is of use before that: it can read the lease."""

    async def scenario() -> None:
        server.hold("other")
        lease = candidate()
        waiting = asyncio.create_task(lease.acquire())
        await until(lambda: lease.has_looked)
        assert not lease.is_held
        server.hold("")
        await waiting
        assert server.holder == "me"

    asyncio.run(scenario())


def test_standby_that_ends_leaves_the_lease_alone(server: Server, candidate: Callable[..., Lease]) -> None:
    """Only the holder gives it back."""

    async def scenario() -> None:
        server.hold("other")
        lease = candidate()
        waiting = asyncio.create_task(lease.acquire())
        await until(lambda: lease.has_looked)
        waiting.cancel()
        await asyncio.to_thread(lease.release)

    asyncio.run(scenario())
    assert (server.holder, server.events) == ("other", [])


@pytest.mark.parametrize("trouble", ["refuses", "hangs", "taken"])
def test_lost_lease_ends_the_process(
    server: Server, ended: Ended, candidate: Callable[..., Lease], trouble: str
) -> None:
    """Whether the API server refuses, is silent, or names another holder; and nothing is given back then."""

    async def scenario() -> None:
        lease = candidate()
        await lease.acquire()
        server.hangs = trouble == "hangs"
        server.error = ClusterError(500, "InternalError", "broken") if trouble == "refuses" else None
        if trouble == "taken":
            server.hold("other")
        assert await asyncio.to_thread(ended.happened.wait, 10)
        server.hangs, server.error = False, None
        assert not lease.is_held

    asyncio.run(scenario())
    assert len(ended.reasons) == 1
    assert "the lease ns/lease is lost" in ended.reasons[0]
    assert server.events == ["me became leader"]


def test_event_loop_that_is_blocked_does_not_cost_the_lease(
    server: Server, ended: Ended, candidate: Callable[..., Lease]
) -> None:
    """The lease is renewed by a thread of its own."""

    async def scenario() -> None:
        lease = candidate()
        await lease.acquire()
        before = server.writes
        # Blocks the loop, as a mistake would, for several deadlines.
        while server.writes < before + 60:
            ended.happened.wait(0.001)
        lease.fence()

    asyncio.run(scenario())
    assert ended.reasons == []


def test_write_after_the_deadline_ends_the_process(
    server: Server, ended: Ended, candidate: Callable[..., Lease]
) -> None:
    """A process that was stopped and goes on finds its fence closed, before its thread has noticed anything."""
    lease = candidate()
    lease.fence()
    assert ended.reasons == ["a write without the lease"]
    now = 0.0
    stopped = Lease(Place(namespace="ns", name="lease", identity="x"), clock=lambda: now, end=ended)
    stopped._renewed = 0.0
    now = 9.9
    stopped.fence()
    assert len(ended.reasons) == 1
    now = 10.0
    stopped.fence()
    assert len(ended.reasons) == 2


def test_restarted_container_is_another_candidate() -> None:
    """Its pod's name alone would make it the holder of what its predecessor held."""
    assert identity("pod") != identity("pod")
    assert identity("pod").startswith("pod_")
    assert not identity("").startswith("_")


class Standing:
    """A lease's standing, as the probes ask for it."""

    def __init__(self, *, held: bool = False, looked: bool = True, silence: float = 0.0) -> None:
        self.is_held, self.has_looked, self._silence = held, looked, silence

    def silence(self) -> float:
        return self._silence


class Idle:
    """A controller that has waited for an hour."""

    class queue:  # noqa: N801 - stands for an attribute
        @staticmethod
        def longest_running() -> float:
            return 0.0

    class synced:  # noqa: N801 - likewise
        @staticmethod
        def is_set() -> bool:
            return False

    last_resync = float("-inf")


@pytest.mark.parametrize(
    ("standing", "ready", "said", "ill"),
    [
        (Standing(), True, "standby", None),
        (Standing(looked=False), False, "the lease can't be read yet", None),
        (Standing(silence=61), True, "standby", "nobody has looked at the lease for 61 s"),
        (Standing(held=True), False, "not synced yet", "the last resync is inf s ago"),
        (None, False, "not synced yet", "the last resync is inf s ago"),
    ],
)
def test_probes_of_a_standby(standing: Any, ready: bool, said: str, ill: str | None) -> None:
    """It is ready when it can read the lease, and healthy for as long as it looks, however long it waits."""
    controller: Controller = Idle()  # type: ignore[assignment]
    assert readiness(controller, standing) == (ready, said)
    assert illness(controller, standing, 60) == ill
