"""Decisions about a ModelDeployment besides its rollout: which version, is it served, may the alias follow."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import PLATFORM, World, digest

from cloze_operator.decide.answers import Answer, HeldUp, Loaded, NotFound, Unavailable, Version
from cloze_operator.decide.serving import decide_serving
from cloze_operator.decide.snapshot import ServingSnapshot
from cloze_operator.decide.verdict import AliasMove, Verdict
from cloze_operator.desired.facts import Facts

Document = dict[str, Any]
Make = Callable[..., Any]

FIXED = {"model": {"name": "spam", "version": "1"}}
FOLLOW = {"model": {"name": "spam", "follow": {"candidateAlias": "challenger", "alias": "champion"}}}
ROUTE = {"provider": "GatewayAPI", "route": {"parentRefs": [{"name": "cloze", "namespace": "gateway"}]}}
ONE = Version("spam", "1", digest("1"))


def findings(verdict: Verdict) -> dict[str, tuple[str, str]]:
    return {kind: (found.status, found.reason) for kind, found in verdict.findings.items()}


def served(spec: Document | None = None, **more: Any) -> World:
    """A world in which version 1 is served."""
    world = World(spec or FIXED, **({"aliases": {"challenger": "1"}} | more))
    world.settle()
    assert world.weights() in ({"1": 100}, {})
    return world


def decide(world: World, **parts: Any) -> tuple[Verdict, str]:
    """The decision about a world of which some parts are seen otherwise."""
    return decide_serving(replace(world.snapshot(), **parts))


def deployment(world: World) -> Document:
    """The one Deployment."""
    (found,) = (child for (kind, _), child in world.children.items() if kind == "Deployment")
    return found


# ---------------------------------------------------------------- which version


@pytest.mark.parametrize("spec", [FIXED, FOLLOW])
@pytest.mark.parametrize(
    ("answer", "resolved"),
    [
        (Version("spam", "1", ""), ("False", "DigestMissing")),
        (NotFound("no version 1"), ("False", "ModelNotFound")),
        (Unavailable("down"), ("Unknown", "RegistryUnavailable")),
    ],
)
def test_nothing_is_served_before_the_version_is_known(
    spec: Document, answer: Answer, resolved: tuple[str, str]
) -> None:
    """Revisions are made of an exact version and digest only; until there is one, it looks again."""
    verdict, state = decide(World(spec), model=answer, alias=answer)
    assert findings(verdict)["ModelResolved"] == resolved
    assert (verdict.apply, verdict.remember, state, verdict.requeue) == ((), None, "Waiting", 10.0)
    assert findings(verdict)["Ready"] == ("False", resolved[1])


def test_nothing_is_served_before_it_is_known_what_was_promoted() -> None:
    """The candidate is known; serving it could be a switch to an untried version."""
    world = World(FOLLOW, aliases={"challenger": "2"})
    down = Unavailable("down")
    for _ in range(3):
        verdict, _ = decide(world, alias=down)
        for manifest in verdict.apply:
            world._apply(manifest)
    assert {kind for kind, _ in world.children} == {"ControllerRevision"}
    assert findings(verdict)["Ready"] == ("False", "RegistryUnavailable")
    assert verdict.requeue == 10.0


def test_what_was_promoted_serves_where_nothing_is_proposed() -> None:
    """A candidate's alias that isn't set is no reason to serve nothing."""
    world = World(FOLLOW, aliases={"champion": "1"})
    world.settle()
    assert (world.weights(), world.condition("ModelResolved")) == ({"1": 100}, ("False", "ModelNotFound"))


@pytest.mark.parametrize(
    ("answer", "resolved"),
    [
        (Unavailable("down"), ("Unknown", "RegistryUnavailable")),
        (NotFound("the alias is gone"), ("False", "ModelNotFound")),
        (Version("spam", "2", ""), ("False", "DigestMissing")),
    ],
)
def test_what_is_served_is_served_on(answer: Answer, resolved: tuple[str, str]) -> None:
    """Without a usable answer the stored version stays, and stays Ready."""
    verdict, state = decide(served(FOLLOW), model=answer)
    assert findings(verdict)["ModelResolved"] == resolved
    assert "serving version 1 as before" in verdict.findings["ModelResolved"].message
    assert (verdict.apply, verdict.delete, verdict.remember) == ((), (), None)
    assert (findings(verdict)["Ready"], state) == (("True", "AllReplicasReady"), "Ready")
    assert verdict.status["desired"]["version"] == "1"
    assert verdict.requeue == 10.0


@pytest.mark.parametrize(
    ("facts", "reason", "told"),
    [
        (Facts(precisions="fp32, int8"), "PrecisionMissing", "has the precisions fp32, int8, not fp16"),
        (Facts(schema="99"), "ManifestSchemaUnknown", "has schema version 99"),
    ],
)
def test_a_version_that_no_server_can_load_makes_no_pod(facts: Facts, reason: str, told: str) -> None:
    """It would end at once, each time; nobody needs to read its log to know why. A change of the spec ends it."""
    world = World({**FIXED, "runtime": {"precision": "fp16"}})
    world.facts["1"] = facts
    verdict, state = decide(world)
    assert (verdict.apply, verdict.remember, state) == ((), None, "Waiting")
    assert findings(verdict)["ModelResolved"] == findings(verdict)["Ready"] == ("False", reason)
    assert told in verdict.findings["ModelResolved"].message
    world.facts["1"] = Facts(precisions="fp32, fp16")
    world.settle()
    assert world.condition("Ready") == ("True", "AllReplicasReady")


# ---------------------------------------------------------------- its fallback

WITH_FALLBACK = {"model": {"name": "spam", "version": "1", "fallback": {"name": "large", "version": "2"}}}
LARGE = Version("large", "2", "sha256:" + "c" * 64)


@pytest.mark.parametrize(
    ("answer", "resolved"),
    [
        (Version("large", "2", ""), ("False", "DigestMissing")),
        (NotFound("no version 2 of model large"), ("False", "FallbackNotFound")),
        (Unavailable("down"), ("Unknown", "RegistryUnavailable")),
    ],
)
def test_nothing_is_served_before_the_fallback_is_known(answer: Answer, resolved: tuple[str, str]) -> None:
    """As without the model; the condition says that it is the fallback which is missing, and it looks again."""
    verdict, state = decide(World(WITH_FALLBACK, fallback=answer))
    assert findings(verdict)["ModelResolved"] == resolved
    assert (verdict.apply, verdict.remember, state, verdict.requeue) == ((), None, "Waiting", 10.0)
    assert findings(verdict)["Ready"] == ("False", resolved[1])


def test_fallback_is_asked_for_once_and_stays_pinned() -> None:
    """Its digest comes from the registry, and then from the stored revision, whatever becomes of the registry."""
    world = World(WITH_FALLBACK, fallback=LARGE)
    world.settle()
    assert world.condition("Ready") == ("True", "AllReplicasReady")
    (container,) = deployment(world)["spec"]["template"]["spec"]["containers"]
    told = {entry["name"]: entry["value"] for entry in container["env"]}
    assert told["CLOZE_MODEL_DIGEST"].split() == [digest("1"), LARGE.digest]
    world.fallback = NotFound("somebody has deleted it")
    world.settle()
    assert world.condition("ModelResolved") == ("True", "Resolved")
    assert "fallback large version 2" in next(
        entry["message"] for entry in world.status["conditions"] if entry["type"] == "ModelResolved"
    )


def test_fallback_without_the_precision_is_refused() -> None:
    """The servers run both models in the one that is asked for."""
    runtime = {"runtime": {"precision": "int8"}}
    world = World({**WITH_FALLBACK, **runtime}, fallback=replace(LARGE, facts=Facts(precisions="fp32, fp16")))
    verdict, _ = decide(world)
    assert findings(verdict)["ModelResolved"] == ("False", "FallbackUnfit")
    assert "has the precisions fp32, fp16, not int8" in verdict.findings["ModelResolved"].message


def test_another_fallback_is_tried_as_a_canary() -> None:
    """It changes answers, so that it is another revision; one that isn't there changes nothing that is served."""
    steps = {"traffic": ROUTE, "rollout": {"steps": [{"weight": 10}]}}
    world = served({**FIXED, **steps})
    stable = world.record.stable
    world.spec = {**WITH_FALLBACK, **steps}
    world.fallback = NotFound("no version 2 of model large")
    world.settle()
    assert (world.record.stable, world.record.canary) == (stable, "")
    assert world.condition("ModelResolved") == ("False", "FallbackNotFound")
    world.fallback = LARGE
    world.settle()
    assert world.record.stable == stable
    assert world.record.canary not in ("", stable)


