"""The loop around one resource: what a failure leaves behind, and what it does to the next try."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from cloze_operator.cluster import Cluster, ClusterError
from cloze_operator.controller import ConflictError, Controller, Key, utc_now
from cloze_operator.desired.platform import Platform
from cloze_operator.observe.evidence import EvidenceObserver
from cloze_operator.registry import Registry
from cloze_operator.reports import Direct, Reports
from cloze_operator.settings import Settings

Document = dict[str, Any]
Make = Callable[..., Any]

KEY = Key("PretrainJob", "ml", "run")


class Server(Cluster):
    """An API server that has one resource, and fails at everything else."""

    def __init__(self, resource: Document, error: Exception) -> None:
        self.resource = resource
        self.error = error
        self.shown: list[Document] = []

    async def get(self, kind: str, namespace: str, name: str) -> Any:
        if kind == self.resource["kind"]:
            return self.resource
        raise self.error

    async def apply(self, manifest: Any, subresource: str = "", *, manager: str = "", dry_run: bool = False) -> None:
        assert (subresource, manager) == ("status", "cloze-operator-errors")
        self.shown.append(manifest["status"])

    async def record(self, event: Any) -> None:
        """Events are taken."""


def controller(cluster: Cluster) -> Controller:
    platform = Platform(train_image="t", serve_image="s", tracking_uri="http://m")
    return Controller(
        cluster,
        Registry("http://m"),
        Reports(Direct()),
        EvidenceObserver(None, None, utc_now),
        Settings(platform=platform),
    )


def reconciles(result: str) -> float:
    labels = {"kind": "PretrainJob", "result": result}
    return REGISTRY.get_sample_value("cloze_operator_reconciles_total", labels) or 0.0


@pytest.mark.parametrize(
    ("error", "reason", "said"),
    [
        (ClusterError(403, "Forbidden", "exceeded quota"), "Forbidden", "exceeded quota"),
        (KeyError("spec"), "InternalError", "KeyError"),
        (TimeoutError(), "Timeout", "took longer"),
    ],
)
def test_every_failure_stands_in_the_status(resource: Make, error: Exception, reason: str, said: str) -> None:
    """Whatever went wrong, the resource says so, has a state, and so has its metric."""
    server = Server(resource("PretrainJob"), error)
    with pytest.raises(type(error)):
        asyncio.run(controller(server)._reconcile(KEY))
    (status,) = server.shown
    (condition,) = status["conditions"]
    assert (condition["type"], condition["reason"], status["state"]) == ("ReconcileFailed", reason, "Pending")
    assert said in condition["message"]
    labels = {"kind": "PretrainJob", "namespace": "ml", "name": "run", "state": "Pending"}
    assert REGISTRY.get_sample_value("cloze_resource_state", labels) == 1.0


def test_conflict_is_no_failure_of_the_resource(resource: Make) -> None:
    """Something has changed meanwhile: that is nothing to show."""
    server = Server(resource("PretrainJob"), ClusterError(409, "Conflict", "the object has been modified"))
    with pytest.raises(ConflictError):
        asyncio.run(controller(server)._reconcile(KEY))
    assert server.shown == []


def test_conflicts_are_counted_as_such_and_back_off(resource: Make) -> None:
    """One conflict after the other is tried again later and later."""
    server = Server(resource("PretrainJob"), ClusterError(409, "Conflict", "the object has been modified"))

    async def scenario() -> float:
        one = controller(server)
        before = reconciles("conflict")
        working = asyncio.create_task(one._work())
        one.queue.add(KEY)
        await asyncio.sleep(0.1)
        working.cancel()
        assert reconciles("conflict") == before + 1
        due = one.queue._schedule.next_due()
        assert due is not None
        return due - asyncio.get_running_loop().time()

    assert asyncio.run(scenario()) == pytest.approx(0.5, abs=0.2)


def test_a_cancellation_that_meets_a_failure_ends_the_worker(resource: Make) -> None:
    """One of several requests fails in the moment of the cancellation, and its error is all that comes up."""
    body = resource("PretrainJob")
    begun = asyncio.Event()

    class Vanishing(Server):
        async def get(self, kind: str, namespace: str, name: str) -> Any:
            if kind == body["kind"]:
                return body
            if begun.is_set():
                await asyncio.Event().wait()
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise self.error from None

    async def scenario() -> bool:
        one = controller(Vanishing(body, ClusterError(0, "Unreachable", "connection refused")))
        one.queue.add(KEY)
        working = asyncio.create_task(one._work())
        await begun.wait()
        working.cancel()
        done, _ = await asyncio.wait([working], timeout=10)
        return bool(done)

    assert asyncio.run(scenario())


@pytest.mark.parametrize(
    ("change", "news"),
    [
        ({"status": {"state": "Pending"}}, False),
        ({"metadata": {"resourceVersion": "8"}}, False),
        ({"metadata": {"generation": 3}}, True),
        ({"metadata": {"annotations": {"retry": "now"}}}, True),
        ({"metadata": {"uid": "uid-2"}}, True),
    ],
)
def test_only_what_others_change_is_news(resource: Make, change: Document, *, news: bool) -> None:
    """The operator's own status is no reason to retry earlier what has just failed."""

    async def scenario() -> bool:
        one = controller(Server(resource("PretrainJob"), KeyError()))
        body = resource("PretrainJob")
        one.notice(body)
        for _ in range(6):
            one.queue._schedule._due[KEY] = 0.0
            one.queue._schedule._heap = [(0.0, 0, KEY)]
            assert await one.queue.get() == KEY
            one.queue.done(KEY, failed=True)
        before = one.queue._schedule.next_due()
        metadata = {**body["metadata"], **change.get("metadata", {})}
        one.notice({**body, **change, "metadata": metadata})
        after = one.queue._schedule.next_due()
        assert before is not None
        assert after is not None
        return after < before

    assert asyncio.run(scenario()) == news


def test_base_that_makes_progress_does_not_wake_a_failing_run(resource: Make) -> None:
    """A status that is written every other second is no reason to retry what depends on it."""

    async def scenario() -> tuple[float | None, float | None]:
        one = controller(Server(resource("PretrainJob"), KeyError()))
        one.notice(resource("FineTuneJob", name="tuned", base={"pretrainJob": {"name": "run"}}))
        key = await one.queue.get()
        for _ in range(6):
            one.queue.done(key, failed=True)
            one.queue._schedule._due[key] = 0.0
            one.queue._schedule._heap = [(0.0, 0, key)]
            assert await one.queue.get() == key
        one.queue.done(key, failed=True)
        before = one.queue._schedule._due[key]
        one.notice(resource("PretrainJob"))
        return before, one.queue._schedule._due[key]

    before, after = asyncio.run(scenario())
    assert before == after
