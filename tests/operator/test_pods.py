"""What pods say about themselves is read truthfully."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from cloze_operator.decide import pods

Document = dict[str, Any]
Make = Callable[..., Document]


@pytest.fixture
def crashed(moment: Callable[[float], str]) -> Callable[[float], Document]:
    """The last state of a container that left its reason."""
    text = message("DigestMismatch", "not it")
    return lambda seconds: {"terminated": {"exitCode": 10, "message": text, "finishedAt": moment(seconds)}}


def message(reason: str, text: str = "", **fields: Any) -> str:
    return json.dumps({"reason": reason, "message": text, **fields})


def test_peer_lost_is_not_the_reason(ended: Make) -> None:
    """The rank that failed is named, not those that noticed."""
    gang = [ended("run-0", 22, -12, message=message("PeerLost")), ended("run-1", 20, -10, message=message("DiskFull"))]
    found = pods.culprit(gang)
    assert found is not None
    assert (found.pod, found.outcome.reason) == ("run-1", "DiskFull")


def test_final_exit_code_is_the_reason(ended: Make) -> None:
    """A failure that ends the run tells more than one that came before."""
    gang = [ended("run-0", 1, -50, created=-60), ended("run-1", 10, -5, message=message("LabelUnknown"), created=-30)]
    found = pods.culprit(gang)
    assert found is not None
    assert found.outcome.reason == "LabelUnknown"


def test_first_failure_of_the_last_attempt_is_the_reason(ended: Make) -> None:
    """Later failures of the same attempt follow from the first, and older attempts are history."""
    gang = [
        ended("run-0-a", 1, -50, created=-90),
        ended("run-0-b", 20, -10, created=-40, message=message("DiskFull")),
        ended("run-1-b", 1, -8, created=-40),
    ]
    found = pods.culprit(gang)
    assert found is not None
    assert found.pod == "run-0-b"


def test_attempts_count_gangs(ended: Make, pod: Make) -> None:
    """Two pods of one gang are one attempt; evictions, deletions, lost peers and suspension are none."""
    gang = [
        ended("run-0-a", 20, -52, created=-90),
        ended("run-1-a", 20, -50, created=-90),
        ended("run-0-b", 1, -10, created=-40),
        ended("run-1-b", 22, -9, created=-40),
        ended("run-2", 143, -9, conditions={"DisruptionTarget": "True"}),
        ended("run-3", 23, -9),
        ended("run-4", 137, -9, going=True),
        pod("run-5", "Running"),
    ]
    assert [[end.pod for end in attempt] for attempt in pods.failed_attempts(gang)] == [
        ["run-0-a", "run-1-a"],
        ["run-0-b"],
    ]


def test_an_attempt_is_over_once_its_first_failure_is_replaced(ended: Make) -> None:
    """A pod that outlives an attempt and fails by itself hours later is a failure of the next one."""
    hour = 3600
    gang = [
        ended("run-1-a", 20, -2 * hour, created=-3 * hour, index=1, message=message("DiskFull")),
        ended("run-0-a", 20, -5, created=-3 * hour, index=0, message=message("TooLarge")),
        ended("run-1-b", 22, -4, created=-2 * hour + 5, index=1, message=message("PeerLost")),
    ]
    assert [[end.pod for end in attempt] for attempt in pods.failed_attempts(gang)] == [["run-1-a"], ["run-0-a"]]
    found = pods.culprit(gang)
    assert found is not None
    assert found.outcome.reason == "TooLarge"


def test_a_late_peer_of_the_same_attempt_is_no_attempt_of_its_own(ended: Make, pod: Make) -> None:
    """The replacement of another pod closes nothing."""
    gang = [
        ended("run-0-a", 20, -50, created=-90, index=0),
        ended("run-1-a", 1, -38, created=-90, index=1),
        pod("run-0-b", created=-35, index=0),
        pod("run-1-b", created=-30, index=1),
    ]
    assert len(pods.failed_attempts(gang)) == 1


def test_peer_that_notices_late_is_no_interruption(ended: Make, pod: Make) -> None:
    """A rank that finds out about a failure after the failed pod was replaced has stopped because of that failure."""
    gang = [
        ended("run-0-a", 20, -50, created=-90, index=0),
        ended("run-1-a", 22, -20, created=-90, index=1),
        pod("run-0-b", created=-40, index=0),
    ]
    assert (len(pods.failed_attempts(gang)), pods.interruptions(gang)) == (1, [])


@pytest.mark.parametrize(("code", "counted"), [(22, 1), (21, 1), (23, 0), (0, 0), (20, 0)])
def test_interruptions_count_gangs_that_did_not_fail_by_themselves(ended: Make, code: int, counted: int) -> None:
    """A lost peer or registry interrupts the gang once, however many pods say so; suspension is none."""
    gang = [ended("run-0", code, -12), ended("run-1", code, -10)]
    assert len(pods.interruptions(gang)) == counted


def test_peers_of_a_failure_are_no_interruption(ended: Make) -> None:
    """Pods that stop because one of the gang has failed are part of that failure."""
    gang = [ended("run-0", 22, -12), ended("run-1", 20, -10)]
    assert (len(pods.interruptions(gang)), len(pods.failed_attempts(gang))) == (0, 1)


@pytest.mark.parametrize(("code", "told"), [(10, True), (20, False)])
def test_final_failure_of_a_going_pod_still_counts(ended: Make, code: int, told: bool) -> None:
    """The Job's controller removes the pods of a failed run: what they had to say isn't lost with them."""
    found = pods.culprit([ended("run-0", code, going=True, message=message("LabelUnknown"))])
    assert (found is not None) == told


def test_out_of_memory_is_the_kernels_word(ended: Make) -> None:
    """A killed process can't say that it was killed; the kubelet can."""
    found = pods.culprit([ended("run-0", 137, reason="OOMKilled", message="loading")])
    assert found is not None
    assert found.outcome.reason == "OOMKilled"
    assert "resources.limits.memory" in found.outcome.message