@pytest.mark.parametrize(
    ("task", "other", "said"),
    [
        ("embedding", "embedding", "only classifiers"),
        ("sequence-classification", "token-classification", "not for sequence-classification"),
    ],
)
def test_fallback_of_another_task_is_refused_before_a_pod_is_made(task: str, other: str, said: str) -> None:
    world = World(WITH_FALLBACK, fallback=replace(LARGE, facts=Facts(task=other)), facts={"1": Facts(task=task)})
    verdict, _ = decide(world)
    assert findings(verdict)["ModelResolved"] == ("False", "FallbackUnfit")
    assert said in verdict.findings["ModelResolved"].message
    assert (verdict.apply, verdict.remember) == ((), None)


def test_canary_goes_on_without_the_registry() -> None:
    """The version that is tried is stored: an outage neither withdraws it nor turns it back."""
    world = served({**FIXED, "traffic": ROUTE, "rollout": {"steps": [{"weight": 10}]}})
    world.ask_for("2")
    world.settle()
    verdict, state = decide(world, model=Unavailable("down"))
    assert (verdict.apply, verdict.remember, state) == ((), None, "Canary")
    assert verdict.status["desired"]["version"] == "2"


def test_another_version_needs_an_answer_of_its_own() -> None:
    """What was resolved for one version says nothing about another one; what is served is served on."""
    world = served()
    world.ask_for("9")
    verdict, _ = decide(world, model=Unavailable("down"))
    assert (verdict.apply, verdict.remember, verdict.status["desired"]) == ((), None, None)
    assert findings(verdict)["ModelResolved"] == ("Unknown", "RegistryUnavailable")
    assert (findings(verdict)["Ready"], verdict.status["stable"]["version"]) == (("True", "AllReplicasReady"), "1")


