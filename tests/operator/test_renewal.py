"""A gang whose pods are taken away is made anew at once; one that fails by itself waits as Kubernetes wants it."""

from collections.abc import Callable
from typing import Any

import pytest

from cloze_operator.decide.training import decide_training
from cloze_operator.decide.verdict import Target
from cloze_operator.desired.origins import Origins
from cloze_operator.desired.training import claim, config_map, indexed_job, service

Document = dict[str, Any]
Make = Callable[..., Any]

JOB = Target("Job", "run-pretrain", "uid-Job", with_pods=True)


@pytest.fixture
def interrupted(training: Make, live: Make, moment: Make) -> Make:
    """The decision about a run whose Job was made so long ago, and which was interrupted later."""

    def decide(
        *pods: Document,
        made: float = -600,
        at: float = -5,
        labels: Document | None = None,
        job: Document | None = None,
        spec: Document | None = None,
        halted: bool = False,
        **status: Any,
    ) -> Any:
        snapshot = training(spec=spec, labels=labels, status=status)
        owner, parsed = snapshot.resource, snapshot.job
        manifests = [
            claim(owner, parsed),
            config_map(owner, parsed, Origins()),
            service(owner, parsed),
            indexed_job(owner, parsed, Origins(), snapshot.platform),
        ]
        children = {manifest["kind"]: live(manifest, creationTimestamp=moment(made)) for manifest in manifests}
        children["Job"]["status"] = {"startTime": moment(made), **(job or {})}
        children["Job"]["spec"] = {**children["Job"]["spec"], "suspend": halted}
        known = {"startTime": moment(-9000), "interruptions": 1, "lastInterruptionTime": moment(at), **status}
        verdict, _ = decide_training(training(spec=spec, labels=labels, children=children, pods=pods, status=known))
        return verdict

    return decide


def test_a_gang_that_is_gone_as_a_whole_is_made_anew_at_once(interrupted: Make) -> None:
    """With its Job goes the back-off that Kubernetes has doubled; what its deadline has used up is kept."""
    verdict = interrupted(activeSeconds=100)
    assert verdict.delete == (JOB,)
    assert verdict.status["activeSeconds"] == 700
    assert [event.reason for event in verdict.events] == ["JobRenewed"]
    assert verdict.findings["Succeeded"].status == "Unknown"


def test_pods_that_still_run_are_worth_a_short_back_off(interrupted: Make, pod: Make) -> None:
    """Part of the gang waits for its peer for a while before all of it starts again."""
    verdict = interrupted(pod("a", index=0), at=-5)
    assert (verdict.delete, verdict.events) == ((), ())
    assert verdict.requeue <= 15
    assert interrupted(pod("a", index=0), at=-25).delete == (JOB,)


def test_pods_that_still_stop_are_waited_for(interrupted: Make, pod: Make) -> None:
    """They save a checkpoint."""
    assert interrupted(pod("a", index=0, going=True)).delete == ()


def test_a_whole_gang_is_left_alone(interrupted: Make, pod: Make) -> None:
    """Its successors are there already, running or not yet."""
    assert interrupted(pod("a", index=0), pod("b", "Pending", index=1), at=-100).delete == ()


@pytest.mark.parametrize(
    "story",
    [
        {"made": -3, "at": -1},
        {"made": -60, "at": -90},
        {"lastFailureTime": "2026-03-01T11:59:58Z"},
        {"labels": {"kueue.x-k8s.io/queue-name": "gpus"}},
    ],
    ids=["young", "before this Job", "failed since", "queued"],
)
def test_others_wait_as_kubernetes_wants_it(interrupted: Make, story: Document) -> None:
    """A young Job's back-off is short; a failure of its own is worth one; a queue would take the place away."""
    assert interrupted(**story).delete == ()


@pytest.mark.parametrize("code", [1, 10, 13, 137])
@pytest.mark.parametrize("limit", [0, 3])
def test_a_failure_that_is_seen_for_the_first_time_waits_as_well(
    interrupted: Make, pod: Make, ended: Make, code: int, limit: int
) -> None:
    """The gang had outlived its interruption: its peer isn't killed, a final error isn't tried once more, nor is one
    for which no restart is left.
    """
    spec = {"failurePolicy": {"maxRestarts": limit}}
    verdict = interrupted(pod("a", index=0), ended("b", code, -1, index=1), at=-100, spec=spec)
    assert verdict.delete == ()
    assert "JobRenewed" not in [event.reason for event in verdict.events]


