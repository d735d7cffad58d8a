"""A run that is given another size: its pods stop after a checkpoint, and others go on from it."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from cloze_operator.decide.training import decide_training
from cloze_operator.decide.verdict import Target
from cloze_operator.desired.origins import Origins
from cloze_operator.desired.training import claim, config_map, indexed_job, service

Document = dict[str, Any]
Make = Callable[..., Any]

STARTED = {"startTime": "2026-03-01T11:30:00Z"}
JOB = Target("Job", "run-pretrain", "uid-Job", with_pods=True)
QUEUE = {"kueue.x-k8s.io/queue-name": "gpus"}
TWO: Document = {"topology": {"nodes": 2}}
ONE: Document = {"topology": {"nodes": 1}}


@pytest.fixture
def look(training: Make, live: Make) -> Make:
    """The decision about a run that has started with `given`, and whose spec is another one by now."""

    def decide(
        given: Document,
        spec: Document,
        *pods: Document,
        job: Document | None = None,
        without: tuple[str, ...] = (),
        going: bool = False,
        labels: Document | None = None,
        status: Document | None = None,
        kind: str = "PretrainJob",
    ) -> Any:
        snapshot = training(kind, spec=given, labels=labels)
        owner, parsed = snapshot.resource, snapshot.job
        made = [
            claim(owner, parsed),
            config_map(owner, parsed, Origins()),
            service(owner, parsed),
            indexed_job(owner, parsed, Origins(), snapshot.platform),
        ]
        children = {each["kind"]: live(each) for each in made if each["kind"] not in without}
        if "Job" in children:
            children["Job"]["status"] = job or {}
            if going:
                children["Job"]["metadata"]["deletionTimestamp"] = "2026-03-01T11:59:00Z"
        found = training(
            kind, spec=spec, labels=labels, children=children, pods=pods, status=STARTED if status is None else status
        )
        return decide_training(found)[0]

    return decide


def read(verdict: Any) -> Document:
    """The spec that pods are to read."""
    (text,) = (each["data"]["job.yaml"] for each in verdict.apply if each["kind"] == "ConfigMap")
    spec: Document = yaml.safe_load(text)["spec"]
    return spec


def kinds(verdict: Any) -> list[str]:
    return [each["kind"] for each in verdict.apply]


@pytest.mark.parametrize("suspend", [True, False], ids=["suspended", "resumed before anybody looked"])
def test_pods_of_the_former_size_save_a_checkpoint_and_go(look: Make, pod: Make, *, suspend: bool) -> None:
    """Nothing that they or their successors read changes before, and the end of each is still counted."""
    verdict = look(ONE, {**TWO, "suspend": suspend}, pod("a", index=0))
    assert (verdict.delete, verdict.apply, verdict.change, verdict.events) == ((JOB,), (), (), ())
    assert verdict.requeue == 1
    assert verdict.status["restarts"] == 0


def test_nothing_takes_their_place_before_they_are_gone(look: Make, pod: Make) -> None:
    """The ConfigMap is mounted in the pods that are saving."""
    verdict = look(ONE, TWO, pod("a", index=0, going=True), going=True)
    assert (verdict.delete, verdict.apply) == ((), ())
    assert verdict.requeue == 2


@pytest.mark.parametrize("suspend", [True, False])
def test_the_next_pods_have_the_new_size(look: Make, *, suspend: bool) -> None:
    """One event says from what to what. The run is the same: volume, uid and start stay."""
    verdict = look(ONE, {**TWO, "suspend": suspend}, without=("Job",))
    assert (kinds(verdict), verdict.start) == (["ConfigMap", "Job"], False)
    assert read(verdict)["topology"] == {"nodes": 2}
    job = verdict.apply[-1]
    assert (job["spec"]["completions"], job["spec"]["suspend"]) == (2, suspend)
    assert {"name": "CLOZE_JOB_UID", "value": "uid-1"} in job["spec"]["template"]["spec"]["containers"][0]["env"]
    ((level, reason, message),) = ((each.type, each.reason, each.message) for each in verdict.events)
    assert (level, reason) == ("Normal", "Resized")
    assert "topology.nodes 1 → 2: Job run-pretrain is made anew" in message
    assert verdict.status["startTime"] == STARTED["startTime"]


def test_before_the_start_nothing_is_resized(look: Make) -> None:
    """The children follow the spec as it is."""
    verdict = look(ONE, {**TWO, "suspend": True}, without=("Job",), status={})
    assert (kinds(verdict), read(verdict)["topology"], verdict.events) == (["ConfigMap", "Job"], {"nodes": 2}, ())


def test_what_was_taken_on_is_told_once(look: Make) -> None:
    """With the new ConfigMap there is nothing left to change, also when the Job is missing yet."""
    verdict = look(TWO, TWO, without=("Job",))
    assert (kinds(verdict), verdict.events) == (["Job"], ())
    verdict = look(TWO, TWO)
    assert (verdict.apply, verdict.delete, verdict.events) == ((), (), ())


@pytest.mark.parametrize(
    ("given", "spec", "reason", "words"),
    [
        (
            {"topology": {"processesPerNode": 1, "threadsPerProcess": 2}},
            {"topology": {"processesPerNode": 2, "threadsPerProcess": 1}},
            "Resized",
            "topology.processesPerNode 1 → 2, topology.threadsPerProcess 2 → 1: ",
        ),
        (
            {"topology": {"resources": {"limits": {"memory": "1Gi"}}}},
            {"topology": {"resources": {"limits": {"memory": "2Gi"}}, "nodeSelector": {"gpu": "yes"}}},
            "Adjusted",
            "topology.resources, topology.nodeSelector: ",
        ),
        (
            {"topology": {"sharedMemory": "1Gi"}},
            {"topology": {"sharedMemory": "2Gi", "priorityClassName": "batch", "graceSeconds": 90}},
            "Adjusted",
            "topology.sharedMemory, topology.priorityClassName, topology.graceSeconds 60 → 90: ",
        ),
        ({}, {"profile": {"fromStep": 500}}, "Adjusted", "profile: "),
        ({"profile": {"fromStep": 5}}, {}, "Adjusted", "profile: "),
        (
            {"failurePolicy": {"stuckSeconds": 600}},
            {"failurePolicy": {"stuckSeconds": 60}},
            "Adjusted",
            "failurePolicy.stuckSeconds 600 → 60: ",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["PretrainJob", "FineTuneJob"])
def test_what_a_run_takes_on(look: Make, kind: str, given: Document, spec: Document, reason: str, words: str) -> None:
    """All that pods read and that doesn't define the result, of either kind of job."""
    if kind == "FineTuneJob":
        base = {"base": {"uri": "hf://owner/name"}}
        given, spec = {**given, **base}, {**spec, **base}
    (target,) = look(given, spec, kind=kind).delete
    assert (target.kind, target.with_pods) == ("Job", True)
    verdict = look(given, spec, without=("Job",), kind=kind)
    (event,) = verdict.events
    assert (event.reason, event.message[: len(words)]) == (reason, words)
    assert all(read(verdict)[name] == value for name, value in spec.items())