def test_another_model_needs_an_answer_of_its_own() -> None:
    """The same number of another model is another version."""
    world = served()
    world.spec = {"model": {"name": "ham", "version": "1"}}
    verdict, _ = decide(world, model=Unavailable("down"))
    assert (verdict.remember, verdict.status["desired"]) == (None, None)


def test_fixed_version_needs_no_registry() -> None:
    """Versions never change: one that is being served isn't asked about."""
    verdict, state = decide(served(), model=None)
    assert (findings(verdict)["ModelResolved"], state) == (("True", "Resolved"), "Ready")
    assert verdict.requeue is None


# ---------------------------------------------------------------- what can't be decided about


def test_deleted_resource_is_left_to_the_garbage_collector() -> None:
    """Nothing is applied for a resource that is going."""
    snapshot = World(FIXED).snapshot()
    metadata = {**snapshot.resource["metadata"], "deletionTimestamp": "2026-03-01T11:00:00Z"}
    verdict, _ = decide_serving(replace(snapshot, resource={**snapshot.resource, "metadata": metadata}))
    assert (verdict.apply, verdict.remember, verdict.requeue) == ((), None, None)


def test_unreadable_spec_is_refused() -> None:
    """A spec that this operator can't read is reported, and nothing is made of it."""
    verdict, state = decide(served(), deployment=None, invalid="spec.model: Field required")
    assert (findings(verdict)["Accepted"], state) == (("False", "InvalidSpec"), "Invalid")
    assert (verdict.apply, verdict.delete, verdict.remember) == ((), (), None)


def test_a_gpu_without_an_image_for_it_is_refused() -> None:
    """With what to set; an image of the spec's own, or of the installation's, is enough."""
    asked = {**FIXED, "resources": {"limits": {"nvidia.com/gpu": 1}}}
    verdict, state = decide(World(asked))
    assert (findings(verdict)["Accepted"], state) == (("False", "GpuImageMissing"), "Invalid")
    assert "images.serveGpu" in verdict.findings["Accepted"].message
    assert (verdict.apply, verdict.delete, verdict.remember) == ((), (), None)
    named, _ = decide(World({**asked, "runtime": {"image": "mine:1"}}))
    assert findings(named)["Accepted"] == ("True", "SpecAccepted")
    installed, _ = decide(World(asked), platform=replace(PLATFORM, serve_gpu_image="serve-gpu:1"))
    assert findings(installed)["Accepted"] == ("True", "SpecAccepted")