def test_a_job_that_is_about_to_fail_is_not_made_anew(interrupted: Make, pod: Make) -> None:
    """Kubernetes has said that its limit or its deadline is reached, and stops its pods."""
    told = {"conditions": [{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"}]}
    assert interrupted(pod("a", index=0), at=-100).delete == (JOB,)
    assert interrupted(pod("a", index=0), at=-100, job=told).delete == ()


def test_the_registry_is_waited_for(interrupted: Make, ended: Make) -> None:
    """The work is done: trying faster doesn't bring MLflow back."""
    assert interrupted(ended("a", 21, -5, index=0), ended("b", 21, -5, index=1)).delete == ()


def test_a_pod_that_took_too_much_is_not_fed_faster(interrupted: Make, pod: Make) -> None:
    """It will be evicted again."""
    words = {"reason": "Evicted", "message": 'Usage of EmptyDir volume "run" exceeds the limit "5Gi".'}
    told = {"DisruptionTarget": {"status": "True", "reason": "TerminationByKubelet"}}
    assert interrupted(pod("a", "Failed", index=0, conditions=told, **words)).delete == ()


def test_the_new_job_has_what_is_left_of_the_deadline(training: Make) -> None:
    """The deadline is the run's, however many Jobs it takes."""
    spec = {"activeDeadlineSeconds": 1000}
    for spent, left in ((0, 1000), (700, 300), (2000, 1)):
        snapshot = training(spec=spec, status={"activeSeconds": spent})
        made = indexed_job(snapshot.resource, snapshot.job, Origins(), snapshot.platform)
        assert made["spec"]["activeDeadlineSeconds"] == left


@pytest.mark.parametrize(
    "story",
    [
        {"spec": {"suspend": True}},
        {"spec": {"suspend": True}, "halted": True},
        {"halted": True},
        {"labels": {"kueue.x-k8s.io/queue-name": "gpus"}, "halted": True},
        {"labels": {"kueue.x-k8s.io/queue-name": "gpus"}, "spec": {"suspend": True}},
    ],
    ids=["to be suspended", "suspended", "resumed", "waits in a queue", "taken out of its queue"],
)
def test_a_suspension_begins_the_deadline_anew(interrupted: Make, story: Document) -> None:
    """Kubernetes begins a suspended Job's clock anew, so that what Jobs before it used up is forgotten, too."""
    deadline = {"activeDeadlineSeconds": 1000}
    verdict = interrupted(**{**story, "spec": {**story.get("spec", {}), **deadline}}, activeSeconds=700)
    assert verdict.status["activeSeconds"] == 0
    changed = [change.spec.get("activeDeadlineSeconds") for change in verdict.change]
    held = set(story) == {"labels", "spec"}
    assert changed == ([] if held else [1000])
    assert (verdict.delete, [event.reason for event in verdict.events]) == ((JOB,) if held else (), [])


def test_a_run_that_goes_on_keeps_what_its_deadline_has_lost(interrupted: Make, pod: Make) -> None:
    """Nothing is given back while nobody suspends it."""
    spec = {"activeDeadlineSeconds": 1000}
    verdict = interrupted(pod("a", index=0), pod("b", index=1), spec=spec, activeSeconds=700)
    assert (verdict.status["activeSeconds"], verdict.change) == (700, ())


def test_interruptions_are_counted_over_jobs(interrupted: Make, pod: Make, moment: Make) -> None:
    """Of a Job that was made anew no pod is left to be counted: what was counted stays, and more adds to it."""
    told = {"DisruptionTarget": {"status": "True", "reason": "EvictionByEvictionAPI", "lastTransitionTime": moment(-2)}}
    verdict = interrupted(pod("a", index=0, going=True, conditions=told), at=-500, interruptions=4)
    assert (verdict.status["interruptions"], verdict.status["lastInterruptionTime"]) == (5, moment(-2))
    assert (verdict.status["restarts"], [event.reason for event in verdict.events]) == (0, ["EvictionByEvictionAPI"])
    again = interrupted(pod("a", index=0, going=True, conditions=told), at=-2, interruptions=5)
    assert (again.status["interruptions"], again.events) == (5, ())
