"""The client of the API server: Retry-After is heeded by all requests, the fence is asked before each write."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from cloze_operator.cluster import Cluster, ClusterError


class Busy:
    """A server that has too much to do for the first requests."""

    def __init__(self, refusals: int, retry_after: str | None) -> None:
        self.refusals, self.retry_after = refusals, retry_after
        self.asked: list[tuple[float, str, str]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((time.monotonic(), request.method, request.path))
        if len(self.asked) <= self.refusals:
            headers = {} if self.retry_after is None else {"Retry-After": self.retry_after}
            body = {"reason": "TooManyRequests", "message": "later"}
            return web.json_response(body, status=429, headers=headers)
        return web.json_response({"metadata": {"name": "x"}})


def against(server: Busy, scenario: Callable[[Cluster], Awaitable[None]], **options: object) -> None:
    async def run() -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", server.answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host = f"http://127.0.0.1:{runner.addresses[0][1]}"
        cluster = Cluster(ApiClient(configuration=Configuration(host=host)), **options)  # type: ignore[arg-type]
        try:
            await scenario(cluster)
        finally:
            await cluster.close()
            await runner.cleanup()

    asyncio.run(run())


def test_refused_request_is_made_again_when_it_may_be_and_others_wait_too() -> None:
    """The answer is that of the second try, and no other request comes before it."""
    server = Busy(1, "1")

    async def scenario(cluster: Cluster) -> None:
        first = asyncio.create_task(cluster.get("Pod", "ns", "first"))
        while not server.asked:  # noqa: ASYNC110 - the server's list has no event
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        await asyncio.gather(first, cluster.get("Pod", "ns", "second"))
        assert first.result() is not None

    against(server, scenario)
    (refused, *_), *later = server.asked
    assert len(later) == 2
    assert min(at for at, *_ in later) >= refused + 1


def test_quiet_beyond_patience_is_told_without_asking_again() -> None:
    """The caller backs off by itself; nothing is sent meanwhile."""
    server = Busy(1, "60")

    async def scenario(cluster: Cluster) -> None:
        for _ in range(2):
            with pytest.raises(ClusterError, match="asks for 60 s of quiet") as caught:
                await cluster.get("Pod", "ns", "x")
            assert (caught.value.status, caught.value.reason) == (429, "TooManyRequests")

    against(server, scenario)
    assert len(server.asked) == 1


@pytest.mark.parametrize(("retry_after", "options"), [("60", {"patience": 0.0}), (None, {}), ("soon", {})])
def test_refusal_without_a_wait_is_told_at_once(retry_after: str | None, options: dict[str, object]) -> None:
    """A lease can't wait, and a server that doesn't say for how long isn't waited for; the next try is the caller's."""
    server = Busy(1, retry_after)

    async def scenario(cluster: Cluster) -> None:
        with pytest.raises(ClusterError, match="later"):
            await cluster.get("Pod", "ns", "x")
        assert await cluster.get("Pod", "ns", "x")

    against(server, scenario, **options)


def test_fence_is_asked_before_each_write_and_by_no_read() -> None:
    """A closed one keeps the write from being sent."""

    class Closed(Exception):
        pass

    def fence() -> None:
        raise Closed

    server = Busy(0, None)
    lease = {"kind": "Lease", "metadata": {"namespace": "ns", "name": "x"}}

    async def scenario(cluster: Cluster) -> None:
        await cluster.get("Pod", "ns", "x")
        for write in (
            cluster.apply(lease),
            cluster.put(lease),
            cluster.put({**lease, "metadata": {**lease["metadata"], "resourceVersion": "1"}}),
            cluster.delete("Pod", "ns", "x", "u"),
            cluster.record({"metadata": {"namespace": "ns", "name": "x"}}),
        ):
            with pytest.raises(Closed):
                await write

    against(server, scenario, fence=fence)
    assert [method for _, method, _ in server.asked] == ["GET"]


def test_put_creates_or_replaces_what_was_read() -> None:
    """By the resourceVersion: without one there was nothing."""
    server = Busy(0, None)
    lease = {"kind": "Lease", "metadata": {"namespace": "ns", "name": "x"}}

    async def scenario(cluster: Cluster) -> None:
        await cluster.put(lease)
        await cluster.put({**lease, "metadata": {**lease["metadata"], "resourceVersion": "1"}})

    against(server, scenario)
    path = "/apis/coordination.k8s.io/v1/namespaces/ns/leases"
    assert [entry[1:] for entry in server.asked] == [("POST", path), ("PUT", f"{path}/x")]
