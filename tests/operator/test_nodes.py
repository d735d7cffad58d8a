"""Each place of a gang is told of, and how its last pod ended, in the words of who knows."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from cloze_api.training_status import TrainingStatus
from cloze_operator.decide.nodes import report_nodes
from cloze_operator.decide.verdict import Verdict

Document = dict[str, Any]
Make = Callable[..., Any]

JOB = {"Job": {"kind": "Job", "metadata": {"name": "run-pretrain"}}}


@pytest.fixture
def nodes(training: Make) -> Callable[..., list[Document]]:
    """What is told of these pods, after what was told before."""

    def told(*pods: Document, before: list[Document] | None = None) -> list[Document]:
        snapshot = training(children=JOB, pods=pods, status={"nodes": before or []})
        found: list[Document] = report_nodes(snapshot, Verdict()).status["nodes"]
        TrainingStatus.model_validate({"nodes": found})
        return found

    return told


def disrupted(reason: str, message: str, since: str) -> Document:
    return {
        "DisruptionTarget": {"status": "True", "reason": reason, "message": message, "lastTransitionTime": since},
    }


def test_a_place_without_a_pod_is_absent(nodes: Make, pod: Make) -> None:
    """Every place is there, in order, whatever pods there are."""
    assert nodes(pod("b", index=1)) == [{"index": 0, "state": "Absent"}, {"index": 1, "state": "Running"}]


def test_what_keeps_a_pod_from_running_is_said(nodes: Make, pod: Make) -> None:
    """In the scheduler's and the kubelet's words, at the place that they mean."""
    words = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    waits = pod(
        "a",
        "Pending",
        index=0,
        conditions={"PodScheduled": {"status": "False", "reason": "Unschedulable", "message": words}},
    )
    pulls = pod("b", "Pending", index=1, state={"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}})
    assert nodes(waits, pulls) == [
        {"index": 0, "state": "Pending", "reason": "Unschedulable", "message": f"a: {words}"},
        {"index": 1, "state": "Pending", "reason": "ImagePullBackOff", "message": "b: no such tag"},
    ]


@pytest.mark.parametrize(
    ("code", "container", "message", "reason", "part"),
    [
        (137, "OOMKilled", "", "OOMKilled", "limits.memory"),
        (20, "Error", json.dumps({"reason": "DiskFull", "message": "no space"}), "DiskFull", "no space"),
        (1, "Error", "last words", "Error", "last words"),
        (23, "Error", json.dumps({"reason": "Suspended", "message": "saved"}), "Suspended", "saved"),
    ],
)
def test_the_last_exit_is_named(
    nodes: Make,
    pod: Make,
    ended: Make,
    moment: Make,
    *,
    code: int,
    container: str,
    message: str,
    reason: str,
    part: str,
) -> None:
    """The pod's own reason or the kubelet's, beside what its successor does now."""
    first, _ = nodes(
        ended("a-1", code, -30, index=0, created=-90, reason=container, message=message),
        pod("a-2", index=0, created=-20),
    )
    assert first["state"] == "Running"
    last = first["lastExit"]
    assert (last["reason"], last["exitCode"], last["time"]) == (reason, code, moment(-30))
    assert part in last["message"]


def test_who_took_a_pod_away_is_named(nodes: Make, pod: Make, ended: Make, moment: Make) -> None:
    """Preempted while it still stops, evicted with its last code: not what its trainer made of the signal."""
    gone = disrupted("PreemptionByScheduler", "preempted by a pod of more importance", moment(-5))
    evicted = disrupted("TerminationByKubelet", "", moment(-8))
    first, second = nodes(
        pod("a", index=0, going=True, conditions=gone),
        ended("b", 23, -3, index=1, conditions=evicted, reason="Error") | {},
    )
    assert first == {
        "index": 0,
        "state": "Terminating",
        "lastExit": {
            "reason": "PreemptionByScheduler",
            "message": "preempted by a pod of more importance",
            "time": moment(-5),
        },
    }
    assert second["lastExit"] == {"reason": "TerminationByKubelet", "exitCode": 23, "time": moment(-8)}
    low = pod(
        "c", "Failed", index=0, conditions=evicted, reason="Evicted", message="The node was low on resource: memory."
    )
    assert nodes(low)[0]["lastExit"]["reason"] == "Evicted"
    assert "low on resource" in nodes(low)[0]["lastExit"]["message"]


def test_an_exit_is_remembered_when_its_pod_is_gone(nodes: Make, pod: Make, ended: Make) -> None:
    """Pods are deleted in time, and their stories with them."""
    before = nodes(ended("a", 20, -30, index=0))
    after = nodes(pod("a-2", index=0, created=-20), before=before)
    assert after[0] == {"index": 0, "state": "Running", "lastExit": before[0]["lastExit"]}


def test_long_words_are_cut(nodes: Make, ended: Make) -> None:
    """A status of 64 places must fit into an object."""
    text = json.dumps({"reason": "DiskFull", "message": "x" * 2000})
    assert len(nodes(ended("a", 20, index=0, message=text))[0]["lastExit"]["message"]) == 256