@pytest.mark.parametrize(
    ("text", "reason", "part"),
    [
        ("", "Error", "exit code 1"),
        ("Traceback\nValueError: no", "Error", "ValueError: no"),
        ("[]", "Error", "exit code 1"),
        ('{"message": "no reason"}', "Error", "exit code 1"),
        ("a log line\n" + message("DiskFull", "no space"), "DiskFull", "no space"),
    ],
)
def test_any_termination_message_is_readable(text: str, reason: str, part: str) -> None:
    """A message of the contract is taken as it is, any other text by its last line."""
    outcome = pods.read_termination({"exitCode": 1, "reason": "Error", "message": text})
    assert outcome.reason == reason
    assert part in outcome.message


@pytest.mark.parametrize(("reason", "read"), [("R" * 500, "R" * 128), ("", "Error")])
def test_reason_fits_a_condition(reason: str, read: str) -> None:
    """A reason that no condition can hold would make the whole status unwritable."""
    assert pods.read_termination({"exitCode": 1, "reason": "Error", "message": message(reason)}).reason == read


@pytest.mark.parametrize("broken", [{"model_version": "v1"}, {"model_digest": "md5:1"}, {"model_name": "theirs"}])
def test_version_that_cannot_be_is_none(ended: Make, broken: Document) -> None:
    """A message whose version the status can't hold, or is of a model that isn't the job's, is as good as none: the
    registry is asked instead, and no other model's alias is moved.
    """
    good = {"model_name": "m", "model_version": "3", "model_digest": "sha256:" + "a" * 64}
    assert pods.registered([ended("run-0", 0, message=message("Completed", **good))], "m")
    assert pods.registered([ended("run-0", 0, message=message("Completed", **{**good, **broken}))], "m") is None


def test_evicted_pod_has_an_end_without_a_container(pod: Make) -> None:
    """A pod that never ran is described by the kubelet's words."""
    found = pods.ends([pod("run-0", "Failed", reason="Evicted", message="The node was low on resource: memory.")])
    assert [(end.outcome.reason, end.outcome.message) for end in found] == [
        ("Evicted", "The node was low on resource: memory.")
    ]


