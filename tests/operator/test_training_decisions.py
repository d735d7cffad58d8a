"""Every branch of the decision about a training job."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from cloze_api.progress import Progress
from cloze_api.training_status import METRICS_MAX
from cloze_operator.decide.answers import Answer, NotFound, Unavailable, Version
from cloze_operator.decide.run import progress_status
from cloze_operator.decide.training import decide_training, expire
from cloze_operator.decide.verdict import AliasMove, Finding, Verdict, event_of, render_status, transition_events
from cloze_operator.desired.origins import Origins, ResolvedModel
from cloze_operator.desired.platform import Platform
from cloze_operator.desired.training import claim, config_map, indexed_job, service

Document = dict[str, Any]
Make = Callable[..., Any]

DIGEST = "sha256:" + "a" * 64
OTHER_DIGEST = "sha256:" + "b" * 64
STARTED = {"startTime": "2026-03-01T11:30:00Z"}
ALIAS_MOVE = AliasMove("encoder", "challenger", "4", None, "Registered")


def condition(kind: str, status: str, reason: str = "Reason") -> Document:
    return {"type": kind, "status": status, "reason": reason, "lastTransitionTime": "2026-03-01T11:00:00Z"}


def job_ended(kind: str, reason: str = "", message: str = "") -> Document:
    """A Job's status after its end."""
    return {
        "startTime": "2026-03-01T11:30:00Z",
        "conditions": [
            {
                "type": kind,
                "status": "True",
                "reason": reason,
                "message": message,
                "lastTransitionTime": "2026-03-01T11:59:00Z",
            }
        ],
    }


@pytest.fixture
def children(training: Make, live: Make) -> Make:
    """The live children of a snapshot's job, as if just made."""

    def make(kind: str = "PretrainJob", spec: Document | None = None, job_status: Document | None = None) -> Document:
        snapshot = training(kind, spec=spec)
        owner, job, platform = snapshot.resource, snapshot.job, snapshot.platform
        origins = Origins(base=ResolvedModel("encoder", "4", DIGEST) if kind == "FineTuneJob" else None)
        made = [
            claim(owner, job),
            config_map(owner, job, origins),
            service(owner, job),
            indexed_job(owner, job, origins, platform),
        ]
        statuses = {"Job": job_status or {}}
        return {manifest["kind"]: live(manifest, status=statuses.get(manifest["kind"])) for manifest in made}

    return make


def findings(verdict: Any) -> dict[str, tuple[str, str]]:
    return {kind: (found.status, found.reason) for kind, found in verdict.findings.items()}


def applied(verdict: Any) -> list[str]:
    return [manifest["kind"] for manifest in verdict.apply]


# ---------------------------------------------------------------- before the start


def test_first_look_starts_the_run(training: Make) -> None:
    """The start is written before the first pod is wanted, then all children are applied, the Job last."""
    verdict, state = decide_training(training())
    assert applied(verdict) == ["PersistentVolumeClaim", "ConfigMap", "Service", "Job"]
    assert (verdict.start, verdict.status["startTime"], state) == (True, "2026-03-01T12:00:00Z", "Pending")
    assert findings(verdict)["SourcesReady"] == ("True", "SourcesFound")


EPHEMERAL: Document = {
    "topology": {"nodes": 1},
    "storage": {"ephemeral": True},
    "checkpoint": {"uri": "s3://runs/cloze"},
}


def test_a_run_on_its_pods_own_disk_has_no_claim(training: Make, children: Make) -> None:
    """None is made; one that was made before the spec was changed goes, and nobody waits for it."""
    verdict, _ = decide_training(training(spec=EPHEMERAL))
    assert applied(verdict) == ["ConfigMap", "Service", "Job"]
    assert verdict.start
    made = children(spec=EPHEMERAL)
    verdict, _ = decide_training(training(spec=EPHEMERAL, children=made, status=STARTED))
    assert [(target.kind, target.name) for target in verdict.delete] == [("PersistentVolumeClaim", "run-pretrain-run")]
    del made["PersistentVolumeClaim"]
    verdict, _ = decide_training(training(spec=EPHEMERAL, children=made, status=STARTED))
    assert (verdict.apply, verdict.delete) == ((), ())


def test_suspended_job_gets_its_children_and_no_start(training: Make) -> None:
    """A job that is created suspended may still be changed."""
    verdict, _ = decide_training(training(spec={"suspend": True}))
    assert applied(verdict) == ["PersistentVolumeClaim", "ConfigMap", "Service", "Job"]
    assert not verdict.start
    assert "startTime" not in verdict.status


def test_deleted_resource_is_left_to_the_garbage_collector(training: Make) -> None:
    """Nothing is applied for a resource that is going."""
    snapshot = training()
    snapshot.resource["metadata"] = {**snapshot.resource["metadata"], "deletionTimestamp": "2026-03-01T11:00:00Z"}
    verdict, _ = decide_training(snapshot)
    assert (verdict.apply, verdict.delete, verdict.requeue) == ((), (), None)


def test_no_gang_begins_beside_the_last_pods_of_another(training: Make, children: Make) -> None:
    """Whoever has deleted the Job: its pods may be saving a checkpoint."""
    left = {kind: child for kind, child in children().items() if kind != "Job"}
    verdict, state = decide_training(training(status=STARTED, children=left, leaving=("run-pretrain-0-xyz",)))
    assert (verdict.apply, state, verdict.requeue) == ((), "Waiting", 2)
    assert findings(verdict)["Running"] == ("False", "WaitingForPods")
    assert "haven't ended: run-pretrain-0-xyz; delete them" in verdict.findings["Running"].message
    verdict, _ = decide_training(training(status=STARTED, children=left))
    assert applied(verdict) == ["Job"]


def test_unreadable_spec_is_refused(training: Make) -> None:
    """A spec that this operator can't read is reported, and nothing is made of it."""
    verdict, state = decide_training(training(job=None, invalid="spec.corpus: Field required"))
    assert findings(verdict)["Accepted"] == ("False", "InvalidSpec")
    assert (verdict.apply, state) == ((), "Invalid")


