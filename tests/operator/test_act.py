"""What a verdict becomes: which writes, in which order, and what is left when one of them fails."""

import asyncio
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

sys.path.insert(0, str(Path(__file__).parent))

from world import World

from cloze_operator.act import Actor
from cloze_operator.cluster import Cluster, ClusterError
from cloze_operator.decide.answers import NotFound
from cloze_operator.decide.serving import decide_serving
from cloze_operator.decide.training import decide_training
from cloze_operator.decide.verdict import AliasMove, Finding, TagChange, Verdict
from cloze_operator.registry import AliasMovedError, RegistryError

Document = dict[str, Any]
Make = Callable[..., Any]

FOLLOW = {"model": {"name": "spam", "follow": {}}}
RATIO = {"model": {"name": "spam", "version": "1"}, "replicas": 2, "rollout": {"steps": [{"replicas": 1}]}}


class Recorder(Cluster):
    """An API server that takes everything down, and refuses what it is told to."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.writes: list[str] = []
        self.bodies: list[Document] = []

    async def apply(self, manifest: Any, subresource: str = "", *, manager: str = "", dry_run: bool = False) -> None:
        what = " ".join(filter(None, ["dry-run" if dry_run else "", manifest["kind"], subresource]))
        if what in self.refused:
            raise ClusterError(422, "Invalid", "no")
        self.writes.append(what)
        self.bodies.append({**manifest, "manager": manager})

    async def delete(self, kind: str, namespace: str, name: str, uid: str, *, with_pods: bool = False) -> None:
        self.writes.append(f"delete {kind} {name} {uid}{' with pods' if with_pods else ''}")

    async def annotate(self, resource: Any, key: str, value: str | None) -> None:
        if "annotation" in self.refused:
            raise ClusterError(409, "Conflict", "the object has been modified")
        self.writes.append(f"annotation {key} {value}")

    async def record(self, event: Any) -> None:
        if "Event" in self.refused:
            raise ClusterError(403, "Forbidden", "no events here")
        self.writes.append("Event")
        self.bodies.append(event)


class StubRegistry:
    """A registry whose writes may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.tags: list[Any] = []

    async def tag(self, change: Any) -> None:
        if self.error:
            raise self.error
        self.tags.append(change)

    async def move(self, move: Any) -> None:
        if self.error:
            raise self.error


def act(now: datetime, cluster: Cluster, resource: Any, verdict: Verdict, state: str, error: Any = None) -> None:
    actor = Actor(cluster, StubRegistry(error), lambda: now)  # type: ignore[arg-type] # all of a registry that is used
    asyncio.run(actor.act(resource, verdict, state))


def report(now: datetime, cluster: Cluster, resource: Any, state: str = "Pending") -> None:
    actor = Actor(cluster, StubRegistry(), lambda: now)  # type: ignore[arg-type] # it isn't used
    asyncio.run(actor.report_failure(resource, "Forbidden", "exceeded quota", state))


def failures(reason: str) -> float:
    labels = {"kind": "PretrainJob", "reason": reason}
    return REGISTRY.get_sample_value("cloze_job_failures_total", labels) or 0.0


# ---------------------------------------------------------------- the start of a run


def test_start_is_written_right_before_the_job(training: Make, now: datetime) -> None:
    """All that the run needs is there, and the API server has said that it takes the Job."""
    snapshot, cluster = training(), Recorder()
    act(now, cluster, snapshot.resource, *decide_training(snapshot))
    expected = ["PersistentVolumeClaim", "ConfigMap", "Service", "dry-run Job", "PretrainJob status", "Job"]
    assert cluster.writes == expected
    assert cluster.bodies[4]["metadata"]["resourceVersion"] == "7"
    assert cluster.bodies[4]["status"]["startTime"] == "2026-03-01T12:00:00Z"


@pytest.mark.parametrize("refused", ["PersistentVolumeClaim", "dry-run Job"])
def test_refused_child_does_not_freeze_the_spec(training: Make, now: datetime, refused: str) -> None:
    """As long as there can be no run, no start is written, and what is wrong can be corrected."""
    snapshot, cluster = training(), Recorder(refused)
    with pytest.raises(ClusterError):
        act(now, cluster, snapshot.resource, *decide_training(snapshot))
    assert "PretrainJob status" not in cluster.writes
    assert "Job" not in cluster.writes


# ---------------------------------------------------------------- events


def test_event_that_is_refused_is_missed_and_nothing_else(resource: Make, now: datetime) -> None:
    """Events are a courtesy: the status is written, the failure is counted once, and nothing is raised."""
    cluster, before = Recorder("Event"), failures("Diverged")
    missed = REGISTRY.get_sample_value("cloze_operator_event_errors_total") or 0.0
    verdict = Verdict().find("Succeeded", "False", "Diverged", "the loss is nan").failing("Diverged")
    act(now, cluster, resource("PretrainJob"), verdict, "Failed")
    assert cluster.writes == ["PretrainJob status"]
    assert failures("Diverged") == before + 1
    assert REGISTRY.get_sample_value("cloze_operator_event_errors_total") == missed + 1


