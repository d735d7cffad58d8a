"""Pods that were deleted by hand: Kubernetes tells of evictions by a condition, and of these by nothing."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final

from cloze_api.progress import FINAL_EXIT_CODES, ExitCode
from cloze_operator.decide.fields import Object, condition, dig, format_time, is_going, is_true, parse_time

REASON: Final = "PodDeleted"
_MESSAGE: Final = "the pod was deleted, by hand perhaps"
_TOLD: Final = "DisruptionTarget"
#: Conditions of a Job that is ending, with which its controller deletes what still runs.
ENDING: Final = ("Complete", "Failed", "FailureTarget", "SuccessCriteriaMet")


def witnessed(pods: Iterable[Object], job: Object | None) -> tuple[Object, ...]:
    """The pods of a Job, of which those that were deleted while it wanted them say so, as one that was evicted does.

    A Job that was resumed may still have pods that its suspension has stopped.
    """
    if job is None or is_going(job) or dig(job, "spec", "suspend") or any(is_true(job, kind) for kind in ENDING):
        return tuple(pods)
    suspension = condition(job, "Suspended")
    if suspension.get("status") == "True":
        # Its controller hasn't seen yet that it goes on.
        return tuple(pods)
    resumed = parse_time(suspension.get("lastTransitionTime"))
    since = format_time(resumed) if resumed else ""
    return tuple(_told(pod) if _was_deleted(pod, since) else pod for pod in pods)


def _was_deleted(pod: Object, since: str) -> bool:
    """Whether the pod was told to go, after a moment and before it ended, or ended of that; one with a last word of its
    own has had it.
    """
    if not is_going(pod) or is_true(pod, _TOLD) or _asked(pod) <= since:
        return False
    ended = [found for entry in dig(pod, "status", "containerStatuses") or () if (found := _terminated(entry))]
    own = {ExitCode.SUCCESS, *FINAL_EXIT_CODES}
    return not any(int(each.get("exitCode", 0)) in own or _finished(each) < _asked(pod) for each in ended)


def _terminated(entry: Object) -> Object | None:
    found: Object | None = dig(entry, "state", "terminated")
    return found


def _finished(terminated: Object) -> str:
    moment = parse_time(terminated.get("finishedAt"))
    return format_time(moment) if moment else ""


def _asked(pod: Object) -> str:
    """When the pod was told to go; its own time says by when it must be gone."""
    by = parse_time(pod["metadata"]["deletionTimestamp"])
    assert by is not None, "it is going"
    return format_time(by - timedelta(seconds=int(pod["metadata"].get("deletionGracePeriodSeconds") or 0)))


def _told(pod: Object) -> Object:
    taken: Mapping[str, str] = {
        "type": _TOLD,
        "status": "True",
        "reason": REASON,
        "message": _MESSAGE,
        "lastTransitionTime": _asked(pod),
    }
    status = dig(pod, "status") or {}
    others = [each for each in status.get("conditions") or () if each.get("type") != _TOLD]
    return {**pod, "status": {**status, "conditions": [*others, taken]}}