def test_foreign_child_is_a_conflict(training: Make) -> None:
    """An object with a child's name and no owner is neither edited nor used."""
    foreign = {"kind": "Service", "metadata": {"name": "run-pretrain", "uid": "x"}}
    verdict, state = decide_training(training(children={"Service": foreign}))
    assert findings(verdict)["Accepted"] == ("False", "NameConflict")
    assert (verdict.apply, state) == ((), "Invalid")


@pytest.mark.parametrize(
    "metadata",
    [
        {"deletionTimestamp": "2026-03-01T11:59:00Z"},
        {"ownerReferences": [{"kind": "PretrainJob", "name": "run", "uid": "uid-0", "controller": True}]},
    ],
)
def test_children_of_an_earlier_resource_are_waited_for(training: Make, metadata: Document) -> None:
    """A resource that is made again under its old name isn't at fault: what is left of the old one goes by itself."""
    old = {"kind": "Service", "metadata": {"name": "run-pretrain", "uid": "x", **metadata}}
    verdict, state = decide_training(training(children={"Service": old}))
    assert findings(verdict)["Running"] == ("False", "WaitingForCleanup")
    assert "Service run-pretrain" in verdict.findings["Running"].message
    assert (verdict.apply, verdict.delete, state, verdict.requeue) == ((), (), "Waiting", 2)


@pytest.mark.parametrize(
    ("mode", "nodes", "said"), [("ReadWriteOnce", 2, True), ("ReadWriteOnce", 1, False), ("ReadWriteMany", 2, False)]
)
def test_pinning_is_said(training: Make, mode: str, nodes: int, said: bool) -> None:
    """The status tells when a volume forces all pods to one machine."""
    verdict, _ = decide_training(training(spec={"storage": {"accessMode": mode}, "topology": {"nodes": nodes}}))
    assert ("pinned to one machine" in verdict.findings["Accepted"].message) == said


def test_missing_source_is_waited_for(training: Make) -> None:
    """No child is made before the sources exist."""
    verdict, state = decide_training(training(missing=("ConfigMap x doesn't exist",)))
    assert findings(verdict)["SourcesReady"] == ("False", "SourceNotFound")
    assert verdict.findings["Succeeded"].reason == "WaitingForSources"
    assert (verdict.apply, state, verdict.requeue) == ((), "Waiting", 10.0)


@pytest.mark.parametrize(
    ("base_job", "reason"),
    [
        (None, "PretrainJobNotFound"),
        ({"status": {"conditions": [condition("Succeeded", "False")]}}, "PretrainJobFailed"),
        ({"status": {"conditions": [condition("Succeeded", "Unknown")]}}, "WaitingForPretrainJob"),
    ],
)
def test_fine_tuning_waits_for_a_pretrain_job(training: Make, base_job: Document | None, reason: str) -> None:
    """The condition says what it waits for."""
    verdict, state = decide_training(training("FineTuneJob", base_job=base_job))
    assert findings(verdict)["BaseReady"] == ("False", reason)
    assert (verdict.apply, state) == ((), "Waiting")


def test_base_comes_from_the_pretrain_job(training: Make) -> None:
    """The version that the PretrainJob registered is the base."""
    model = {"name": "encoder", "version": "4", "digest": DIGEST, "runId": ""}
    verdict, _ = decide_training(training("FineTuneJob", base_job={"status": {"model": model}}))
    assert findings(verdict)["BaseReady"] == ("True", "BaseResolved")
    assert "version: '4'" in verdict.apply[1]["data"]["job.yaml"]


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (Version("hub", "2", DIGEST), "True", "BaseResolved"),
        (Version("hub", "2", ""), "False", "DigestMissing"),
        (NotFound("no such model"), "False", "ModelNotFound"),
        (Unavailable("down"), "False", "RegistryUnavailable"),
        (None, "False", "RegistryUnavailable"),
    ],
)
def test_base_comes_from_the_registry(training: Make, answer: Answer, status: str, reason: str) -> None:
    """A version without a digest is no base, and a registry that is away is waited for."""
    spec = {"base": {"model": {"name": "hub", "alias": "champion"}}}
    verdict, _ = decide_training(training("FineTuneJob", spec=spec, base=answer))
    assert findings(verdict)["BaseReady"] == (status, reason)
    assert bool(verdict.apply) == (status == "True")


@pytest.mark.parametrize("place", ["base", "tokenizer"])
@pytest.mark.parametrize(
    ("answer", "ready"),
    [(Version("hub", "2", DIGEST), ("True", "BaseResolved")), (Unavailable("down"), ("False", "RegistryUnavailable"))],
)
def test_pretraining_waits_for_what_it_takes_from_the_registry(
    training: Make, place: str, answer: Answer, ready: tuple[str, str]
) -> None:
    """A base or a tokenizer alone: the pods read an exact version, with its digest in their environment."""
    named = {"model": {"name": "hub", "alias": "champion"}}
    spec = {place: named if place == "base" else {"reuse": named}}
    verdict, _ = decide_training(training("PretrainJob", spec=spec, base=answer))
    assert findings(verdict)["BaseReady"] == ready
    made = {manifest["kind"]: manifest for manifest in verdict.apply}
    assert bool(made) == (ready[0] == "True")
    if made:
        read = yaml.safe_load(made["ConfigMap"]["data"]["job.yaml"])["spec"][place]
        assert (read if place == "base" else read["reuse"]) == {"model": {"name": "hub", "version": "2"}}
        (container,) = made["Job"]["spec"]["template"]["spec"]["containers"]
        assert {"name": "CLOZE_BASE_DIGEST", "value": DIGEST} in container["env"]


def test_folder_of_a_base_is_mounted_with_its_credentials(training: Make) -> None:
    """A claim that holds models is a source like another; a store's Secret is mounted."""
    verdict, _ = decide_training(training("PretrainJob", spec={"base": {"uri": "pvc://models/bert"}}))
    made = {manifest["kind"]: manifest for manifest in verdict.apply}
    volumes = made["Job"]["spec"]["template"]["spec"]["volumes"]
    assert {"claimName": "models"} in [volume.get("persistentVolumeClaim") for volume in volumes]
    assert "BaseReady" not in verdict.findings
    spec = {"tokenizer": {"reuse": {"uri": "s3://models/bert", "credentials": {"secretName": "store"}}}}
    verdict, _ = decide_training(training("PretrainJob", spec=spec))
    made = {manifest["kind"]: manifest for manifest in verdict.apply}
    volumes = made["Job"]["spec"]["template"]["spec"]["volumes"]
    assert "store" in [volume["secret"]["secretName"] for volume in volumes if "secret" in volume]