def test_registering_rank_is_found(ended: Make) -> None:
    """One rank of many registers; only its message has the version."""
    told = message("Completed", model_name="m", model_version="3", model_digest="sha256:" + "a" * 64)
    gang = [ended("run-0", 0, -9, message=message("Completed")), ended("run-1", 0, -12, message=told)]
    found = pods.registered(gang, "m")
    assert found is not None
    assert found.model_version == "3"
    assert pods.registered(gang[:1], "m") is None


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "ErrImagePull", "CreateContainerConfigError"])
def test_waiting_container_is_trouble(pod: Make, now: datetime, reason: str) -> None:
    """The kubelet's reason and words are passed on."""
    waiting = {"waiting": {"reason": reason, "message": "cannot pull x"}}
    found = pods.trouble(pod(state=waiting, phase="Pending"), now)
    assert found == (reason, "run-0: cannot pull x")


def test_unschedulable_is_the_schedulers_word(pod: Make, now: datetime) -> None:
    """The scheduler's message is passed on."""
    scheduled = {"status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
    found = pods.trouble(pod(phase="Pending", conditions={"PodScheduled": scheduled}), now)
    assert found == ("Unschedulable", "run-0: 0/3 nodes are available")
    ready = pod(conditions={"PodScheduled": scheduled, "Ready": {"status": "True"}})
    assert pods.trouble(ready, now) is None, "a pod that serves is in no trouble, whatever an older condition says"


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
@pytest.mark.parametrize(("scheduled", "said"), [(-59, False), (-61, True)])
def test_slow_creation_is_trouble(
    pod: Make, now: datetime, moment: Callable[[float], str], *, reason: str, scheduled: float, said: bool
) -> None:
    """A container that is being created is on the way; after a minute it is said where to look."""
    conditions = {"PodScheduled": {"status": "True", "lastTransitionTime": moment(scheduled)}}
    found = pods.trouble(pod(phase="Pending", state={"waiting": {"reason": reason}}, conditions=conditions), now)
    assert (found is not None) == said
    if found:
        assert found[0] == reason
        assert "kubectl describe pod run-0" in found[1]


@pytest.mark.parametrize(("ready", "reason"), [("False", "FailedMount"), ("True", "ContainerCreating")])
def test_a_secret_that_is_missing_is_named(
    pod: Make, now: datetime, moment: Callable[[float], str], ready: str, reason: str
) -> None:
    """Without a sandbox the volumes aren't mounted; with one, it is the image that is waited for."""
    waiting = pod(
        phase="Pending",
        state={"waiting": {"reason": "ContainerCreating"}},
        conditions={
            "PodScheduled": {"status": "True", "lastTransitionTime": moment(-61)},
            "PodReadyToStartContainers": ready,
        },
    )
    secret = {"secretName": "spam-keys", "items": [{"key": "clients", "path": "value"}]}
    whole = {"name": "credentials-0", "secret": {"secretName": "store"}}
    volumes = [{"name": "tmp", "emptyDir": {}}, {"name": "api-keys", "secret": secret}, whole]
    found = pods.trouble({**waiting, "spec": {"volumes": volumes}}, now)
    assert found is not None
    assert found[0] == reason
    assert ("key clients of Secret spam-keys and Secret store," in found[1]) == (reason == "FailedMount")


@pytest.mark.parametrize(
    ("restarts", "finished", "state", "looping"),
    [
        (3, -20, {"running": {}}, True),
        (3, -500, {"running": {}}, False),
        (1, -20, {"running": {}}, False),
        (1, -500, {"waiting": {"reason": "CrashLoopBackOff"}}, True),
    ],
)
def test_crash_loop_outlives_the_moment_of_running(
    pod: Make,
    crashed: Callable[[float], Document],
    now: datetime,
    *,
    restarts: int,
    finished: float,
    state: Document,
    looping: bool,
) -> None:
    """A container that has died twice and a moment ago is in a loop, though it runs right now."""
    found = pods.crash_loop(pod(state=state, last=crashed(finished), restarts=restarts), now)
    assert (found is not None) == looping
    if found:
        assert "DigestMismatch: not it" in found


def test_clean_exit_is_no_crash(pod: Make, now: datetime, moment: Callable[[float], str]) -> None:
    """A container that ended with 0, as at a drain, isn't crash-looping."""
    terminated = {"exitCode": 0, "finishedAt": moment(-5)}
    assert pods.crash_loop(pod(state={"running": {}}, last={"terminated": terminated}, restarts=5), now) is None