@pytest.mark.parametrize(
    ("given", "spec"),
    [
        ({"failurePolicy": {"maxRestarts": 1}}, {"failurePolicy": {"maxRestarts": 2}}),
        ({}, {"activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 60}),
        # Operators of before left it out of the ConfigMap: whatever these pods have, they aren't stopped for it.
        ({}, {"failurePolicy": {"stuckSeconds": 60}}),
        # A schema that grows writes defaults into specs.
        ({}, {"topology": {"nodes": 2, "processesPerNode": 1, "sharedMemory": "64Mi", "resources": {"limits": {}}}}),
    ],
)
def test_what_pods_need_not_know_stops_none(look: Make, pod: Make, given: Document, spec: Document) -> None:
    """Nor does what comes to the same."""
    verdict = look(given, spec, pod("a", index=0), pod("b", index=1))
    assert (verdict.delete, verdict.apply) == ((), ())


@pytest.mark.parametrize("end", ["Complete", "Failed"])
def test_an_end_is_not_undone(look: Make, ended: Make, end: str) -> None:
    """A run that was done, or lost, when it was to be stopped has ended."""
    status = {
        "conditions": [{"type": end, "status": "True", "reason": "R", "lastTransitionTime": "2026-03-01T11:59:00Z"}]
    }
    verdict = look(ONE, TWO, ended("a", 0 if end == "Complete" else 11, index=0), job=status)
    assert (verdict.delete, verdict.apply) == ((), ())
    assert verdict.findings["Succeeded"].status == str(end == "Complete")


def test_a_config_map_that_says_nothing_stops_no_run(training: Make, live: Make) -> None:
    """Somebody has edited it."""
    snapshot = training(spec=ONE)
    for data in ({}, {"job.yaml": "a: ["}, {"job.yaml": "spec: 3"}, {"job.yaml": "spec: {topology: {nodes: many}}"}):
        made = config_map(snapshot.resource, snapshot.job, Origins()) | {"data": data}
        job = live(indexed_job(snapshot.resource, snapshot.job, Origins(), snapshot.platform))
        verdict, _ = decide_training(training(spec=TWO, children={"ConfigMap": live(made), "Job": job}, status=STARTED))
        assert verdict.delete == ()


def test_a_suspended_run_of_a_queue_has_the_new_size_when_it_joins_again(look: Make) -> None:
    """It has no Job meanwhile. The ConfigMap waits for the former one's pods here, too."""
    suspended = {**TWO, "suspend": True}
    verdict = look(ONE, suspended, labels=QUEUE)
    assert (verdict.delete, verdict.apply, verdict.events) == ((JOB,), (), ())
    verdict = look(ONE, suspended, labels=QUEUE, going=True)
    assert (verdict.delete, verdict.apply) == ((), ())
    verdict = look(ONE, suspended, labels=QUEUE, without=("Job",))
    assert (kinds(verdict), [event.reason for event in verdict.events]) == (["ConfigMap"], ["Resized"])
    verdict = look(ONE, TWO, labels=QUEUE, without=("Job",))
    assert kinds(verdict) == ["ConfigMap", "Job"]
    assert (verdict.apply[-1]["spec"]["completions"], verdict.apply[-1]["spec"]["suspend"]) == (2, True)
