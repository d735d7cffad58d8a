"""Every branch of the decision about a ModelDeployment."""

from collections.abc import Callable
from typing import Any

import pytest

from cloze_operator.decide.answers import Answer, HeldUp, Loaded, NotFound, Unavailable, Version
from cloze_operator.decide.serving import decide_serving, intact_version
from cloze_operator.decide.verdict import AliasMove
from cloze_operator.desired.serving import ServedVersion, server_deployment, server_service

Document = dict[str, Any]
Make = Callable[..., Any]

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
FOLLOW = {"model": {"name": "spam", "follow": {"candidateAlias": "challenger", "alias": "champion"}}}
FIXED = Version("spam", "3", DIGEST)
READY = {"Ready": "True", "PodScheduled": "True"}


def findings(verdict: Any) -> dict[str, tuple[str, str]]:
    return {kind: (found.status, found.reason) for kind, found in verdict.findings.items()}


@pytest.fixture
def children(serving: Make, live: Make) -> Make:
    """The live children of a ModelDeployment that serves a version, with so many replicas up to date."""

    def make(
        version: str = "3", *, up: int = 1, spec: Document | None = None, status: Document | None = None
    ) -> Document:
        snapshot = serving(spec=spec)
        served = ServedVersion("spam", version, DIGEST)
        manifest = server_deployment(snapshot.resource, snapshot.deployment, served, snapshot.platform)
        counts = {
            "observedGeneration": 1,
            "replicas": up,
            "updatedReplicas": up,
            "availableReplicas": up,
            **(status or {}),
        }
        return {"Service": live(server_service(snapshot.resource)), "Deployment": live(manifest, status=counts)}

    return make


@pytest.fixture
def server(pod: Make) -> Make:
    """A ready pod that was made for a version."""

    def make(name: str = "s-0", version: str = "3", **more: Any) -> Document:
        made_for = {"cloze.dev/model-version": version, "cloze.dev/model-digest": DIGEST}
        return pod(name, **{"conditions": READY, "annotations": made_for, **more})

    return make


# ---------------------------------------------------------------- which version


@pytest.mark.parametrize(
    ("answer", "resolved", "served"),
    [
        (FIXED, ("True", "Resolved"), True),
        (Version("spam", "3", ""), ("False", "DigestMissing"), False),
        (NotFound("no version 3"), ("False", "ModelNotFound"), False),
        (Unavailable("down"), ("Unknown", "RegistryUnavailable"), False),
    ],
)
def test_nothing_is_served_before_the_version_is_known(
    serving: Make,
    answer: Answer,
    resolved: tuple[str, str],
    served: bool,
) -> None:
    """Children are made of an exact version and digest only; until all serve it, it looks again."""
    verdict, state = decide_serving(serving(model=answer))
    assert findings(verdict)["ModelResolved"] == resolved
    assert bool(verdict.apply) == served
    assert state == ("RollingOut" if served else "Waiting")
    assert verdict.requeue == 10.0
    assert findings(verdict)["Ready"][0] == "False"


@pytest.mark.parametrize(
    ("answer", "resolved"),
    [
        (Unavailable("down"), ("Unknown", "RegistryUnavailable")),
        (NotFound("the alias is gone"), ("False", "ModelNotFound")),
        (Version("spam", "4", ""), ("False", "DigestMissing")),
    ],
)
def test_what_is_served_is_served_on(
    serving: Make, children: Make, server: Make, answer: Answer, resolved: tuple[str, str]
) -> None:
    """Without a usable answer the version in the Deployment stays, and stays Ready."""
    snapshot = serving(spec=FOLLOW, children=children(spec=FOLLOW), pods=(server(),), model=answer)
    verdict, _ = decide_serving(snapshot)
    assert findings(verdict)["ModelResolved"] == resolved
    assert (verdict.apply, findings(verdict)["Ready"]) == ((), ("True", "AllReplicasReady"))
    assert verdict.status["desired"]["version"] == "3"


def test_other_models_version_is_not_served_on(serving: Make, children: Make) -> None:
    """What was resolved for another model or another version says nothing about this one."""
    verdict, _ = decide_serving(
        serving(spec={"model": {"name": "spam", "version": "9"}}, children=children(), model=Unavailable("down"))
    )
    assert verdict.apply == ()
    assert "desired" not in {key: value for key, value in verdict.status.items() if value is not None}
    assert findings(verdict)["Ready"] == ("False", "RegistryUnavailable")


