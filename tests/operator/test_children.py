"""Children of a ModelDeployment: which there are, whose they are, what is put right, and what goes."""

import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import PLATFORM, World, digest

from cloze_operator.decide.serving import decide_serving
from cloze_operator.decide.verdict import Verdict
from cloze_operator.desired.metadata import child_metadata, selector

Document = dict[str, Any]

FIXED = {"model": {"name": "spam", "version": "1"}, "replicas": 2}
GATEWAY = {
    **FIXED,
    "traffic": {"provider": "GatewayAPI", "route": {"parentRefs": [{"name": "cloze"}]}},
    "rollout": {"steps": [{"weight": 10}], "rollbackWindowSeconds": 60},
}
SCALED = {**GATEWAY, "autoscaling": {"maxReplicas": 5}, "resources": {"requests": {"cpu": "1"}}}
BLUE_GREEN = {**GATEWAY, "rollout": {"strategy": "BlueGreen"}}


def served(spec: Document | None = None, **more: Any) -> World:
    """A world in which version 1 is served."""
    world = World(spec or FIXED, **more)
    world.settle()
    return world


def kinds(verdict: Verdict) -> list[str]:
    return [manifest["kind"] for manifest in verdict.apply]


def find(verdict: Verdict, kind: str) -> tuple[str, str]:
    return verdict.findings[kind].status, verdict.findings[kind].reason


# ---------------------------------------------------------------- which there are


@pytest.mark.parametrize(
    ("spec", "made"),
    [
        (FIXED, ["Deployment", "PodDisruptionBudget", "Service"]),
        (GATEWAY, ["Deployment", "Service", "PodDisruptionBudget", "Service", "HTTPRoute"]),
        (
            SCALED,
            ["Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Service", "HTTPRoute"],
        ),
        (BLUE_GREEN, ["Deployment", "Service", "PodDisruptionBudget", "Service", "Service", "HTTPRoute"]),
    ],
)
def test_what_gets_requests_comes_last(spec: Document, made: list[str]) -> None:
    """First what a revision is, then the decision for it, then its pods, then what leads requests to them."""
    world = World(spec)
    looks = [world.look() for _ in range(4)]
    assert [kinds(verdict) for verdict in looks] == [["ControllerRevision"], [], made, []]
    assert [bool(verdict.remember) for verdict in looks] == [False, True, False, False]


@pytest.mark.parametrize(
    ("spec", "gone"),
    [(SCALED, {"HorizontalPodAutoscaler"}), (BLUE_GREEN, {"Service"}), (GATEWAY, {"HTTPRoute", "Service"})],
)
def test_what_the_spec_doesnt_ask_for_any_more_goes(spec: Document, gone: set[str]) -> None:
    """Each optional child goes with what it was there for, and nothing else does."""
    world = served(spec)
    before = set(world.children)
    world.spec = FIXED if spec is GATEWAY else GATEWAY
    world.settle()
    assert {kind for kind, _ in before - set(world.children)} == gone
    assert set(world.children) <= before
    assert world.weights() == {"1": 100}


# ---------------------------------------------------------------- whose they are


def strange(kind: str, name: str) -> Document:
    """Somebody else's object."""
    return {"kind": kind, "metadata": {"name": name, "namespace": "ml", "uid": "uid-x"}, "spec": {"own": 1}}


@pytest.mark.parametrize(
    ("spec", "kind", "name"),
    [
        (FIXED, "Service", "spam"),
        (FIXED, "ConfigMap", "spam-rollout"),
        (FIXED, "PodDisruptionBudget", "spam"),
        (GATEWAY, "HTTPRoute", "spam"),
        (SCALED, "HorizontalPodAutoscaler", "spam"),
        (BLUE_GREEN, "Service", "spam-preview"),
    ],
)
def test_foreign_object_is_a_conflict(spec: Document, kind: str, name: str) -> None:
    """An object with a child's name and another owner is neither edited nor used, and nothing is made beside it."""
    world = World(spec)
    world.children[kind, name] = strange(kind, name)
    verdict, state = decide_serving(world.snapshot())
    assert (find(verdict, "Ready"), state) == (("False", "NameConflict"), "Invalid")
    assert f"{kind} {name}" in verdict.findings["Ready"].message
    assert (verdict.apply, verdict.remember) == ((), None)