def test_fine_tuning_from_a_folder_waits_for_nothing(training: Make) -> None:
    """Neither for a PretrainJob nor the registry: the claim or the Secret is mounted, and the pods read the URI."""
    verdict, _ = decide_training(training("FineTuneJob", spec={"base": {"uri": "pvc://models/bert"}}))
    made = {manifest["kind"]: manifest for manifest in verdict.apply}
    volumes = made["Job"]["spec"]["template"]["spec"]["volumes"]
    assert {"claimName": "models"} in [volume.get("persistentVolumeClaim") for volume in volumes]
    assert yaml.safe_load(made["ConfigMap"]["data"]["job.yaml"])["spec"]["base"] == {"uri": "pvc://models/bert"}
    assert "BaseReady" not in verdict.findings
    spec = {"base": {"uri": "hf://owner/name", "credentials": {"secretName": "hub"}}}
    verdict, _ = decide_training(training("FineTuneJob", spec=spec))
    made = {manifest["kind"]: manifest for manifest in verdict.apply}
    volumes = made["Job"]["spec"]["template"]["spec"]["volumes"]
    assert "hub" in [volume["secret"]["secretName"] for volume in volumes if "secret" in volume]


def test_resolution_is_read_back(training: Make, children: Make) -> None:
    """A base that was resolved stays, though its PretrainJob is gone."""
    verdict, _ = decide_training(training("FineTuneJob", children=children("FineTuneJob"), status=STARTED))
    assert findings(verdict)["BaseReady"] == ("True", "BaseResolved")
    assert verdict.apply == ()


def test_alias_is_not_frozen_before_the_start(training: Make, children: Make) -> None:
    """A suspended job that is let go later starts from what its alias points to by then."""
    spec = {"suspend": True, "base": {"model": {"name": "hub", "alias": "champion"}}}
    made = children("FineTuneJob", spec=spec)
    verdict, _ = decide_training(
        training("FineTuneJob", children=made, spec=spec, base=Version("hub", "5", DIGEST), alias=None)
    )
    assert "version 5" in verdict.findings["BaseReady"].message
    assert [target.kind for target in verdict.delete] == ["Job"]


def test_changed_base_is_resolved_anew_before_the_start(training: Make, children: Make) -> None:
    """A resolution of another `spec.base` doesn't count while nothing has started."""
    made = children("FineTuneJob", spec={"suspend": True})
    spec = {"suspend": True, "base": {"pretrainJob": {"name": "other"}}}
    verdict, _ = decide_training(training("FineTuneJob", children=made, spec=spec))
    assert findings(verdict)["BaseReady"] == ("False", "PretrainJobNotFound")


def test_a_base_that_is_no_longer_asked_for_is_not_waited_for(training: Make) -> None:
    """A condition of a former spec doesn't hold up the one of now."""
    status = {"conditions": [condition(kind, "False", "ModelNotFound") for kind in ("BaseReady", "TeacherReady")]}
    verdict, _ = decide_training(training("PretrainJob", status=status))
    assert not {"BaseReady", "TeacherReady"} & verdict.findings.keys()
    assert "Job" in applied(verdict)


# ---------------------------------------------------------------- teacher

DISTILLED = {
    "base": {"model": {"name": "hub", "version": "1"}},
    "distillation": {"teacher": {"model": {"name": "large", "alias": "champion"}}, "weight": 0.7},
}


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (Version("large", "6", OTHER_DIGEST), "True", "TeacherResolved"),
        (Version("large", "6", ""), "False", "DigestMissing"),
        (NotFound("no such alias"), "False", "ModelNotFound"),
        (Unavailable("down"), "False", "RegistryUnavailable"),
    ],
)
def test_distillation_waits_for_its_teacher(training: Make, answer: Answer, status: str, reason: str) -> None:
    """There is no pod before there is a teacher; then all pods read the one version behind its alias."""
    verdict, state = decide_training(
        training("FineTuneJob", spec=DISTILLED, base=Version("hub", "1", DIGEST), teacher=answer)
    )
    assert findings(verdict)["TeacherReady"] == (status, reason)
    assert findings(verdict)["BaseReady"] == ("True", "BaseResolved")
    if status == "False":
        assert findings(verdict)["Succeeded"] == ("Unknown", "WaitingForTeacher")
        assert (verdict.apply, state, verdict.requeue) == ((), "Waiting", 10.0)
        return
    made = {manifest["kind"]: manifest for manifest in verdict.apply}
    read = yaml.safe_load(made["ConfigMap"]["data"]["job.yaml"])["spec"]
    assert read["distillation"] == {"teacher": {"model": {"name": "large", "version": "6"}}, "weight": 0.7}
    assert read["base"] == {"model": {"name": "hub", "version": "1"}}
    (container,) = made["Job"]["spec"]["template"]["spec"]["containers"]
    assert {"name": "CLOZE_TEACHER_DIGEST", "value": OTHER_DIGEST} in container["env"]
    assert {"name": "CLOZE_BASE_DIGEST", "value": DIGEST} in container["env"]


def test_both_the_base_and_the_teacher_are_told_of_while_either_is_waited_for(training: Make) -> None:
    """Who has to register two models hears of both at once."""
    verdict, _ = decide_training(
        training("FineTuneJob", spec=DISTILLED, base=NotFound("no base"), teacher=NotFound("no teacher"))
    )
    told = {kind: verdict.findings[kind].message for kind in ("BaseReady", "TeacherReady")}
    assert told == {
        "BaseReady": "no base: register it, or name another base",
        "TeacherReady": "no teacher: register it, or name another teacher",
    }
    assert findings(verdict)["Running"] == ("False", "WaitingForBase")