def test_fixed_version_needs_no_registry(serving: Make, children: Make, server: Make) -> None:
    """Versions never change: one that is being served isn't asked about."""
    verdict, state = decide_serving(serving(children=children(), pods=(server(),), model=None))
    assert (findings(verdict)["ModelResolved"], state) == (("True", "Resolved"), "Ready")
    assert verdict.requeue is None


# ---------------------------------------------------------------- children


def test_children_are_made(serving: Make) -> None:
    """The Service comes first, so that it has an address when the first pod is ready."""
    verdict, _ = decide_serving(serving(model=FIXED))
    assert [manifest["kind"] for manifest in verdict.apply] == ["Service", "Deployment"]
    assert verdict.status["url"] == "http://run.ml.svc"
    assert verdict.status["selector"] == "cloze.dev/kind=ModelDeployment,cloze.dev/owner=run"


def test_foreign_service_is_a_conflict(serving: Make, children: Make) -> None:
    """An object with a child's name and another owner is neither edited nor used."""
    made = children()
    made["Service"]["metadata"]["ownerReferences"] = [{"uid": "somebody", "controller": True}]
    verdict, state = decide_serving(serving(children=made, model=FIXED))
    assert (findings(verdict)["Ready"], state) == (("False", "NameConflict"), "Invalid")
    assert verdict.apply == ()


def test_children_of_an_earlier_deployment_are_waited_for(serving: Make, children: Make) -> None:
    """A ModelDeployment that is made again under its old name isn't in conflict with what is left of the old one."""
    made = children()
    made["Service"]["metadata"]["ownerReferences"][0]["uid"] = "uid-0"
    verdict, state = decide_serving(serving(children=made, model=FIXED))
    assert (findings(verdict)["Ready"], state) == (("False", "WaitingForCleanup"), "Waiting")
    assert (verdict.apply, verdict.requeue) == ((), 2)


@pytest.mark.parametrize("field", ["digest", "version", "none"])
def test_only_what_we_made_is_believed_unasked(serving: Make, children: Make, field: str) -> None:
    """A digest that somebody put into the live Deployment isn't taken for one that was decided on."""
    live = children()["Deployment"]
    (container,) = live["spec"]["template"]["spec"]["containers"]
    changed = {"digest": ("CLOZE_MODEL_DIGEST", OTHER), "version": ("CLOZE_MODEL_URI", "models:/spam/4")}.get(field)
    container["env"] = [
        {**entry, "value": changed[1]} if changed and entry["name"] == changed[0] else entry
        for entry in container["env"]
    ]
    snapshot = serving()
    found = intact_version(live, snapshot.resource, snapshot.deployment, snapshot.platform)
    assert found == (ServedVersion("spam", "3", DIGEST) if field == "none" else None)
    if field == "digest":
        verdict, _ = decide_serving(serving(children={**children(), "Deployment": live}, model=FIXED))
        assert [manifest["kind"] for manifest in verdict.apply] == ["Deployment"]
        assert verdict.status["desired"]["digest"] == DIGEST


def test_drift_is_put_right(serving: Make, children: Make) -> None:
    """What somebody changed by hand is applied again."""
    made = children()
    made["Deployment"]["spec"] = {**made["Deployment"]["spec"], "replicas": 7}
    verdict, _ = decide_serving(serving(children=made, model=FIXED))
    assert [manifest["kind"] for manifest in verdict.apply] == ["Deployment"]


def test_child_that_is_going_is_waited_for(serving: Make, children: Make) -> None:
    """Applying to an object that is going would be lost with it."""
    made = children()
    made["Service"]["metadata"]["deletionTimestamp"] = "2026-03-01T11:59:00Z"
    verdict, _ = decide_serving(serving(children=made, model=FIXED))
    assert (verdict.apply, verdict.requeue) == ((), 2)


def test_deleted_resource_is_left_to_the_garbage_collector(serving: Make) -> None:
    """Nothing is applied for a resource that is going."""
    snapshot = serving(model=FIXED)
    snapshot.resource["metadata"] = {**snapshot.resource["metadata"], "deletionTimestamp": "2026-03-01T11:00:00Z"}
    verdict, _ = decide_serving(snapshot)
    assert (verdict.apply, verdict.requeue) == ((), None)


def test_unreadable_spec_is_refused(serving: Make) -> None:
    """A spec that this operator can't read is reported, and nothing is made of it."""
    verdict, state = decide_serving(serving(deployment=None, invalid="spec.model: Field required"))
    assert (findings(verdict)["Accepted"], state) == (("False", "InvalidSpec"), "Invalid")