def test_unreadable_record_stops_everything() -> None:
    """Children follow from the record: without it, nobody knows which of them may go."""
    verdict, state = decide(served(), corrupt="JSONDecodeError: Expecting value")
    assert (findings(verdict)["Accepted"], state) == (("False", "RecordUnreadable"), "Invalid")
    assert "ConfigMap spam-rollout" in verdict.findings["Accepted"].message
    assert (verdict.apply, verdict.delete, verdict.remember) == ((), (), None)


# ---------------------------------------------------------------- readiness


def test_ready_counts_pods_of_the_stable_version() -> None:
    """All replicas up to date and ready, and each says that it has loaded what is wanted."""
    world = served({**FIXED, "replicas": 2})
    verdict, state = decide(world)
    assert (state, findings(verdict)["Ready"]) == ("Ready", ("True", "AllReplicasReady"))
    assert verdict.findings["Ready"].message == "2 of 2 replicas serve version 1"
    assert findings(verdict)["Progressing"] == ("False", "RolloutComplete")
    assert verdict.status["loaded"] == [{"version": "1", "readyPods": 2}]
    assert (verdict.status["replicas"], verdict.status["readyReplicas"], verdict.status["updatedReplicas"]) == (2, 2, 2)
    assert verdict.status["url"] == "http://spam.ml.svc"
    assert verdict.status["selector"] == "cloze.dev/kind=ModelDeployment,cloze.dev/owner=spam"


@pytest.mark.parametrize("said", [Loaded("2", digest("1")), Loaded("1", digest("2"))])
def test_pod_that_has_loaded_something_else_is_not_ready(said: Loaded) -> None:
    """The pod's own word counts more than what it was made for."""
    world = served()
    (pod,) = world.snapshot().pods
    verdict, _ = decide(world, loaded={pod["metadata"]["name"]: said})
    assert findings(verdict)["Ready"] == ("False", "VersionMismatch")
    assert verdict.status["loaded"] == [{"version": said.version, "readyPods": 1}]


def test_what_keeps_a_server_from_loading_is_said() -> None:
    """The pod runs and isn't ready; its own words tell more than a count of replicas."""
    world = served(broken={"1"})
    (pod,) = world.snapshot().pods
    name = pod["metadata"]["name"]
    verdict, _ = decide(world, loaded={}, held_up={name: HeldUp("RegistryUnavailable", "MLflow doesn't answer")})
    assert findings(verdict)["Ready"] == ("False", "RegistryUnavailable")
    assert verdict.findings["Ready"].message == f"{name}: MLflow doesn't answer"
    assert verdict.requeue is not None


def test_silent_pod_claims_nothing() -> None:
    """A ready pod that doesn't answer serves what it was made for; that it has loaded it, nobody has said."""
    verdict, state = decide(served(), loaded={})
    assert (state, verdict.status["loaded"]) == ("Ready", [])
    assert "1 didn't say so" in verdict.findings["Ready"].message


@pytest.mark.parametrize(
    "status",
    [{"observedGeneration": 0}, {"updatedReplicas": 0}, {"availableReplicas": 0}, {"replicas": 2}],
)
def test_unfinished_deployment_is_not_ready(status: Document) -> None:
    """Each number that the Deployment's controller still has to reach keeps Ready False, and is looked at again."""
    world = served()
    deployment(world)["status"] |= status
    verdict, state = decide(world)
    assert (findings(verdict)["Ready"], state) == (("False", "RollingOut"), "RollingOut")
    assert findings(verdict)["Progressing"] == ("True", "RollingOut")
    assert verdict.requeue == 10.0


def test_changed_deployment_is_not_ready_before_it_is_applied() -> None:
    """Other resources are no other revision, but what runs isn't what is wanted."""
    world = served(FOLLOW)
    world.spec = {**world.spec, "resources": {"limits": {"memory": "2Gi"}}}
    verdict, _ = decide(world, alias=NotFound("unset"))
    assert [manifest["kind"] for manifest in verdict.apply] == ["Deployment"]
    assert findings(verdict)["Ready"] == ("False", "RollingOut")
    assert verdict.alias is None