def test_what_happens_again_is_counted_in_one_event() -> None:
    """The second time, the event that is there gets a higher count and a later time."""
    requests: list[tuple[str, str, Any]] = []

    class Server(Cluster):
        def __init__(self) -> None:
            pass

        async def _request(self, method: str, path: str, body: Any = None, **_: Any) -> Any:
            requests.append((method, path, body))
            if method == "POST":
                raise ClusterError(409, "AlreadyExists", "there is one")
            return {"count": 4}

    event = {"metadata": {"name": "run.1", "namespace": "ml"}, "count": 1, "lastTimestamp": "2026-03-01T12:00:00Z"}
    asyncio.run(Server().record(event))
    assert requests[-1] == (
        "PATCH",
        "/api/v1/namespaces/ml/events/run.1",
        {"count": 5, "lastTimestamp": "2026-03-01T12:00:00Z"},
    )


# ---------------------------------------------------------------- a rollout


def rollouts(result: str) -> float:
    labels = {"namespace": "ml", "name": "spam", "result": result}
    return REGISTRY.get_sample_value("cloze_rollouts_total", labels) or 0.0


def test_record_is_written_over_the_one_that_was_seen(now: datetime) -> None:
    """What follows from a record that somebody else has changed meanwhile is decided again, and nothing is told."""
    world = World(RATIO)
    world.settle()
    world.ask_for("2")
    world.look()
    snapshot, cluster = world.snapshot(), Recorder("ConfigMap")
    verdict, state = decide_serving(snapshot)
    seen = snapshot.children["ConfigMap", "spam-rollout"]["metadata"]["resourceVersion"]
    assert verdict.remember
    assert verdict.remember["metadata"]["resourceVersion"] == seen
    with pytest.raises(ClusterError):
        act(now, cluster, snapshot.resource, verdict, state)
    assert cluster.writes == []


def test_rollout_is_counted_once_it_is_remembered(now: datetime) -> None:
    """One that couldn't be written isn't over."""
    world, before = World(RATIO), rollouts("aborted")
    world.settle()
    world.ask_for("2")
    world.settle()
    world.annotations = {"cloze.dev/rollout": "abort"}
    snapshot = world.snapshot()
    with pytest.raises(ClusterError):
        act(now, Recorder("ConfigMap"), snapshot.resource, *decide_serving(snapshot))
    assert rollouts("aborted") == before
    cluster = Recorder()
    act(now, cluster, snapshot.resource, *decide_serving(snapshot))
    assert rollouts("aborted") == before + 1
    assert cluster.writes == ["ConfigMap", "Event"]


def test_obeyed_command_is_taken_away_after_it_is_remembered(now: datetime) -> None:
    """In a look of its own: whoever is killed in between finds that it has been obeyed."""
    world = World(RATIO)
    world.settle()
    world.annotations = {"cloze.dev/rollout": "promote"}
    first = Recorder()
    snapshot = world.snapshot()
    verdict, state = decide_serving(snapshot)
    act(now, first, snapshot.resource, verdict, state)
    assert first.writes[0] == "ConfigMap"
    assert not any(write.startswith("annotation") for write in first.writes)
    world._apply(verdict.remember or {})
    second = Recorder()
    act(now, second, world.resource(), *decide_serving(world.snapshot()))
    assert second.writes[0] == "annotation cloze.dev/rollout None"


def test_children_go_before_others_come(now: datetime) -> None:
    """Exactly the ones that were looked at, by uid."""
    world = World(RATIO)
    world.settle()
    (name,) = (name for kind, name in world.children if kind == "Deployment")
    stray = deepcopy(world.children["Deployment", name])
    stray["metadata"] |= {"name": "spam-stray", "uid": "uid-stray"}
    world.children["Deployment", "spam-stray"] = stray
    world.children["Service", "spam"]["spec"]["selector"] = {}
    cluster = Recorder()
    act(now, cluster, world.resource(), *decide_serving(world.snapshot()))
    assert cluster.writes[:2] == ["delete Deployment spam-stray uid-stray", "Service"]


@pytest.mark.parametrize("error", [None, RegistryError("HTTP 403: not yours")])
def test_tag_that_is_refused_holds_nothing_up(now: datetime, error: Exception | None) -> None:
    """The status is written all the same, and the tag is tried again with the next look."""
    registry, cluster = StubRegistry(error), Recorder()
    resource = World(RATIO).resource()
    verdict = Verdict().find("Ready", "True", "AllReplicasReady").tagging(TagChange("spam", "2", "k", "v"))
    actor = Actor(cluster, registry, lambda: now)  # type: ignore[arg-type] # all of a registry that is used
    asyncio.run(actor.act(resource, verdict, "Ready"))
    assert registry.tags == ([] if error else [TagChange("spam", "2", "k", "v")])
    assert cluster.writes[0] == "ModelDeployment status"