# ---------------------------------------------------------------- readiness


def test_ready_counts_pods_of_the_wanted_version(serving: Make, children: Make, server: Make) -> None:
    """All replicas up to date and ready, and each says that it has loaded what is wanted."""
    spec = {"replicas": 2}
    loaded = {"s-0": Loaded("3", DIGEST), "s-1": Loaded("3", DIGEST)}
    pods = (server("s-0"), server("s-1"))
    verdict, state = decide_serving(serving(spec=spec, children=children(spec=spec, up=2), pods=pods, loaded=loaded))
    assert (state, findings(verdict)["Ready"]) == ("Ready", ("True", "AllReplicasReady"))
    assert findings(verdict)["Progressing"] == ("False", "RolloutComplete")
    assert verdict.status["loaded"] == [{"version": "3", "readyPods": 2}]
    assert (verdict.status["replicas"], verdict.status["readyReplicas"], verdict.status["updatedReplicas"]) == (2, 2, 2)


@pytest.mark.parametrize("loaded", [Loaded("2", DIGEST), Loaded("3", OTHER)])
def test_pod_that_has_loaded_something_else_is_not_ready(
    serving: Make, children: Make, server: Make, loaded: Loaded
) -> None:
    """The pod's own word counts more than what it was made for."""
    verdict, _ = decide_serving(serving(children=children(), pods=(server(),), loaded={"s-0": loaded}))
    assert findings(verdict)["Ready"] == ("False", "VersionMismatch")
    assert verdict.status["loaded"] == [{"version": loaded.version, "readyPods": 1}]


def test_what_keeps_a_server_from_loading_is_said(serving: Make, children: Make, server: Make) -> None:
    """The pod runs and isn't ready; its own words tell more than a count of replicas."""
    waiting = server(conditions={"Ready": "False"})
    said = {"s-0": HeldUp("RegistryUnavailable", "MLflow doesn't answer")}
    verdict, _ = decide_serving(serving(children=children(up=0), pods=(waiting,), held_up=said))
    assert findings(verdict)["Ready"] == ("False", "RegistryUnavailable")
    assert verdict.findings["Ready"].message == "s-0: MLflow doesn't answer"
    assert verdict.requeue is not None


def test_silent_pod_claims_nothing(serving: Make, children: Make, server: Make) -> None:
    """A ready pod that doesn't answer serves what it was made for; that it has loaded it, nobody has said."""
    verdict, state = decide_serving(serving(children=children(), pods=(server(),)))
    assert (state, verdict.status["loaded"]) == ("Ready", [])
    assert "1 didn't say so" in verdict.findings["Ready"].message


@pytest.mark.parametrize(
    "status",
    [{"observedGeneration": 0}, {"updatedReplicas": 0}, {"availableReplicas": 0}, {"replicas": 2}],
)
def test_rollout_in_progress_is_not_ready(serving: Make, children: Make, server: Make, status: Document) -> None:
    """Each number that the Deployment's controller still has to reach keeps Ready False."""
    verdict, state = decide_serving(serving(children=children(status=status), pods=(server(),)))
    assert (findings(verdict)["Ready"], state) == (("False", "RollingOut"), "RollingOut")
    assert findings(verdict)["Progressing"] == ("True", "RollingOut")


def test_new_version_is_not_ready_before_it_is_applied(serving: Make, children: Make, server: Make) -> None:
    """The old version's complete rollout doesn't count for the new one."""
    snapshot = serving(spec=FOLLOW, children=children(spec=FOLLOW), pods=(server(),), model=Version("spam", "4", OTHER))
    verdict, _ = decide_serving(snapshot)
    assert findings(verdict)["Ready"] == ("False", "RollingOut")
    assert verdict.alias is None


def test_crash_loop_is_never_ready(serving: Make, children: Make, server: Make, moment: Make) -> None:
    """Not even while the container happens to run; the server's own reason is passed on."""
    last = {"terminated": {"exitCode": 10, "message": '{"reason": "DigestMismatch"}', "finishedAt": moment(-5)}}
    crashed = server(state={"running": {}}, last=last, restarts=4)
    verdict, state = decide_serving(serving(children=children(), pods=(crashed,)))
    assert (findings(verdict)["Ready"], state) == (("False", "CrashLoopBackOff"), "Failing")
    assert "DigestMismatch" in verdict.findings["Ready"].message
    assert verdict.requeue == 10.0