@pytest.mark.parametrize(
    ("kind", "name"), [("HTTPRoute", "spam"), ("HorizontalPodAutoscaler", "spam"), ("Service", "spam-preview")]
)
def test_foreign_object_that_takes_no_name_of_ours_is_left_alone(kind: str, name: str) -> None:
    """Somebody's own route to the Service, or another ModelDeployment of the preview's name, disturbs nothing."""
    world = served()
    world.ask_for("2")
    for _ in range(8):
        snapshot = world.snapshot()
        children = {**snapshot.children, (kind, name): strange(kind, name)}
        verdict, state = decide_serving(replace(snapshot, children=children))
        for manifest in (*verdict.apply, *filter(None, (verdict.remember,))):
            assert (manifest["kind"], manifest["metadata"]["name"]) != (kind, name)
            world._apply(manifest)
    assert (verdict.status["stable"]["version"], state, verdict.delete) == ("2", "Ready", ())


def test_children_of_an_earlier_resource_are_waited_for() -> None:
    """A ModelDeployment that is made again under its old name isn't in conflict with what is left of the old one."""
    world = World(FIXED)
    world.children["Service", "spam"] = strange("Service", "spam")
    owner = {"kind": "ModelDeployment", "name": "spam", "uid": "uid-0", "controller": True}
    world.children["Service", "spam"]["metadata"]["ownerReferences"] = [owner]
    verdict, state = decide_serving(world.snapshot())
    assert (find(verdict, "Ready"), state) == (("False", "WaitingForCleanup"), "Waiting")
    assert (verdict.apply, verdict.requeue) == ((), 2)


def test_child_that_is_going_is_waited_for() -> None:
    """Applying to an object that is going would be lost with it."""
    world = served()
    service = world.children["Service", "spam"]
    service["metadata"]["deletionTimestamp"] = "2026-03-01T11:59:00Z"
    service["spec"]["selector"] = {}
    verdict, _ = decide_serving(world.snapshot())
    assert (verdict.apply, verdict.requeue) == ((), 2)


# ---------------------------------------------------------------- what is put right


def test_drift_is_put_right() -> None:
    """What somebody changed by hand is applied again, and nothing else is."""
    world = served(SCALED)
    (name,) = (name for kind, name in world.children if kind == "Deployment")
    before = deepcopy(world.children)
    container = world.children["Deployment", name]["spec"]["template"]["spec"]["containers"][0]
    for entry in container["env"]:
        if entry["name"] == "CLOZE_MODEL_DIGEST":
            entry["value"] = digest("9")
    world.children["Service", "spam"]["spec"]["selector"] = {}
    world.children["HTTPRoute", "spam"]["spec"]["rules"][0]["backendRefs"][0]["weight"] = 7
    world.children["HorizontalPodAutoscaler", "spam"]["spec"]["maxReplicas"] = 50
    world.children["PodDisruptionBudget", "spam"]["spec"]["maxUnavailable"] = 2
    world.settle()
    specs = {key: child["spec"] for key, child in before.items() if "spec" in child}
    assert {key: child["spec"] for key, child in world.children.items() if "spec" in child} == specs


def test_size_is_the_specs_without_an_autoscaler() -> None:
    world = served()
    (name,) = (name for kind, name in world.children if kind == "Deployment")
    world.children["Deployment", name]["spec"]["replicas"] = 7
    world.settle()
    assert world.pods_of("1") == 2


def test_what_an_older_cloze_has_stored_stays() -> None:
    """A setting that is added later is missing there: it has its default, and the stored one isn't written again."""
    world = served()
    (name,) = (name for kind, name in world.children if kind == "ControllerRevision")
    stored = world.children["ControllerRevision", name]
    del stored["data"]["runtime"]["timeoutSeconds"]
    del stored["data"]["facts"]
    world.settle()
    assert "timeoutSeconds" not in world.children["ControllerRevision", name]["data"]["runtime"]
    assert (world.record.canary, world.state) == ("", "Ready")


def test_new_default_image_is_rolled_out_by_the_resources_own_steps() -> None:
    """An upgrade of the operator switches nobody's server."""
    world = served(GATEWAY)
    platform = replace(PLATFORM, serve_image="serve:2")
    for _ in range(8):
        verdict, _ = decide_serving(replace(world.snapshot(), platform=platform))
        for manifest in (*verdict.apply, *filter(None, (verdict.remember,))):
            world._apply(manifest)
    assert world.record.canary
    weights = [entry["weight"] for entry in world.children["HTTPRoute", "spam"]["spec"]["rules"][0]["backendRefs"]]
    assert sorted(weights) == [10, 90]