def test_canary_doesnt_make_the_stable_version_unready() -> None:
    """Whoever is served is served, whatever becomes of the canary."""
    world = served({**FIXED, "traffic": ROUTE, "rollout": {"steps": [{"weight": 10}]}}, broken={"2"})
    world.ask_for("2")
    world.settle()
    assert (world.condition("Ready"), world.state) == (("True", "AllReplicasReady"), "Canary")
    assert "0 of 1 pods ready" in world.status["rollout"]["message"]


@pytest.mark.parametrize("up", [True, False])
def test_crash_loop_is_never_ready(pod: Make, moment: Make, *, up: bool) -> None:
    """Not even while the container happens to run; the server's own reason is passed on."""
    world = served()
    ended = {"exitCode": 10, "message": '{"reason": "DigestMismatch"}', "finishedAt": moment(-5)}
    state = {"running": {}} if up else {"waiting": {"reason": "CrashLoopBackOff"}}
    pods = (_like(world, pod(state=state, last={"terminated": ended}, restarts=4, conditions={"Ready": str(up)})),)
    verdict, state_ = decide(world, pods=pods)
    assert (findings(verdict)["Ready"], state_) == (("False", "CrashLoopBackOff"), "Failing")
    assert "DigestMismatch" in verdict.findings["Ready"].message
    assert verdict.requeue == 10.0


def _like(world: World, pod: Document) -> Document:
    """A pod of the Deployment."""
    template = deployment(world)["spec"]["template"]["metadata"]
    return {**pod, "metadata": {**pod["metadata"], **template}}