def test_trouble_of_a_pod_is_passed_on(serving: Make, children: Make, server: Make, pod: Make) -> None:
    """A pod that can't pull its image is the reason."""
    stuck = pod("s-1", "Pending", state={"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})
    verdict, _ = decide_serving(serving(children=children(status={"replicas": 2}), pods=(server(), stuck)))
    assert findings(verdict)["Ready"] == ("False", "ImagePullBackOff")


def test_refused_pods_are_said(serving: Make, children: Make) -> None:
    """A quota shows in the Deployment's own condition alone."""
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}
    verdict, _ = decide_serving(serving(children=children(up=0, status={"conditions": [refused]})))
    found = verdict.findings["Ready"]
    assert (found.status, found.reason, found.message) == ("False", "FailedCreate", "exceeded quota")


def test_pod_that_is_being_created_is_looked_at_again(serving: Make, children: Make, server: Make, pod: Make) -> None:
    """Time alone makes it one that hangs, and no event tells of time."""
    stuck = pod("s-1", "Pending", state={"waiting": {"reason": "ContainerCreating"}})
    verdict, _ = decide_serving(serving(children=children(up=0), pods=(stuck,)))
    assert verdict.requeue == 10.0


def test_stuck_rollout_is_said(serving: Make, children: Make) -> None:
    """The Deployment's own deadline ends Progressing."""
    stuck = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "too slow"}
    verdict, state = decide_serving(serving(children=children(up=0, status={"conditions": [stuck]})))
    assert (findings(verdict)["Progressing"], state) == (("False", "ProgressDeadlineExceeded"), "Failing")


def test_nothing_is_ready_at_zero_replicas(serving: Make, children: Make) -> None:
    """Ready means that requests are answered."""
    spec = {"replicas": 0}
    verdict, state = decide_serving(serving(spec=spec, children=children(spec=spec, up=0)))
    assert (findings(verdict)["Ready"], state) == (("False", "NoReplicas"), "Stopped")


# ---------------------------------------------------------------- the alias


@pytest.mark.parametrize(
    ("alias", "moved", "move"),
    [
        (NotFound("unset"), ("False", "MovingAlias"), AliasMove("spam", "champion", "3", None, "AliasMoved")),
        (Version("spam", "2", ""), ("False", "MovingAlias"), AliasMove("spam", "champion", "3", "2", "AliasMoved")),
        (Version("spam", "8", ""), ("False", "MovingAlias"), AliasMove("spam", "champion", "3", "8", "AliasMoved")),
        (Version("spam", "3", ""), ("True", "Version3"), None),
        (Unavailable("down"), ("Unknown", "RegistryUnavailable"), None),
        (None, None, None),
    ],
)
def test_alias_follows_the_rollout(
    serving: Make, children: Make, server: Make, *, alias: Answer, moved: tuple[str, str] | None, move: AliasMove | None
) -> None:
    """After a complete rollout the alias goes to what is served, up or down, from where it was seen to be."""
    snapshot = serving(spec=FOLLOW, children=children(spec=FOLLOW), pods=(server(),), model=FIXED, alias=alias)
    verdict, _ = decide_serving(snapshot)
    assert findings(verdict).get("AliasMoved") == moved
    assert verdict.alias == move


def test_alias_waits_for_readiness(serving: Make, children: Make) -> None:
    """No promotion of what isn't serving."""
    snapshot = serving(spec=FOLLOW, children=children(spec=FOLLOW, up=0), model=FIXED, alias=NotFound("unset"))
    assert decide_serving(snapshot)[0].alias is None


def test_younger_rival_leaves_the_alias_alone(serving: Make, children: Make, server: Make) -> None:
    """It serves, is Ready, and names the one that moves the alias."""
    snapshot = serving(
        spec=FOLLOW,
        children=children(spec=FOLLOW),
        pods=(server(),),
        model=FIXED,
        alias=NotFound("unset"),
        rivals=("prod/spam",),
    )
    verdict, state = decide_serving(snapshot)
    assert findings(verdict)["AliasConflict"] == ("True", "AliasOwnedByAnother")
    assert "prod/spam" in verdict.findings["AliasConflict"].message
    assert (verdict.alias, state) == (None, "Ready")


def test_resolved_conflict_is_taken_away(serving: Make) -> None:
    """The condition is there only while there is a conflict."""
    old = {"type": "AliasConflict", "status": "True", "reason": "X", "lastTransitionTime": "2026-03-01T11:00:00Z"}
    verdict, _ = decide_serving(serving(spec=FOLLOW, model=FIXED, status={"conditions": [old]}))
    assert "AliasConflict" not in verdict.findings
