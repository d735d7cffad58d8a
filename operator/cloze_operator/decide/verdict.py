"""What a decision is made of, and how it becomes a status."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

from cloze_operator.decide.fields import Object, format_time
from cloze_operator.desired.metadata import Manifest

#: Condition of a resource whose last reconciliation failed. It is set outside of decisions, and each decision drops it.
RECONCILE_FAILED: Final = "ReconcileFailed"

#: Transitions that are worth an event, and the event's type.
_EVENTS: Final[Mapping[tuple[str, str], str]] = {
    ("Accepted", "False"): "Warning",
    ("BaseReady", "False"): "Warning",
    ("SourcesReady", "False"): "Warning",
    ("Running", "True"): "Normal",
    ("Succeeded", "True"): "Normal",
    ("Succeeded", "False"): "Warning",
    ("Registered", "True"): "Normal",
    ("ModelResolved", "False"): "Warning",
    ("ModelResolved", "True"): "Normal",
    ("Ready", "True"): "Normal",
    ("AliasConflict", "True"): "Warning",
    ("AliasMoved", "True"): "Normal",
}

_MESSAGE_LIMIT: Final = 4096


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition without its bookkeeping."""

    status: str
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something to tell the person who looks at the resource."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Target:
    """A child to delete, exactly the one that was looked at."""

    api_version: str
    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Change:
    """Fields of a child's spec to set; None removes a field."""

    target: Target
    spec: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AliasMove:
    """Point an alias to a version, provided that it still points to `expected` (None: to nothing)."""

    model: str
    alias: str
    version: str
    expected: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Everything that is to happen to one resource now.

    status: all fields of the status but `conditions`, `state` and `observedGeneration`.
    start: the status is written before the children, and only if the resource is still the one that was observed.
    requeue: seconds until the next look; None leaves it to watches and to the resync.
    settled: the remaining steps are skipped.
    """

    findings: Mapping[str, Finding] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    apply: tuple[Manifest, ...] = ()
    change: tuple[Change, ...] = ()
    delete: tuple[Target, ...] = ()
    delete_resource: bool = False
    alias: AliasMove | None = None
    events: tuple[Event, ...] = ()
    failure: str | None = None
    start: bool = False
    requeue: float | None = None
    settled: bool = False

    def find(self, kind: str, status: str, reason: str, message: str = "") -> "Verdict":
        """With this condition."""
        return replace(self, findings={**self.findings, kind: Finding(status, reason, message[:_MESSAGE_LIMIT])})

    def without(self, *kinds: str) -> "Verdict":
        """Without these conditions."""
        return replace(self, findings={kind: found for kind, found in self.findings.items() if kind not in kinds})

    def report(self, **fields: Any) -> "Verdict":
        """With these status fields; None removes one."""
        return replace(self, status={**self.status, **fields})

    def applying(self, *manifests: Manifest) -> "Verdict":
        """With these children applied, after those named before."""
        return replace(self, apply=(*self.apply, *manifests))

    def telling(self, type: str, reason: str, message: str) -> "Verdict":  # noqa: A002 - Kubernetes' own word
        """With this event."""
        return replace(self, events=(*self.events, Event(type, reason, message)))

    def again(self, seconds: float) -> "Verdict":
        """Looked at again after at most this time."""
        return replace(self, requeue=seconds if self.requeue is None else min(seconds, self.requeue))

    def calm(self) -> "Verdict":
        """Without a next look of its own: whatever was polled has come to an end."""
        return replace(self, requeue=None)

    def moving(self, alias: AliasMove) -> "Verdict":
        """With this alias moved."""
        return replace(self, alias=alias)

    def failing(self, reason: str) -> "Verdict":
        """With the run counted as failed for good."""
        return replace(self, failure=reason)

    def changing(self, *changes: Change) -> "Verdict":
        """With these children's fields set."""
        return replace(self, change=(*self.change, *changes))

    def replacing(self, *targets: Target) -> "Verdict":
        """With these children deleted and nothing applied: what takes their place comes once they are gone."""
        return replace(self, delete=targets, apply=(), change=())

    def starting(self, at: str) -> "Verdict":
        """With the start of the run written before anything else happens."""
        return replace(self, status={**self.status, "startTime": at}, start=True)

    def expiring(self) -> "Verdict":
        """With the resource itself deleted."""
        return replace(self, delete_resource=True)

    def settle(self) -> "Verdict":
        """With the remaining steps skipped."""
        return replace(self, settled=True)


Snapshot = TypeVar("Snapshot")


@dataclass(frozen=True, slots=True)
class Steps(Generic[Snapshot]):
    """An ordered list of small decisions. Each adds to the verdict of those before it; one that settles it is the last.

    state: derives `status.state`, for the printer column only.
    """

    steps: tuple[Callable[[Snapshot, Verdict], Verdict], ...]
    state: Callable[[Verdict], str]

    def decide(self, snapshot: Snapshot, verdict: Verdict) -> tuple[Verdict, str]:
        """The verdict of all steps and the state."""
        for step in self.steps:
            verdict = step(snapshot, verdict)
            if verdict.settled:
                break
        return verdict, self.state(verdict)


def previous_findings(resource: Object) -> dict[str, Finding]:
    """The conditions that the resource has now."""
    conditions = (resource.get("status") or {}).get("conditions") or ()
    return {
        entry["type"]: Finding(entry["status"], entry["reason"], entry.get("message", ""))
        for entry in conditions
        if entry["type"] != RECONCILE_FAILED
    }


def render_status(resource: Object, verdict: Verdict, state: str, now: datetime) -> dict[str, Any]:
    """The whole status. A condition keeps its transition time for as long as its status stays the same."""
    old = {entry["type"]: entry for entry in (resource.get("status") or {}).get("conditions") or ()}
    conditions = [
        {
            "type": kind,
            "status": found.status,
            "reason": found.reason,
            "message": found.message,
            "observedGeneration": resource["metadata"].get("generation", 0),
            "lastTransitionTime": old[kind]["lastTransitionTime"]
            if kind in old and old[kind]["status"] == found.status
            else format_time(now),
        }
        for kind, found in sorted(verdict.findings.items())
    ]
    status = {
        **verdict.status,
        "observedGeneration": resource["metadata"].get("generation", 0),
        "state": state,
        "conditions": conditions,
    }
    return {key: value for key, value in status.items() if value is not None}


def transition_events(resource: Object, verdict: Verdict) -> tuple[Event, ...]:
    """One event for each condition that has become something worth telling."""
    before = previous_findings(resource)
    return tuple(
        Event(_EVENTS[kind, found.status], found.reason, found.message)
        for kind, found in sorted(verdict.findings.items())
        if (kind, found.status) in _EVENTS
        and (kind not in before or (before[kind].status, before[kind].reason) != (found.status, found.reason))
    )