def test_a_teachers_alias_counts_no_longer_after_the_start(training: Make, live: Make) -> None:
    """The run keeps to the version that it has started with, also when its Job has to be made again."""
    new = training("FineTuneJob", spec=DISTILLED)
    origins = Origins(base=ResolvedModel("hub", "1", DIGEST), teacher=ResolvedModel("large", "6", OTHER_DIGEST))
    kept = {"ConfigMap": live(config_map(new.resource, new.job, origins))}
    moved = Version("large", "7", DIGEST)
    verdict, _ = decide_training(
        training("FineTuneJob", spec=DISTILLED, children=kept, status=STARTED, base=None, teacher=moved)
    )
    assert "version 6" in verdict.findings["TeacherReady"].message
    (job,) = [manifest for manifest in verdict.apply if manifest["kind"] == "Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert {"name": "CLOZE_TEACHER_DIGEST", "value": OTHER_DIGEST} in container["env"]


# ---------------------------------------------------------------- children


def test_nothing_is_applied_when_nothing_has_changed(training: Make, children: Make) -> None:
    """Children that are as they should be are left alone."""
    verdict, _ = decide_training(training(children=children(), status=STARTED))
    assert (verdict.apply, verdict.change, verdict.delete) == ((), (), ())


def test_outdated_job_is_replaced_before_the_start(training: Make, children: Make) -> None:
    """What can't be changed in place is deleted, and nothing else happens until it is gone."""
    made = children(spec={"suspend": True})
    verdict, _ = decide_training(training(children=made, spec={"suspend": True, "topology": {"nodes": 3}}))
    assert [(target.kind, target.uid) for target in verdict.delete] == [("Job", "uid-Job")]
    assert (verdict.apply, verdict.start) == ((), False)


def test_new_default_image_does_not_touch_a_running_job(training: Make, children: Make) -> None:
    """After the start the Job stays what it is, whatever the installation says now."""
    platform = Platform(train_image="train:2", serve_image="serve:2", tracking_uri="http://other")
    verdict, _ = decide_training(training(children=children(), status=STARTED, platform=platform))
    assert (verdict.apply, verdict.delete) == ((), ())


def test_child_that_is_going_is_waited_for(training: Make, children: Make, live: Make) -> None:
    """Applying to an object that is going would be lost with it."""
    made = children()
    made["Job"]["metadata"]["deletionTimestamp"] = "2026-03-01T11:59:00Z"
    verdict, _ = decide_training(training(children=made, status=STARTED))
    assert (verdict.apply, verdict.delete, verdict.requeue) == ((), (), 2)


def test_claim_that_is_going_does_not_disturb_the_run(training: Make, children: Make, pod: Make) -> None:
    """A claim in use goes only after its pods: the run is still said to run."""
    made = children()
    made["PersistentVolumeClaim"]["metadata"]["deletionTimestamp"] = "2026-03-01T11:59:00Z"
    verdict, _ = decide_training(training(children=made, status=STARTED, pods=(pod("a"), pod("b"))))
    assert findings(verdict)["Running"] == ("True", "PodsRunning")


def test_deleted_job_is_made_again(training: Make, children: Make) -> None:
    """A Job that somebody deleted is made again; the run goes on from its checkpoint."""
    made = children()
    del made["Job"]
    verdict, _ = decide_training(training(children=made, status=STARTED))
    assert applied(verdict) == ["Job"]
    assert not verdict.start


def test_mutable_fields_follow_the_resource(training: Make, children: Make) -> None:
    """Suspension, deadline and restarts are set on the Job that exists."""
    spec = {"suspend": True, "activeDeadlineSeconds": 60, "failurePolicy": {"maxRestarts": 5}}
    verdict, state = decide_training(training(children=children(), status=STARTED, spec=spec))
    (change,) = verdict.change
    assert change.spec == {"suspend": True, "activeDeadlineSeconds": 60, "backoffLimit": 11}
    assert (state, findings(verdict)["Running"]) == ("Suspended", ("False", "Suspended"))


# ---------------------------------------------------------------- while it runs


def test_all_pods_running(training: Make, children: Make, pod: Make) -> None:
    """Running is True when every pod of the gang runs, and only then."""
    two, one = (pod("a"), pod("b")), (pod("a"), pod("b", "Pending"))
    verdict, state = decide_training(training(children=children(), status=STARTED, pods=two))
    assert (findings(verdict)["Running"], state) == (("True", "PodsRunning"), "Running")
    assert verdict.requeue == 3.0
    verdict, state = decide_training(training(children=children(), status=STARTED, pods=one))
    assert (findings(verdict)["Running"], state) == (("False", "PodsPending"), "Pending")
    verdict, _ = decide_training(training(children=children(), status=STARTED, pods=(pod("a"), pod("b", going=True))))
    assert findings(verdict)["Running"] == ("False", "PodsPending")


def test_trouble_is_shown_where_people_look(training: Make, children: Make, pod: Make) -> None:
    """The reason stands in both conditions, since the printer's column shows Succeeded."""
    stuck = pod("a", "Pending", state={"waiting": {"reason": "ErrImagePull", "message": "not found"}})
    verdict, _ = decide_training(training(children=children(), status=STARTED, pods=(stuck,)))
    assert findings(verdict)["Running"] == ("False", "ErrImagePull")
    assert findings(verdict)["Succeeded"] == ("Unknown", "ErrImagePull")


def test_job_without_pods_is_noticed(training: Make, children: Make) -> None:
    """A quota that refuses pods shows only in the Job's events: the status says where to look."""
    verdict, _ = decide_training(training(children=children(), status=STARTED))
    assert findings(verdict)["Running"] == ("False", "NoPods")


@pytest.mark.parametrize(
    ("gang", "reason", "part"),
    [((0,), "NoPods", "created 1 of 2 pods"), ((0, 1), "PodsPending", "0 of 2"), ((), "NoPods", "created no pods")],
)
def test_refused_pods_are_noticed(
    training: Make, children: Make, pod: Make, *, gang: tuple[int, ...], reason: str, part: str
) -> None:
    """Neither a gang that lacks all its pods nor one that lacks some is merely pending."""
    pods = tuple(pod(f"run-{index}", "Pending", index=index) for index in gang)
    verdict, _ = decide_training(training(children=children(), status=STARTED, pods=pods))
    assert findings(verdict)["Running"] == ("False", reason)
    assert part in verdict.findings["Running"].message


def test_restarts_are_counted_told_and_limited(training: Make, children: Make, ended: Make) -> None:
    """A failed gang uses one restart, with an event; a gang that has used them up makes the Job end."""
    failed = (ended("a", 20, -40, created=-90), ended("b", 20, -39, created=-90))
    verdict, _ = decide_training(training(children=children(), status=STARTED, pods=failed))
    assert (verdict.status["restarts"], verdict.change) == (1, ())
    assert [event.reason for event in verdict.events] == ["PodFailed"]
    spec = {"failurePolicy": {"maxRestarts": 0}}
    verdict, _ = decide_training(training(children=children(spec=spec), status=STARTED, pods=failed, spec=spec))
    assert [change.spec for change in verdict.change] == [{"backoffLimit": 0}]
    assert verdict.status["restarts"] == 0


def test_reported_restarts_are_not_forgotten(training: Make, children: Make, pod: Make) -> None:
    """Pods that are gone still count, and counting twice emits no second event."""
    status = {**STARTED, "restarts": 2}
    verdict, _ = decide_training(training(children=children(), status=status, pods=(pod("a"), pod("b"))))
    assert (verdict.status["restarts"], verdict.events) == (2, ())


@pytest.mark.parametrize(
    ("counted", "restarts"),
    [(None, 3), (-60, 3), (-39, 2)],
)
def test_each_failure_is_counted_once(
    training: Make, children: Make, ended: Make, moment: Make, *, counted: float | None, restarts: int
) -> None:
    """A failure adds to those whose pods, or whose Job, are gone; one that was counted before doesn't."""
    status = {**STARTED, "restarts": 2, **({} if counted is None else {"lastFailureTime": moment(counted)})}
    failed = (ended("a", 20, -40, created=-50), ended("b", 20, -39, created=-50))
    verdict, _ = decide_training(training(children=children(), status=status, pods=failed))
    assert verdict.status["restarts"] == restarts
    assert verdict.status["lastFailureTime"] == moment(-39)


def test_late_end_of_a_counted_attempt_is_counted_with_it(
    training: Make, children: Make, ended: Make, moment: Make
) -> None:
    """A pod that ends after its attempt was counted, and outlives the first one's object, is no attempt of its own."""
    first, late = ended("a", 20, -40, created=-50), ended("b", 20, -35, created=-50)
    status: Document = STARTED
    for gang in ((first,), (first, late), (late,)):
        verdict, _ = decide_training(training(children=children(), status=status, pods=gang))
        status = {**STARTED, **verdict.status}
    assert (status["restarts"], status["lastFailureTime"]) == (1, moment(-35))


def test_used_up_restarts_stay_used_up(training: Make, children: Make, ended: Make) -> None:
    """The failure that is one too many goes on ending the Job at each further look."""
    spec, status = (
        {"failurePolicy": {"maxRestarts": 1}},
        {**STARTED, "restarts": 1, "lastFailureTime": "2026-03-01T11:50:00Z"},
    )
    failed = (ended("a", 20, -40, created=-50), ended("b", 20, -39, created=-50))
    for _ in range(2):
        snapshot = training(children=children(spec=spec), status=status, pods=failed, spec=spec)
        verdict, _ = decide_training(snapshot)
        assert [change.spec for change in verdict.change] == [{"backoffLimit": 0}]
        status = {**STARTED, **verdict.status}


def test_a_limit_below_what_was_used_ends_no_run_that_goes_on(
    training: Make, children: Make, ended: Make, pod: Make, moment: Make
) -> None:
    """Nothing that was counted is forgotten, and the next failure is one too many."""
    spec, running = {"failurePolicy": {"maxRestarts": 1}}, (pod("a-2", index=0), pod("b-2", index=1))
    status = {**STARTED, "restarts": 2, "lastFailureTime": moment(-30)}
    old = (ended("a", 20, -40, created=-50, index=0), ended("b", 20, -39, created=-50, index=1))
    verdict, _ = decide_training(
        training(children=children(spec=spec), status=status, pods=(*old, *running), spec=spec)
    )
    assert {"backoffLimit": 0} not in [change.spec for change in verdict.change]
    assert (verdict.status["restarts"], verdict.events) == (2, ())
    failed = (ended("a-2", 20, -5, created=-20, index=0), ended("b-2", 20, -4, created=-20, index=1))
    verdict, _ = decide_training(training(children=children(spec=spec), status=status, pods=failed, spec=spec))
    assert {"backoffLimit": 0} in [change.spec for change in verdict.change]
    assert verdict.status["restarts"] == 2


def test_interruptions_are_shown_and_told(training: Make, children: Make, ended: Make, pod: Make) -> None:
    """A gang that loses its peers over and over doesn't look like one that simply runs."""
    text = json.dumps({"reason": "PeerLost", "message": "rank 1 is gone"})
    gang = (
        ended("a-1", 22, -90, created=-120, index=0, message=text),
        ended("a-2", 22, -30, created=-80, index=0, message=text),
        pod("a-3", index=0),
        pod("b-1", created=-120, index=1),
    )
    verdict, state = decide_training(training(children=children(), status={**STARTED, "interruptions": 1}, pods=gang))
    assert (state, verdict.status["interruptions"], verdict.status["restarts"]) == ("Running", 2, 0)
    assert "interrupted 2 times (not counted as restarts), the last by PeerLost in a-2" in (
        verdict.findings["Running"].message
    )
    assert [(event.type, event.reason) for event in verdict.events] == [("Warning", "PeerLost")]
    again, _ = decide_training(training(children=children(), status={**STARTED, **verdict.status}, pods=gang))
    assert again.events == ()


def test_registry_that_is_away_at_the_end_is_waited_for(training: Make, children: Make, ended: Make) -> None:
    """The work is done and kept: no restart is used, and the condition says what is waited for."""
    spec = {"failurePolicy": {"maxRestarts": 0}, "topology": {"nodes": 1}}
    text = json.dumps({"reason": "RegistryUnavailable", "message": "MLflow doesn't answer"})
    gang = (ended("a", 21, -5, message=text, index=0),)
    verdict, state = decide_training(training(children=children(spec=spec), status=STARTED, pods=gang, spec=spec))
    assert findings(verdict)["Running"] == ("False", "WaitingForRegistry")
    assert findings(verdict)["Succeeded"] == ("Unknown", "WaitingForRegistry")
    assert (state, verdict.status["restarts"], verdict.change) == ("Waiting", 0, ())


@pytest.mark.parametrize(
    ("pods_going", "checkpoint", "text"),
    [(1, 50, "1 pods are stopping"), (0, 50, "of step 50"), (0, None, "no checkpoint")],
)
def test_suspension_says_what_it_keeps(
    training: Make, children: Make, pod: Make, *, pods_going: int, checkpoint: int | None, text: str
) -> None:
    """A suspended run tells which checkpoint it will go on from."""
    status = {**STARTED, "progress": {"checkpointStep": checkpoint, "totalSteps": 100}}
    gang = tuple(pod(f"p{number}", going=True) for number in range(pods_going))
    verdict, _ = decide_training(training(children=children(), status=status, pods=gang, spec={"suspend": True}))
    assert text in verdict.findings["Running"].message


def test_progress_is_reported(training: Make, children: Make) -> None:
    """The figures of rank 0 are shown, with a summary; a loss that isn't finite is left out of the JSON."""
    progress = Progress(stage="training", step=120, total_steps=400, loss=float("nan"), checkpoint_step=100)
    verdict, _ = decide_training(training(children=children(), status=STARTED, progress=progress))
    assert verdict.status["progress"] == {
        "stage": "training",
        "step": 120,
        "totalSteps": 400,
        "checkpointStep": 100,
        "summary": "120/400 (30%)",
        "updated": "2026-03-01T12:00:00Z",
    }


@pytest.mark.parametrize(
    ("told", "summary"),
    [
        ({}, ""),
        ({"doing": "reading"}, "reading"),
        ({"doing": "reading", "documents": 120}, "reading (120 documents)"),
        ({"doing": "reading", "documents": 120, "done_bytes": 30, "total_bytes": 90}, "reading (33%)"),
        ({"doing": "verifying", "done_bytes": 0, "total_bytes": 0}, "verifying"),
    ],
)
def test_progress_of_the_data_is_reported(training: Make, children: Make, told: dict[str, Any], summary: str) -> None:
    """Before there are steps, the column tells how far the corpus is."""
    progress = Progress.model_validate({"stage": "data", **told})
    verdict, _ = decide_training(training(children=children(), status=STARTED, progress=progress))
    shown = verdict.status["progress"]
    assert shown["summary"] == summary
    names = {"doing": "doing", "documents": "documents", "doneBytes": "done_bytes", "totalBytes": "total_bytes"}
    assert {name: shown[name] for name in names if name in shown} == {
        name: told[field] for name, field in names.items() if field in told
    }


@pytest.mark.parametrize(("updated", "step", "written"), [(-1, 121, False), (-3, 121, True), (-3, 120, False)])
def test_progress_is_throttled(
    training: Make,
    children: Make,
    moment: Make,
    *,
    updated: float,
    step: int,
    written: bool,
) -> None:
    """Not more often than every two seconds, and not when nothing has changed."""
    old = {"stage": "training", "step": 120, "totalSteps": 400, "summary": "120/400 (30%)", "updated": moment(updated)}
    progress = Progress(stage="training", step=step, total_steps=400)
    verdict, _ = decide_training(training(children=children(), status={**STARTED, "progress": old}, progress=progress))
    assert (verdict.status["progress"] != old) == written


# ---------------------------------------------------------------- the end


def test_success_reports_the_version(training: Make, children: Make, ended: Make) -> None:
    """Version, figures and last step come from the rank that registered."""
    text = json.dumps(
        {
            "reason": "Completed",
            "message": "registered",
            "step": 400,
            "model_name": "encoder",
            "model_version": "4",
            "model_digest": DIGEST,
            "run_id": "r",
            "metrics": {"accuracy": 0.5},
        }
    )
    status = {**STARTED, "progress": {"stage": "export", "step": 399, "totalSteps": 400, "etaSeconds": 1}}
    made = children(job_status={**job_ended("Complete"), "completionTime": "2026-03-01T11:58:00Z"})
    gang = (ended("a", 0, message=text), ended("b", 0))
    verdict, state = decide_training(training(children=made, status=status, pods=gang))
    assert (state, findings(verdict)["Succeeded"]) == ("Succeeded", ("True", "Completed"))
    assert verdict.status["model"] == {"name": "encoder", "version": "4", "digest": DIGEST, "runId": "r"}
    assert verdict.status["metrics"] == {"accuracy": 0.5}
    assert verdict.status["progress"] == {"stage": "done", "step": 400, "totalSteps": 400, "summary": "400/400 (100%)"}
    assert verdict.status["completionTime"] == "2026-03-01T11:58:00Z"
    # The alias is asked for at the next look.
    assert (verdict.alias, verdict.requeue) == (None, 0.5)


@pytest.mark.parametrize(
    ("answer", "registered"),
    [
        (Version("encoder", "5", DIGEST, "r"), ("False", "MovingAlias")),
        (Version("encoder", "5", ""), ("False", "DigestMissing")),
        (NotFound("none"), ("False", "VersionNotFound")),
        (Unavailable("down"), ("False", "RegistryUnavailable")),
    ],
)
def test_lost_message_is_looked_up(training: Make, children: Make, answer: Answer, registered: tuple[str, str]) -> None:
    """A run whose pods are gone is found in the registry by its uid."""
    made = children(job_status=job_ended("Complete"))
    snapshot = training(children=made, status=STARTED, registered=answer, alias=NotFound("no alias"))
    verdict, state = decide_training(snapshot)
    assert (state, findings(verdict)["Registered"]) == ("Succeeded", registered)


@pytest.mark.parametrize(
    ("reason", "pod_code", "pod_reason", "expected", "part"),
    [
        ("PodFailurePolicy", 11, "Diverged", "Diverged", "a told"),
        ("BackoffLimitExceeded", 20, "DiskFull", "DiskFull", "all 3 restarts"),
        ("BackoffLimitExceeded", 22, "PeerLost", "BackoffLimitExceeded", "the job controller's words"),
        ("DeadlineExceeded", 23, "Suspended", "DeadlineExceeded", "activeDeadlineSeconds (60 s)"),
    ],
)
def test_failure_has_the_reason_that_helps_most(
    training: Make,
    children: Make,
    ended: Make,
    *,
    reason: str,
    pod_code: int,
    pod_reason: str,
    expected: str,
    part: str,
) -> None:
    """The pod's own reason where it has one, else the Job's; a failure is counted once."""
    made = children(job_status=job_ended("Failed", reason, "the job controller's words"))
    gang = (ended("a", pod_code, message=json.dumps({"reason": pod_reason, "message": "a told"})),)
    spec = {"activeDeadlineSeconds": 60}
    verdict, state = decide_training(training(children=made, status=STARTED, pods=gang, spec=spec))
    assert (state, findings(verdict)["Succeeded"]) == ("Failed", ("False", expected))
    assert part in verdict.findings["Succeeded"].message
    assert verdict.failure == expected
    assert verdict.requeue is None


def test_a_model_that_fails_a_gate_leaves_its_figures(training: Make, children: Make, ended: Make) -> None:
    """Of how good it is the status tells, too."""
    told = {"reason": "GateFailed", "message": "accuracy is 0.5", "exitCode": 13, "metrics": {"accuracy": 0.5}}
    made = children(job_status=job_ended("Failed", "PodFailurePolicy", "words"))
    verdict, state = decide_training(
        training(children=made, status=STARTED, pods=(ended("a", 13, message=json.dumps(told)),))
    )
    assert (state, findings(verdict)["Succeeded"]) == ("Failed", ("False", "GateFailed"))
    assert verdict.status["metrics"] == {"accuracy": 0.5}


@pytest.mark.parametrize(("code", "end"), [(0, "Complete"), (13, "Failed")])
def test_labels_dont_crowd_a_status(training: Make, children: Make, ended: Make, code: int, end: str) -> None:
    """Of more figures than it holds, those that gates are about and the model's own are in it; NaN can't be."""
    figures = {f"f1_label{number}": 0.5 for number in range(90)} | {"macro_f1": 0.4, "zeal": 0.3, "void": math.nan}
    told = {"reason": "Told", "message": "told", "exitCode": code, "metrics": figures}
    told |= {"modelName": "encoder", "modelVersion": "4", "modelDigest": DIGEST}
    verdict, _ = decide_training(
        training(
            children=children(job_status=job_ended(end)),
            status=STARTED,
            pods=(ended("a", code, message=json.dumps(told)),),
            spec={"evaluation": {"gates": [{"figure": "f1_label89", "minimum": 0.1}]}},
        )
    )
    metrics = verdict.status["metrics"]
    assert len(metrics) == METRICS_MAX
    assert metrics.keys() >= {"macro_f1", "zeal", "f1_label89", "f1_label0"}
    assert "void" not in metrics


def test_finished_run_is_never_started_again(training: Make) -> None:
    """Its children may be gone: the end stands."""
    for result in ("True", "False"):
        status = {**STARTED, "conditions": [condition("Succeeded", result), condition("Registered", "True")]}
        verdict, state = decide_training(training(status=status))
        assert (verdict.apply, verdict.failure, verdict.requeue) == ((), None, None)
        assert state == ("Succeeded" if result == "True" else "Failed")


@pytest.mark.parametrize(
    ("alias", "registered", "move"),
    [
        (None, None, None),
        (NotFound("unset"), ("False", "MovingAlias"), AliasMove("encoder", "challenger", "4", None, "Registered")),
        (
            Version("encoder", "3", ""),
            ("False", "MovingAlias"),
            AliasMove("encoder", "challenger", "4", "3", "Registered"),
        ),
        (Version("encoder", "4", ""), ("True", "AliasSet"), None),
        (Version("encoder", "10", ""), ("True", "AliasNewer"), None),
        (Unavailable("down"), ("False", "RegistryUnavailable"), None),
    ],
)
def test_alias_after_success(
    training: Make, alias: Answer, registered: tuple[str, str] | None, move: AliasMove | None
) -> None:
    """It only ever moves up, and Registered is True only when the registry says so itself."""
    model = {"name": "encoder", "version": "4", "digest": DIGEST, "runId": ""}
    status = {**STARTED, "model": model, "conditions": [condition("Succeeded", "True")]}
    verdict, _ = decide_training(training(status=status, alias=alias))
    assert findings(verdict).get("Registered") == registered
    assert verdict.alias == move
    assert verdict.requeue == (None if registered and registered[0] == "True" else verdict.requeue)


def test_alias_that_does_not_stay_is_not_set_in_a_hot_loop(training: Make) -> None:
    """A registry that says yes and does nothing is asked again at leisure."""
    model = {"name": "encoder", "version": "4", "digest": DIGEST, "runId": ""}
    old = [condition("Succeeded", "True"), condition("Registered", "False", "MovingAlias")]
    verdict, _ = decide_training(
        training(status={**STARTED, "model": model, "conditions": old}, alias=NotFound("unset"))
    )
    assert (verdict.alias, verdict.requeue) == (ALIAS_MOVE, 10.0)


@pytest.mark.parametrize(
    ("succeeded", "registered", "ago", "deleted", "requeue"),
    [
        ("False", None, 100, True, None),
        ("False", None, 40, False, 20.0),
        # 11:00, an hour ago.
        ("True", "True", 100, True, None),
        ("True", "True", 40, False, 20.0),
        ("True", "False", 100, False, None),
        ("True", None, 100, False, None),
        ("Unknown", None, 100, False, None),
    ],
)
def test_time_to_live(
    training: Make,
    moment: Make,
    *,
    succeeded: str,
    registered: str | None,
    ago: float,
    deleted: bool,
    requeue: float | None,
) -> None:
    """The resource is deleted so long after nothing is left to do: a success has its alias to set first."""
    conditions = [condition("Succeeded", succeeded)] + ([condition("Registered", registered)] if registered else [])
    status = {"completionTime": moment(-ago), "conditions": conditions}
    snapshot = training(status=status, spec={"ttlSecondsAfterFinished": 60})
    verdict = expire(snapshot, Verdict())
    assert (verdict.delete_resource, verdict.requeue) == (deleted, requeue)


def test_time_to_live_counts_from_the_registration(training: Make, moment: Make) -> None:
    """A version that was registered long after the end of the training is there for as long as any other."""
    registered = {**condition("Registered", "True"), "lastTransitionTime": moment(-10)}
    status = {"completionTime": moment(-1000), "conditions": [condition("Succeeded", "True"), registered]}
    verdict, _ = decide_training(training(status=status, spec={"ttlSecondsAfterFinished": 60}))
    assert (verdict.delete_resource, verdict.requeue) == (False, 50.0)


# ---------------------------------------------------------------- the status as a whole


def test_status_is_stable(training: Make, children: Make, pod: Make, now: Any) -> None:
    """Deciding again about what was just written changes nothing, and tells nothing."""
    snapshot = training(children=children(), status=STARTED, pods=(pod("a"), pod("b")))
    verdict, state = decide_training(snapshot)
    status = render_status(snapshot.resource, verdict, state, now)
    again = training(children=children(), status=status, pods=(pod("a"), pod("b")))
    verdict, state = decide_training(again)
    assert render_status(again.resource, verdict, state, now) == status
    assert transition_events(again.resource, verdict) == ()


def test_transition_time_moves_with_the_status_alone(training: Make, children: Make, pod: Make, now: Any) -> None:
    """Another reason isn't another state of affairs."""
    old = {**STARTED, "conditions": [condition("Running", "False", "NoPods"), condition("Accepted", "False")]}
    snapshot = training(children=children(), status=old, pods=(pod("a"),))
    verdict, state = decide_training(snapshot)
    found = {entry["type"]: entry for entry in render_status(snapshot.resource, verdict, state, now)["conditions"]}
    assert found["Running"]["lastTransitionTime"] == "2026-03-01T11:00:00Z"
    assert found["Accepted"]["lastTransitionTime"] == "2026-03-01T12:00:00Z"
    assert found["Running"]["observedGeneration"] == 2


def observed(snapshot: Any, now: Any) -> dict[str, int]:
    """Generation of each condition of the status that is decided on."""
    status = render_status(snapshot.resource, *decide_training(snapshot), now)
    return {entry["type"]: entry["observedGeneration"] for entry in status["conditions"]}


def test_condition_that_is_not_decided_anew_keeps_its_generation(training: Make, now: Any) -> None:
    """A spec that can't be read says nothing about the pods: what was observed before wasn't observed now."""
    old = {**condition("Running", "True"), "observedGeneration": 1}
    snapshot = training(job=None, invalid="spec.corpus: Field required", status={**STARTED, "conditions": [old]})
    assert observed(snapshot, now) == {"Accepted": 2, "Running": 1}


def test_end_stands_at_every_generation(training: Make, now: Any) -> None:
    """`kubectl wait` on a finished job goes on answering after its TTL was changed."""
    old = [{**condition(kind, "True"), "observedGeneration": 1} for kind in ("Succeeded", "Registered")]
    assert observed(training(status={**STARTED, "conditions": old}), now) == {"Succeeded": 2, "Registered": 2}


@pytest.mark.parametrize(
    ("kind", "status", "reason", "level"),
    [
        ("Running", "False", "Unschedulable", "Warning"),
        ("Running", "False", "ImagePullBackOff", "Warning"),
        ("Running", "False", "NoPods", "Warning"),
        ("Running", "False", "ContainerCreating", "Warning"),
        ("Running", "False", "PodsPending", None),
        ("Running", "False", "Suspended", None),
        ("Running", "False", "WaitingForRegistry", "Normal"),
        ("BaseReady", "False", "WaitingForPretrainJob", "Normal"),
        ("BaseReady", "False", "PretrainJobFailed", "Warning"),
        ("TeacherReady", "False", "ModelNotFound", "Normal"),
        ("TeacherReady", "False", "DigestMissing", "Warning"),
        ("Running", "False", "WaitingForTeacher", None),
        ("SourcesReady", "False", "SourceNotFound", "Normal"),
        ("ModelResolved", "False", "ModelNotFound", "Normal"),
        ("ModelResolved", "False", "DigestMissing", "Warning"),
        ("Ready", "False", "CrashLoopBackOff", "Warning"),
        ("Ready", "False", "VersionMismatch", "Warning"),
        ("Ready", "False", "NameConflict", "Warning"),
        ("Ready", "False", "RollingOut", None),
        ("Ready", "False", "ModelNotFound", None),
        ("Progressing", "False", "ProgressDeadlineExceeded", "Warning"),
        ("Progressing", "False", "RolloutComplete", None),
        ("AliasMoved", "False", "AliasRefused", "Warning"),
        ("AliasMoved", "False", "MovingAlias", None),
        ("Registered", "False", "MovingAlias", None),
        ("ReconcileFailed", "True", "Forbidden", "Warning"),
    ],
)
def test_events_tell_of_trouble_and_not_of_everyday_life(
    resource: Make, kind: str, status: str, reason: str, level: str | None
) -> None:
    """What needs somebody is a Warning, what takes its time is Normal, and what passes is no event."""
    told = event_of(resource("PretrainJob"), kind, Finding(status, reason, "text"))
    assert (told.type if told else None) == level
    before = {"conditions": [condition(kind, status, reason)]}
    assert event_of(resource("PretrainJob", status=before), kind, Finding(status, reason, "another text")) is None


def test_success_takes_the_reconcile_error_away(training: Make, children: Make) -> None:
    """ReconcileFailed is there only for as long as it is true."""
    status = {**STARTED, "conditions": [condition("ReconcileFailed", "True")]}
    verdict, _ = decide_training(training(children=children(), status=status))
    assert "ReconcileFailed" not in verdict.findings


def test_figures_are_for_people() -> None:
    """A column of fifteen digits can't be read; what isn't finite is left out."""
    progress = Progress(stage="training", step=3, total_steps=9, loss=4.937539094413808, tokens_per_second=10234.5678)
    shown = progress_status(progress, "2026-03-01T12:00:00Z")
    assert (shown["loss"], shown["tokensPerSecond"]) == (4.9375, 10234.6)
    assert "loss" not in progress_status(progress.model_copy(update={"loss": math.nan}), "2026-03-01T12:00:00Z")
    figures = {"gradient_norm": 0.123456789, "memory_bytes": 1234567890.0, "masked_loss": math.inf}
    shown = progress_status(progress.model_copy(update={"figures": figures}), "2026-03-01T12:00:00Z")
    assert shown["figures"] == {"gradient_norm": 0.1235, "memory_bytes": 1235000000.0}