def test_trouble_of_a_pod_is_passed_on(pod: Make) -> None:
    """A pod that can't pull its image is the reason."""
    world = served({**FIXED, "replicas": 2})
    deployment(world)["status"]["availableReplicas"] = 1
    stuck = pod("s-1", "Pending", state={"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})
    verdict, _ = decide(world, pods=(world.snapshot().pods[0], _like(world, stuck)))
    assert findings(verdict)["Ready"] == ("False", "ImagePullBackOff")


def test_trouble_of_the_canary_is_the_rollouts(pod: Make) -> None:
    """It stands where the rollout is told of."""
    world = served({**FIXED, "traffic": ROUTE, "rollout": {"steps": [{"weight": 10}]}}, broken={"2"})
    stable = world.snapshot().pods
    world.ask_for("2")
    world.settle()
    (canary,) = (one for one in world.snapshot().pods if one not in stable)
    stuck = pod("s-1", "Pending", state={"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})
    stuck = {**stuck, "metadata": {**stuck["metadata"], "labels": canary["metadata"]["labels"]}}
    verdict, _ = decide(world, pods=(*stable, stuck))
    assert "ImagePullBackOff: s-1: no such image" in verdict.status["rollout"]["message"]
    assert findings(verdict)["Ready"] == ("True", "AllReplicasReady")


def test_refused_pods_are_said() -> None:
    """A quota shows in the Deployment's own condition alone."""
    world = served(broken={"1"})
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}
    deployment(world)["status"]["conditions"] = [refused]
    verdict, _ = decide(world, pods=())
    found = verdict.findings["Ready"]
    assert (found.status, found.reason, found.message) == ("False", "FailedCreate", "exceeded quota")


def test_pod_that_is_being_created_is_looked_at_again(pod: Make) -> None:
    """Time alone makes it one that hangs, and no event tells of time."""
    world = served(broken={"1"})
    stuck = pod("s-1", "Pending", state={"waiting": {"reason": "ContainerCreating"}})
    verdict, _ = decide(world, pods=(_like(world, stuck),))
    assert verdict.requeue == 10.0


def test_stuck_deployment_is_said() -> None:
    """The Deployment's own deadline ends Progressing."""
    world = served(broken={"1"})
    stuck = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "too slow"}
    deployment(world)["status"]["conditions"] = [stuck]
    verdict, state = decide(world)
    assert (findings(verdict)["Progressing"], state) == (("False", "ProgressDeadlineExceeded"), "Failing")


def test_nothing_is_ready_at_zero_replicas() -> None:
    """Ready means that requests are answered."""
    world = served({**FIXED, "replicas": 0})
    assert (world.condition("Ready"), world.state) == (("False", "NoReplicas"), "Stopped")


def test_a_stopped_one_takes_another_version_at_once() -> None:
    """No pods are waited for where none are wanted."""
    world = served({**FIXED, "replicas": 0})
    world.ask_for("2")
    world.settle()
    assert (world.status["stable"]["version"], world.record.canary, world.state) == ("2", "", "Stopped")


@pytest.mark.parametrize("accepted", [True, False])
def test_ready_waits_for_the_gateway(*, accepted: bool) -> None:
    """Pods that no request reaches serve nobody; nothing tells when the gateway has taken the route, so it is asked."""
    world = World({**FIXED, "traffic": ROUTE}, route_accepted=accepted)
    world.settle()
    verdict, _ = decide(world)
    assert findings(verdict)["Ready"] == (("True", "AllReplicasReady") if accepted else ("False", "RouteRefused"))
    assert verdict.requeue == (None if accepted else 10.0)


# ---------------------------------------------------------------- the alias


@pytest.mark.parametrize(
    ("alias", "moved", "move"),
    [
        (NotFound("unset"), ("False", "MovingAlias"), AliasMove("spam", "champion", "1", None, "AliasMoved")),
        (Version("spam", "8", ""), ("False", "MovingAlias"), AliasMove("spam", "champion", "1", "8", "AliasMoved")),
        (Version("spam", "1", ""), ("True", "Version1"), None),
        (Unavailable("down"), ("Unknown", "RegistryUnavailable"), None),
    ],
)
def test_alias_follows_what_is_served(*, alias: Answer, moved: tuple[str, str] | None, move: AliasMove | None) -> None:
    """The alias goes to the stable version, up or down, from where it was seen to be."""
    world = served(FOLLOW)
    world.status["conditions"] = []
    verdict, _ = decide(world, alias=alias)
    assert findings(verdict).get("AliasMoved") == moved
    assert verdict.alias == move


def test_alias_waits_for_readiness() -> None:
    """No promotion of what isn't serving."""
    assert served(FOLLOW, broken={"1"}).aliases == {"challenger": "1"}


def test_fixed_version_moves_no_alias() -> None:
    """Nor does one that doesn't follow any more say that it does."""
    world = served(FOLLOW)
    assert world.condition("AliasMoved")[0] == "True"
    world.spec = FIXED
    verdict, _ = decide(world, alias=NotFound("unset"))
    assert (verdict.alias, "AliasMoved" in verdict.findings) == (None, False)


def test_younger_rival_leaves_the_alias_alone() -> None:
    """It serves, is Ready, and names the one that moves the alias."""
    world = served(FOLLOW)
    verdict, state = decide(world, alias=NotFound("unset"), rivals=("prod/spam",))
    assert findings(verdict)["AliasConflict"] == ("True", "AliasOwnedByAnother")
    assert "prod/spam" in verdict.findings["AliasConflict"].message
    assert (verdict.alias, state) == (None, "Ready")


def test_resolved_conflict_is_taken_away() -> None:
    """The condition is there only while there is a conflict."""
    world = served(FOLLOW)
    old = {"type": "AliasConflict", "status": "True", "reason": "X", "lastTransitionTime": "2026-03-01T11:00:00Z"}
    world.status = {"conditions": [old]}
    assert "AliasConflict" not in decide(world)[0].findings


# ---------------------------------------------------------------- quarantine


def test_bad_image_is_no_word_against_the_version_that_is_served() -> None:
    """The same version serves well with the former image: the registry's other users may go on with it."""
    world = served({**FIXED, "traffic": ROUTE, "rollout": {"steps": [{"weight": 10}]}})
    world.spec = {**world.spec, "runtime": {"image": "serve:2"}}
    world.settle()
    canary = world.record.canary
    loaded = {
        pod["metadata"]["name"]: Loaded("9", digest("9"))
        for pod in world.snapshot().pods
        if pod["metadata"]["labels"]["cloze.dev/revision"] == canary
    }
    assert loaded
    verdict, _ = decide(world, loaded=loaded)
    assert verdict.remember
    world._apply(verdict.remember)
    assert world.record.rejected[canary].reason == "VersionMismatch"
    world.settle()
    assert (world.quarantined, world.state) == ({}, "RolledBack")


def test_snapshot_without_its_model_deployment_is_a_mistake(serving: Make) -> None:
    """Steps that come after the validity never see such a one."""
    snapshot: ServingSnapshot = serving(deployment=None)
    with pytest.raises(AssertionError, match="before its validity was decided"):
        assert snapshot.parsed
