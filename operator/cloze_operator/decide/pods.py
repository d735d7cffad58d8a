"""What pods say about themselves: how they ended, and why they don't run."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from cloze_api.progress import FINAL_EXIT_CODES, ExitCode, Outcome
from cloze_operator.decide.fields import Object, condition, dig, is_going, is_true, parse_time

#: Exit codes that say nothing about why a gang failed: these pods stopped because of something else.
_BYSTANDERS = (ExitCode.SUCCESS, ExitCode.PEER_LOST, ExitCode.SUSPENDED)

#: A container that has died twice and died a moment ago is crash-looping, though it may run right now.
_CRASH_LOOP_RESTARTS = 2
CRASH_LOOP_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class End:
    """How one pod's container ended. `began` is when the pod was created."""

    pod: str
    began: datetime
    at: datetime
    exit_code: int
    outcome: Outcome

    @property
    def text(self) -> str:
        """For a message: what, where."""
        return f"{self.outcome.reason} in {self.pod}: {self.outcome.message}".rstrip(": ")


def name_of(pod: Object) -> str:
    """The pod's name."""
    return str(pod["metadata"]["name"])


def phase(pod: Object) -> str:
    """The pod's phase; Terminating for one that has been told to go and hasn't ended."""
    current = str(dig(pod, "status", "phase") or "Pending")
    return "Terminating" if is_going(pod) and current not in ("Succeeded", "Failed") else current


def is_ready(pod: Object) -> bool:
    """Whether the pod gets traffic."""
    return condition(pod, "Ready").get("status") == "True" and not is_going(pod)


def _containers(pod: Object) -> Iterable[Object]:
    return dig(pod, "status", "containerStatuses") or ()


def _read_message(text: str) -> Outcome | None:
    """The outcome in a termination message: its last line, since a fallback to logs has other lines before it."""
    lines = text.strip().splitlines()
    if not lines:
        return None
    try:
        return Outcome.model_validate(json.loads(lines[-1]))
    except (ValueError, ValidationError):
        return None


def read_termination(terminated: Object) -> Outcome:
    """The outcome of a container, from its termination message or, without one, from what the kubelet saw."""
    code = int(terminated.get("exitCode", 0))
    text = str(terminated.get("message") or "")
    found = _read_message(text)
    reason = str(terminated.get("reason") or "Error")
    # The kernel's verdict is better than what a dying process managed to say.
    if reason == "OOMKilled":
        return Outcome(
            reason="OOMKilled",
            exit_code=code,
            message="the container used more memory than spec resources.limits.memory allows: raise it",
        )
    if found:
        return found
    detail = " ".join(text.strip().splitlines()[-1:])[:512]
    return Outcome(reason=reason, exit_code=code, message=f"exit code {code}{': ' + detail if detail else ''}")


def ends(pods: Iterable[Object]) -> list[End]:
    """How the pods' containers ended, oldest first. A pod that never ran a container but failed has an end too."""
    found = []
    for pod in pods:
        began = parse_time(pod["metadata"].get("creationTimestamp"))
        assert began is not None, "a pod without a creation time doesn't come from an API server"
        states = [state for entry in _containers(pod) if (state := dig(entry, "state", "terminated"))]
        for terminated in states:
            at = parse_time(terminated.get("finishedAt")) or began
            code = int(terminated.get("exitCode", 0))
            found.append(End(name_of(pod), began, at, code, read_termination(terminated)))
        if not states and dig(pod, "status", "phase") == "Failed":
            reason = str(dig(pod, "status", "reason") or "Failed")
            message = str(dig(pod, "status", "message") or "")
            found.append(End(name_of(pod), began, began, -1, Outcome(reason=reason, message=message)))
    return sorted(found, key=lambda end: (end.at, end.pod))


def failed_attempts(pods: Iterable[Object]) -> list[list[End]]:
    """The run's own failures, grouped by attempt of the gang, oldest first.

    A gang fails once, however many of its pods do: a failure belongs to the attempt whose first failure its pod was
    there to see. Evictions, preemptions, pods that were told to go and pods that stopped because of a peer are
    nobody's failure.
    """
    own = [pod for pod in pods if not is_true(pod, "DisruptionTarget") and not is_going(pod)]
    attempts: list[list[End]] = []
    for end in ends(own):
        if end.exit_code in _BYSTANDERS:
            continue
        if attempts and end.began <= attempts[-1][0].at:
            attempts[-1].append(end)
        else:
            attempts.append([end])
    return attempts


def is_final(attempt: Iterable[End]) -> bool:
    """Whether the same input would fail again, so that the run isn't restarted."""
    return any(end.exit_code in FINAL_EXIT_CODES for end in attempt)


def culprit(pods: Iterable[Object]) -> End | None:
    """The failure that tells why the gang failed.

    A final exit code tells most. Otherwise it is the first failure of the last attempt: the others follow from it.
    """
    attempts = failed_attempts(pods)
    final = [end for attempt in attempts for end in attempt if end.exit_code in FINAL_EXIT_CODES]
    if final:
        return final[0]
    return attempts[-1][0] if attempts else None


def registered(pods: Iterable[Object]) -> Outcome | None:
    """The outcome of the rank that registered the model version."""
    for end in reversed(ends(pods)):
        if end.exit_code == ExitCode.SUCCESS and end.outcome.model_version and end.outcome.model_digest:
            return end.outcome
    return None


def trouble(pod: Object) -> tuple[str, str] | None:
    """Why a pod doesn't run, in the words of who prevents it: (reason, message). None for one that runs or may soon."""
    name = name_of(pod)
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return str(scheduled.get("reason") or "Unschedulable"), f"{name}: {scheduled.get('message', '')}"
    for entry in (*(dig(pod, "status", "initContainerStatuses") or ()), *_containers(pod)):
        waiting = dig(entry, "state", "waiting")
        if waiting and waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            ended = dig(entry, "lastState", "terminated")
            outcome = read_termination(ended) if ended else None
            said = f"{outcome.reason}: {outcome.message}" if outcome else str(waiting.get("message") or "")
            return str(waiting["reason"]), f"{name}: {said}".rstrip(": ")
    return None


def crash_loop(pod: Object, now: datetime) -> str | None:
    """What a crash-looping pod said when it last died; None for a pod that isn't in a crash loop."""
    for entry in _containers(pod):
        ended = dig(entry, "lastState", "terminated") or dig(entry, "state", "terminated")
        at = parse_time((ended or {}).get("finishedAt"))
        if not ended or not at or not ended.get("exitCode"):
            continue
        waiting = dig(entry, "state", "waiting", "reason") == "CrashLoopBackOff"
        recent = now - at < timedelta(seconds=CRASH_LOOP_SECONDS)
        if waiting or (int(entry.get("restartCount", 0)) >= _CRASH_LOOP_RESTARTS and recent):
            outcome = read_termination(ended)
            return f"{name_of(pod)} has restarted {entry['restartCount']} times; {outcome.reason}: {outcome.message}"
    return None
