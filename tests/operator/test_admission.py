"""Runs in a queue: Kueue alone lets their Job go, and the operator leaves alone what it changes."""

from collections.abc import Callable
from typing import Any

import pytest

from cloze_operator.decide.training import decide_training
from cloze_operator.decide.verdict import Change, Target
from cloze_operator.desired.origins import Origins
from cloze_operator.desired.training import claim, config_map, indexed_job, service

Document = dict[str, Any]
Make = Callable[..., Any]

QUEUE = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "low", "team": "search"}
STARTED = {"startTime": "2026-03-01T11:30:00Z"}
JOB = Target("Job", "run-pretrain", "uid-Job", with_pods=True)


@pytest.fixture
def queued(training: Make, live: Make) -> Make:
    """A snapshot of a run in a queue, whose Job is as Kueue or anybody else has left it."""

    def make(*, job: Document | None = None, spec: Document | None = None, **parts: Any) -> Any:
        snapshot = training(labels=QUEUE, spec=spec)
        owner, parsed = snapshot.resource, snapshot.job
        made = [claim(owner, parsed), config_map(owner, parsed, Origins()), service(owner, parsed)]
        if job is not None:
            manifest = indexed_job(owner, parsed, Origins(), snapshot.platform)
            made.append({**manifest, "spec": {**manifest["spec"], **job}})
        children = {manifest["kind"]: live(manifest) for manifest in made}
        return training(labels=QUEUE, spec=spec, children=children, **{"status": STARTED, **parts})

    return make


def running(verdict: Any) -> tuple[str, str]:
    found = verdict.findings["Running"]
    return found.reason, found.message


def test_a_job_goes_to_its_queue_suspended(training: Make) -> None:
    """The resource's labels for Kueue are the Job's, and no pod is made before the queue has looked at it."""
    verdict, _ = decide_training(training(labels=QUEUE))
    job = verdict.apply[-1]
    assert job["spec"]["suspend"] is True
    assert {key: value for key, value in job["metadata"]["labels"].items() if "kueue" in key} == {
        "kueue.x-k8s.io/queue-name": "gpus",
        "kueue.x-k8s.io/priority-class": "low",
    }
    assert "team" not in job["metadata"]["labels"]
    assert "kueue" not in str(job["spec"]["template"])
    plain, _ = decide_training(training())
    assert plain.apply[-1]["spec"]["suspend"] is False


def test_a_suspended_job_waits_in_its_queue(queued: Make) -> None:
    """Kueue's word stands; the status says which queue, and what a preempted run goes on from."""
    verdict, state = decide_training(queued(job={"suspend": True}))
    assert (verdict.apply, verdict.change, verdict.delete, verdict.requeue) == ((), (), (), None)
    assert state == "Queued"
    reason, message = running(verdict)
    assert reason == "Queued"
    assert "LocalQueue gpus hasn't admitted Job run-pretrain: " in message
    assert "-l kueue.x-k8s.io/job-uid=uid-Job" in message
    assert verdict.findings["Succeeded"].reason == "Queued"
    preempted = {**STARTED, "progress": {"checkpointStep": 40}}
    verdict, _ = decide_training(queued(job={"suspend": True}, status=preempted))
    assert "goes on from the checkpoint of step 40" in running(verdict)[1]


def test_what_kueue_changes_stays(queued: Make, pod: Make) -> None:
    """A Job that was let go, on machines that Kueue has chosen, is neither suspended nor put back."""
    template = {"spec": {"nodeSelector": {"flavor": "spot"}, "tolerations": [{"key": "spot", "operator": "Exists"}]}}
    verdict, state = decide_training(
        queued(job={"suspend": False, "template": template}, pods=(pod("a", index=0), pod("b", index=1)))
    )
    assert (verdict.apply, verdict.change, verdict.delete, state) == ((), (), (), "Running")


def test_other_fields_still_follow_the_resource(queued: Make) -> None:
    """A deadline reaches a Job that waits in a queue."""
    snapshot = queued(job={"suspend": True, "activeDeadlineSeconds": 5}, spec={"activeDeadlineSeconds": 60})
    verdict, _ = decide_training(snapshot)
    assert verdict.change == (Change(Target("Job", "run-pretrain", "uid-Job"), {"activeDeadlineSeconds": 60}),)


@pytest.mark.parametrize("suspended", [True, False])
def test_a_run_that_is_suspended_leaves_its_queue(queued: Make, pod: Make, *, suspended: bool) -> None:
    """Kueue would let a suspended Job go: it is taken away with its pods, and comes back with the next turn."""
    snapshot = queued(job={"suspend": suspended}, spec={"suspend": True}, pods=(pod("a", index=0),))
    verdict, state = decide_training(snapshot)
    assert (verdict.delete, verdict.change, verdict.apply, state) == ((JOB,), (), (), "Suspended")
    assert "1 pods are stopping" in running(verdict)[1]
    verdict, state = decide_training(queued(spec={"suspend": True}))
    assert (verdict.delete, verdict.apply, state) == ((), (), "Suspended")
    verdict, _ = decide_training(queued())
    assert [manifest["kind"] for manifest in verdict.apply] == ["Job"]


def test_a_job_that_was_given_a_queue_by_default_is_kueues_too(queued: Make, training: Make) -> None:
    """Kueue labels Jobs itself where a namespace has a default queue: its suspension isn't undone."""
    snapshot = queued(job={"suspend": True})
    plain = training(status=STARTED, children=snapshot.children)
    verdict, state = decide_training(plain)
    assert (verdict.change, state) == ((), "Queued")


def test_a_run_that_is_suspended_leaves_a_queue_that_kueue_gave_it(queued: Make, training: Make, pod: Make) -> None:
    """Nothing but its Job tells of that queue: without one it isn't made anew before the run goes on."""
    children = queued(job={"suspend": False}).children
    parts = {"spec": {"suspend": True}, "status": STARTED}
    verdict, state = decide_training(training(**parts, children=children, pods=(pod("a", index=0),)))
    assert (verdict.delete, verdict.change, verdict.apply, state) == ((JOB,), (), (), "Suspended")
    reason, _ = running(verdict)
    left = {kind: child for kind, child in children.items() if kind != "Job"}
    paused = {"type": "Running", "status": "False", "reason": reason, "lastTransitionTime": STARTED["startTime"]}
    stands = {**STARTED, "conditions": [paused]}
    verdict, state = decide_training(training(spec={"suspend": True}, status=stands, children=left))
    assert (verdict.delete, verdict.apply, state) == ((), (), "Suspended")
    verdict, _ = decide_training(training(spec={"suspend": True}, status=STARTED, children=left))
    assert [manifest["kind"] for manifest in verdict.apply] == ["Job"], "in no queue, as far as anybody knows"
    verdict, _ = decide_training(training(status=stands, children=left))
    assert [manifest["kind"] for manifest in verdict.apply] == ["Job"]
