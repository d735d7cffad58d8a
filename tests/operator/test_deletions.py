"""A pod that somebody deletes is an interruption, and a pod that its Job no longer wants is none."""

from collections.abc import Callable
from typing import Any

import pytest

from cloze_api.progress import ExitCode
from cloze_operator.decide import pods
from cloze_operator.decide.deletions import REASON, witnessed
from cloze_operator.decide.fields import parse_time

Make = Callable[..., Any]
JOB: dict[str, Any] = {"kind": "Job", "metadata": {"name": "run"}, "spec": {"suspend": False}}


@pytest.fixture
def gone(ended: Make, pod: Make) -> list[dict[str, Any]]:
    """A gang of which one pod was told to go five seconds ago and has saved; the other has lost it."""
    deleted = ended("a", ExitCode.SUSPENDED, -4, index=0, going=True)
    deleted["metadata"]["deletionGracePeriodSeconds"] = 5
    return [deleted, ended("b", ExitCode.PEER_LOST, -3, index=1)]


def test_a_pod_that_was_deleted_by_hand_interrupts_its_gang_once(
    gone: list[dict[str, Any]], pod: Make, moment: Make
) -> None:
    """With its reason, from the moment on which it was told to go; whether it has ended yet or not."""
    for gang in (gone, gone[:1], [pod("a", index=0, going=True)]):
        told = witnessed(gang, JOB)
        (attempt,) = pods.interruptions(told)
        assert attempt[0].outcome.reason == REASON
        assert pods.failed_attempts(told) == []
    assert pods.interruptions(witnessed(gone, JOB))[0][0].at == parse_time(moment(-5))


@pytest.mark.parametrize(
    "job",
    [
        None,
        {**JOB, "spec": {"suspend": True}},
        {**JOB, "metadata": {"name": "run", "deletionTimestamp": "2026-03-01T12:00:00Z"}},
        {**JOB, "status": {"conditions": [{"type": "FailureTarget", "status": "True"}]}},
        {**JOB, "status": {"conditions": [{"type": "Complete", "status": "True"}]}},
    ],
)
def test_pods_that_their_job_no_longer_wants_are_none(gone: list[dict[str, Any]], job: dict[str, Any] | None) -> None:
    """A Job that is suspended, deleted or ending deletes its pods itself."""
    assert witnessed(gone, job) == tuple(gone)


@pytest.mark.parametrize(
    ("suspended", "since", "told"),
    [("True", -60, False), ("False", -3, False), ("False", -5, False), ("False", -6, True), ("False", -60, True)],
)
def test_pods_that_a_suspension_stopped_arent_deleted(
    gone: list[dict[str, Any]], moment: Make, suspended: str, since: float, *, told: bool
) -> None:
    """Though their Job wants pods again by now; those that are deleted after it went on are."""
    resumed = {"type": "Suspended", "status": suspended, "lastTransitionTime": moment(since)}
    found = witnessed(gone, {**JOB, "status": {"conditions": [resumed]}})
    assert bool(pods.interruptions(found[:1])) is told


@pytest.mark.parametrize(
    ("code", "finished"), [(ExitCode.SUCCESS, -4), (ExitCode.DIVERGED, -4), (ExitCode.INTERNAL, -9)]
)
def test_a_pod_that_had_its_last_word_keeps_it(code: ExitCode, finished: float, ended: Make) -> None:
    """What it tells of itself isn't lost by cleaning up after it."""
    pod = ended("a", code, finished, index=0, going=True)
    pod["metadata"]["deletionGracePeriodSeconds"] = 5
    assert witnessed([pod], JOB) == (pod,)


def test_an_eviction_keeps_its_own_reason(pod: Make) -> None:
    """Kubernetes knows better."""
    evicted = pod("a", index=0, going=True, conditions={"DisruptionTarget": {"status": "True", "reason": "Preempted"}})
    assert witnessed([evicted], JOB) == (evicted,)
