"""What pods say about themselves: how they ended, and why they don't run."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from cloze_api.progress import BLAMELESS_EXIT_CODES, FINAL_EXIT_CODES, ExitCode, Outcome
from cloze_api.training_status import REASON_MAX, RegisteredVersion
from cloze_operator.decide.fields import Object, condition, dig, is_going, parse_time

#: Exit codes of pods that something else has interrupted: a peer, or the registry.
_INTERRUPTED = (ExitCode.REGISTRY, ExitCode.PEER_LOST)

#: A container that has died twice and died a moment ago is crash-looping, though it may run right now.
_CRASH_LOOP_RESTARTS = 2
CRASH_LOOP_SECONDS = 120.0

#: A container that is being created for longer hangs on something that no condition tells of.
CREATING_SECONDS = 60.0

_ON_THE_WAY = ("ContainerCreating", "PodInitializing")

_INDEX = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True, slots=True)
class End:
    """How one pod's container ended. `began` is when the pod was created, `index` is its place in the gang.

    taken: somebody has taken the pod away: the scheduler, the kubelet, a drain, or a machine that is gone.
    """

    pod: str
    index: str
    began: datetime
    at: datetime
    exit_code: int
    outcome: Outcome
    taken: bool = False

    @property
    def text(self) -> str:
        """For a message: what, where."""
        return f"{self.outcome.reason} in {self.pod}: {self.outcome.message}".rstrip(": ")

    @property
    def is_final(self) -> bool:
        """Whether the same input would fail again."""
        return not self.taken and self.exit_code in FINAL_EXIT_CODES

    @property
    def is_own(self) -> bool:
        """Whether the pod failed by itself."""
        return not self.taken and self.exit_code != ExitCode.SUCCESS and self.exit_code not in BLAMELESS_EXIT_CODES


Attempt = list[End]
"""What ended one attempt of the gang, oldest first."""


def name_of(pod: Object) -> str:
    """The pod's name."""
    return str(pod["metadata"]["name"])


def index_of(pod: Object) -> str:
    """The pod's place in its gang; a replacement has the same one."""
    return str((pod["metadata"].get("annotations") or {}).get(_INDEX, ""))


def _began(pod: Object) -> datetime:
    began = parse_time(pod["metadata"].get("creationTimestamp"))
    assert began is not None, "a pod without a creation time doesn't come from an API server"
    return began


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
        # A reason that no condition could hold would make the whole status unwritable.
        return found.model_copy(update={"reason": found.reason[:REASON_MAX] or reason})
    detail = " ".join(text.strip().splitlines()[-1:])[:512]
    return Outcome(reason=reason, exit_code=code, message=f"exit code {code}{': ' + detail if detail else ''}")


def taken_away(pod: Object) -> End | None:
    """The end of a pod that somebody has taken away, in the words of who did; it may still be stopping."""
    told = condition(pod, "DisruptionTarget")
    if told.get("status") != "True":
        return None
    began = _began(pod)
    # The kubelet's own word (Evicted, NodeShutdown) says more than that it was the kubelet.
    reason = str(dig(pod, "status", "reason") or told.get("reason") or "Disrupted")
    text = str(dig(pod, "status", "message") or told.get("message") or "")
    at = parse_time(told.get("lastTransitionTime")) or began
    code = next((int(state["exitCode"]) for entry in _containers(pod) if (state := _ended(entry))), -1)
    return End(name_of(pod), index_of(pod), began, at, code, Outcome(reason=reason[:REASON_MAX], message=text), True)


def _ended(entry: Object) -> Object | None:
    found: Object | None = dig(entry, "state", "terminated")
    return found


def ends(pods: Iterable[Object]) -> list[End]:
    """How the pods' containers ended, oldest first. A pod that never ran a container but failed has an end too."""
    found = []
    for pod in pods:
        if taken := taken_away(pod):
            found.append(taken)
            continue
        name, index, began = name_of(pod), index_of(pod), _began(pod)
        states = [state for entry in _containers(pod) if (state := _ended(entry))]
        for terminated in states:
            at = parse_time(terminated.get("finishedAt")) or began
            code = int(terminated.get("exitCode", 0))
            found.append(End(name, index, began, at, code, read_termination(terminated)))
        if not states and dig(pod, "status", "phase") == "Failed":
            reason = str(dig(pod, "status", "reason") or "Failed")
            message = str(dig(pod, "status", "message") or "")
            found.append(End(name, index, began, began, -1, Outcome(reason=reason, message=message)))
    return sorted(found, key=lambda end: (end.at, end.pod))