def test_cluster_without_the_gateway_api_is_told_of() -> None:
    """The API server's own words for a kind that it doesn't know help nobody; other refusals stay as they are."""

    class Server(Cluster):
        def __init__(self) -> None:
            pass

        async def _request(self, method: str, path: str, body: Any = None, **_: Any) -> Any:
            raise ClusterError(404, "Http404", f"{method} {path}: 404 page not found")

    def refusal(kind: str) -> str:
        with pytest.raises(ClusterError) as said:
            asyncio.run(Server().apply({"kind": kind, "metadata": {"name": "spam", "namespace": "ml"}}))
        return said.value.reason

    assert refusal("HTTPRoute") == "GatewayAPIMissing"
    assert refusal("Service") == "Http404"


# ---------------------------------------------------------------- the alias


def test_refused_alias_does_not_hide_that_the_model_is_served(now: datetime) -> None:
    """The status is written with the refusal in the alias's own condition; then the error asks for another try."""
    world = World(FOLLOW, aliases={"challenger": "1"})
    world.settle()
    snapshot, cluster = replace(world.snapshot(), alias=NotFound("unset")), Recorder()
    with pytest.raises(RegistryError):
        act(now, cluster, snapshot.resource, *decide_serving(snapshot), error=RegistryError("HTTP 403: not yours"))
    (status,) = [body["status"] for body in cluster.bodies if "status" in body]
    found = {entry["type"]: (entry["status"], entry["reason"]) for entry in status["conditions"]}
    assert (status["state"], found["Ready"]) == ("Ready", ("True", "AllReplicasReady"))
    assert found["AliasMoved"] == ("False", "AliasRefused")
    assert ("Warning", "AliasRefused") in [(body.get("type"), body.get("reason")) for body in cluster.bodies]


def test_alias_that_was_moved_meanwhile_is_looked_at_again(serving: Make, now: datetime) -> None:
    """A move that was decided on older knowledge is no refusal."""
    cluster, snapshot = Recorder(), serving(spec=FOLLOW)
    verdict, state = decide_serving(serving(spec=FOLLOW, model=NotFound("none")))
    with pytest.raises(AliasMovedError):
        act(now, cluster, snapshot.resource, _moving(verdict), state, error=AliasMovedError("it has moved"))
    assert "ModelDeployment status" in cluster.writes


def _moving(verdict: Verdict) -> Verdict:
    return verdict.pointing(AliasMove("spam", "champion", "3", None, "AliasMoved"), "pointing", 10.0)


# ---------------------------------------------------------------- failed reconciliations


def test_failure_touches_nothing_but_its_own_condition(resource: Make, now: datetime) -> None:
    """What was observed may be old by now: a failure adds one condition, as a field manager of its own."""
    status = {"state": "Running", "restarts": 2, "conditions": [_condition("Running", "True")]}
    cluster = Recorder()
    report(now, cluster, resource("PretrainJob", status=status))
    applied, event = cluster.bodies
    assert applied["manager"] == "cloze-operator-errors"
    assert applied["metadata"]["uid"] == "uid-1"
    assert "resourceVersion" not in applied["metadata"]
    assert applied["status"] == {
        "conditions": [
            {
                "type": "ReconcileFailed",
                "status": "True",
                "reason": "Forbidden",
                "message": "exceeded quota",
                "observedGeneration": 2,
                "lastTransitionTime": "2026-03-01T12:00:00Z",
            }
        ]
    }
    assert (event["type"], event["reason"]) == ("Warning", "Forbidden")


def test_failure_that_is_shown_already_is_not_written_again(resource: Make, now: datetime) -> None:
    """A write that says nothing new would only wake everybody up."""
    old = {**_condition("ReconcileFailed", "True", "Forbidden"), "message": "exceeded quota", "observedGeneration": 2}
    cluster = Recorder()
    report(now, cluster, resource("PretrainJob", status={"state": "Pending", "conditions": [old]}))
    assert cluster.writes == []


def test_first_failure_gives_the_resource_a_state(resource: Make, now: datetime) -> None:
    """An object that could never be reconciled doesn't look as if nobody had seen it."""
    cluster = Recorder()
    report(now, cluster, resource("PretrainJob"), "Pending")
    assert cluster.bodies[0]["status"]["state"] == "Pending"
    assert "observedGeneration" not in cluster.bodies[0]["status"]


def test_success_takes_the_failure_away(resource: Make, now: datetime) -> None:
    """The errors' field manager gives its condition up; the rest of the status isn't written if nothing has changed."""
    old = [_condition("Running", "True"), _condition("ReconcileFailed", "True")]
    status = {"state": "Running", "observedGeneration": 2, "conditions": old}
    cluster = Recorder()
    verdict = Verdict(findings={"Running": Finding("True", "Reason", "", 2)})
    act(now, cluster, resource("PretrainJob", status=status), verdict, "Running")
    assert [(body["manager"], body["status"]) for body in cluster.bodies] == [("cloze-operator-errors", {})]


def _condition(kind: str, status: str, reason: str = "Reason") -> Document:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": "",
        "observedGeneration": 2,
        "lastTransitionTime": "2026-03-01T11:00:00Z",
    }