# ---------------------------------------------------------------- what goes


def test_stored_revisions_are_kept_for_as_long_as_the_spec_says() -> None:
    """Those in use and those that were taken back besides."""
    spec = {**FIXED, "rollout": {"rollbackWindowSeconds": 15, "revisionHistoryLimit": 1}}
    world = served(spec, versions=set("123456"))
    for version in "234":
        world.ask_for(version)
        world.after(60)
    world.crashing = {"5"}
    world.ask_for("5")
    world.after(60)
    world.ask_for("6")
    world.after(60)
    kept = sorted(
        child["data"]["model"]["version"]
        for (kind, _), child in world.children.items()
        if "data" in child and kind != "ConfigMap"
    )
    assert kept == ["4", "5", "6"]


def test_revision_that_comes_back_is_the_same_one() -> None:
    """It keeps its name, its number and its place in the history."""
    world = served(FIXED)
    first = world.record.stable
    world.ask_for("2")
    world.after(400)
    world.ask_for("1")
    world.after(400)
    assert world.record.stable == first
    assert {entry["version"]: entry["number"] for entry in world.status["revisions"]} == {"1": 1, "2": 2}


@pytest.mark.parametrize("kind", ["Deployment", "Service", "ControllerRevision", "HTTPRoute"])
def test_only_own_children_are_swept(kind: str) -> None:
    """An object with our labels and another owner isn't ours to delete."""
    world = served()
    child = strange(kind, "spam-old")
    child["metadata"]["ownerReferences"] = [
        {"kind": "ModelDeployment", "name": "other", "uid": "o", "controller": True}
    ]
    snapshot = world.snapshot()
    ours = deepcopy(child)
    ours["metadata"] = {**child_metadata(snapshot.resource, "spam-older"), "uid": "uid-y"}
    children = {**snapshot.children, (kind, "spam-older"): ours}
    verdict, _ = decide_serving(replace(snapshot, children=children))
    assert [(target.kind, target.name, target.uid) for target in verdict.delete] == [(kind, "spam-older", "uid-y")]
    verdict, _ = decide_serving(replace(snapshot, children={**children, (kind, "spam-old"): child}))
    assert verdict.delete == ()


# ---------------------------------------------------------------- servers from before there were revisions


def older(world: World) -> None:
    """Two servers of version 1 as they were made before there were revisions, behind a Service before all pods."""
    owner = world.resource()
    labels = selector("ModelDeployment", "spam")
    made_for = {"cloze.dev/model-version": "1", "cloze.dev/model-digest": digest("1")}
    world._apply(
        {
            "kind": "Deployment",
            "metadata": child_metadata(owner, "spam-server", made_for),
            "spec": {"replicas": 2, "template": {"metadata": {"labels": labels, "annotations": made_for}}},
        }
    )
    world._apply(
        {"kind": "Service", "metadata": child_metadata(owner, "spam"), "spec": {"selector": labels, "ports": []}}
    )


def test_older_servers_serve_until_new_ones_do() -> None:
    """They are taken over without a moment in which nobody, or half as many, would answer."""
    world = World({**FIXED, "model": {"name": "spam", "version": "2"}}, broken={"2"})
    older(world)
    world.settle()
    assert (world.weights(), world.pods_of("2")) == ({"1": 100}, 2)
    (new,) = (child for (kind, name), child in world.children.items() if kind == "Deployment" and name != "spam-server")
    # One of two is ready.
    world.broken = set()
    new["status"]["availableReplicas"] = 1
    world.settle()
    assert world.children["Service", "spam"]["spec"]["selector"] == selector("ModelDeployment", "spam")
    world._settle(new)
    world.settle()
    assert (world.weights(), world.pods_of("1")) == ({"2": 100}, 0)
    assert ("Deployment", "spam-server") not in world.children
    assert all(world.served), "nobody was served"


# ---------------------------------------------------------------- a record that is lost


def test_lost_record_takes_nobody_away() -> None:
    """Whoever deletes it ends the rollout: what has the requests goes on serving, the canary begins anew."""
    world = served(GATEWAY)
    world.ask_for("2")
    world.settle()
    assert world.weights() == {"1": 90, "2": 10}
    del world.children["ConfigMap", "spam-rollout"]
    world.settle()
    assert (world.weights(), world.status["stable"]["version"]) == ({"1": 90, "2": 10}, "1")
    assert all(weights.get("1", 0) >= 90 for weights in world.served[-10:])