def attempts(pods: Iterable[Object]) -> list[Attempt]:
    """The ends that were not a success, grouped by attempt of the gang, oldest first.

    A gang ends once, however many of its pods do: an end belongs to the attempt whose first end its pod was there to
    see; one of its own failures, only if that one hadn't been replaced by then. Suspensions end nothing, and neither
    does a pod that was told to go, unless somebody has taken it away, or it has a final failure to tell of.
    """
    every = list(pods)
    told = [
        end
        for pod in every
        for end in ends([pod])
        if end.taken
        or (end.exit_code not in (ExitCode.SUCCESS, ExitCode.SUSPENDED) and (end.is_final or not is_going(pod)))
    ]
    found: list[Attempt] = []
    replaced: datetime | None = None
    for end in sorted(told, key=lambda end: (end.at, end.pod)):
        # A peer may notice late that it has lost another one; that isn't one more interruption.
        in_time = replaced is None or end.at < replaced or not end.is_own
        if found and end.began <= found[-1][0].at and in_time:
            found[-1].append(end)
            continue
        found.append([end])
        later = (_began(pod) for pod in every if index_of(pod) == end.index and _began(pod) > end.at)
        replaced = min(later, default=None)
    return found


def failed_attempts(pods: Iterable[Object]) -> list[Attempt]:
    """The run's own failures, grouped by attempt, oldest first: those of pods that stopped for others are left out."""
    own = ([end for end in attempt if end.is_own] for attempt in attempts(pods))
    return [attempt for attempt in own if attempt]


def interruptions(pods: Iterable[Object]) -> list[Attempt]:
    """Attempts that ended although no pod of the gang failed by itself: one was taken away, or the registry is gone."""
    return [attempt for attempt in attempts(pods) if all(end.taken or end.exit_code in _INTERRUPTED for end in attempt)]


def is_final(attempt: Attempt) -> bool:
    """Whether the same input would fail again, so that the run isn't restarted."""
    return any(end.is_final for end in attempt)


def culprit(pods: Iterable[Object]) -> End | None:
    """The failure that tells why the gang failed.

    A final exit code tells most. Otherwise it is the first failure of the last attempt: the others follow from it.
    """
    failed = failed_attempts(pods)
    final = [end for attempt in failed for end in attempt if end.is_final]
    if final:
        return final[0]
    return failed[-1][0] if failed else None


def registered(pods: Iterable[Object], model: str) -> Outcome | None:
    """The outcome of the rank that registered a version of the model, if it names one that can exist.

    Of another model's nothing is believed: aliases are moved by what it says.
    """
    for end in reversed(ends(pods)):
        if end.exit_code == ExitCode.SUCCESS and _names_version(end.outcome, model):
            return end.outcome
    return None


def _names_version(outcome: Outcome, model: str) -> bool:
    if outcome.model_name not in (None, model):
        return False
    fields = {"name": model, "version": outcome.model_version, "digest": outcome.model_digest}
    try:
        RegisteredVersion.model_validate({**fields, "runId": outcome.run_id or ""})
    except ValidationError:
        return False
    return True


def _lacks_volumes(pod: Object) -> bool:
    """Whether the pod has no sandbox, which is made once all volumes are mounted; an image is pulled after that."""
    return condition(pod, "PodReadyToStartContainers").get("status") == "False"


def _secrets(pod: Object) -> list[str]:
    """The Secrets that the pod mounts, or their keys, for people."""
    mounted = [found for volume in dig(pod, "spec", "volumes") or () if (found := dig(volume, "secret"))]
    return [
        name
        for each in mounted
        for name in (
            [f"key {item['key']} of Secret {each['secretName']}" for item in each.get("items") or ()]
            or [f"Secret {each['secretName']}"]
        )
    ]


def trouble(pod: Object, now: datetime) -> tuple[str, str] | None:
    """Why a pod doesn't run, in the words of who prevents it: (reason, message). None for one that runs or may soon."""
    if is_ready(pod):
        return None
    name = name_of(pod)
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return str(scheduled.get("reason") or "Unschedulable"), f"{name}: {scheduled.get('message', '')}"
    for entry in (*(dig(pod, "status", "initContainerStatuses") or ()), *_containers(pod)):
        waiting = dig(entry, "state", "waiting")
        if not waiting or not waiting.get("reason"):
            continue
        if waiting["reason"] in _ON_THE_WAY:
            since = parse_time(scheduled.get("lastTransitionTime"))
            if since is None or now - since < timedelta(seconds=CREATING_SECONDS):
                continue
            late = f"{name} has had a machine for more than {CREATING_SECONDS:.0f} s and"
            if _lacks_volumes(pod) and (secrets := _secrets(pod)):
                return "FailedMount", (
                    f"{late} its volumes aren't mounted: it needs {' and '.join(secrets)}, is that there? "
                    f"`kubectl describe pod {name}` says what is in the way"
                )
            return str(waiting["reason"]), (
                f"{late} no container yet: its image is large, or a volume can't be mounted; `kubectl describe pod "
                f"{name}` says which"
            )
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
