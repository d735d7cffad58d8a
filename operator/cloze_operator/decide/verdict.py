"""What a decision is made of, and how it becomes a status."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

from cloze_api.schema import Reported
from cloze_operator.decide.fields import Object, condition, format_time
from cloze_operator.desired.metadata import Manifest

#: Condition of a resource whose last reconciliation failed. It is set outside of decisions, by a field manager of its
#: own, so that it can be added to whatever the status says by then.
RECONCILE_FAILED: Final = "ReconcileFailed"

#: Reason of a condition while its alias is being moved.
_MOVING: Final = "MovingAlias"

#: Conditions whose becoming True, or False, is worth an event, and the event's type.
_EVENTS: Final[Mapping[tuple[str, str], str]] = {
    ("Accepted", "False"): "Warning",
    ("BaseReady", "False"): "Warning",
    ("TeacherReady", "False"): "Warning",
    ("SourcesReady", "False"): "Warning",
    ("Running", "True"): "Normal",
    ("Running", "False"): "Warning",
    ("Succeeded", "True"): "Normal",
    ("Succeeded", "False"): "Warning",
    ("Registered", "True"): "Normal",
    ("Registered", "False"): "Warning",
    ("ModelResolved", "False"): "Warning",
    ("ModelResolved", "True"): "Normal",
    ("Ready", "True"): "Normal",
    ("Ready", "False"): "Warning",
    ("Progressing", "False"): "Warning",
    ("AliasConflict", "True"): "Warning",
    ("AliasMoved", "True"): "Normal",
    ("AliasMoved", "False"): "Warning",
    ("CanaryHealthy", "Unknown"): "Warning",
    (RECONCILE_FAILED, "True"): "Warning",
}

#: Reasons that are an ordinary part of a life: somebody else is still at work.
_WAITING: Final = frozenset(
    {
        "ModelNotFound",
        "FallbackNotFound",
        "PretrainJobNotFound",
        "SourceNotFound",
        "WaitingForPretrainJob",
        "WaitingForRegistry",
        "WaitingForPods",
        "Queued",
    }
)

#: Conditions and reasons that somebody who has them before their eyes anyway needs no event for: the passing ones, and
#: those of which another condition tells.
_UNTOLD: Final = frozenset(
    {
        *(("Running", reason) for reason in ("PodsPending", "ReplacingChildren", "WaitingForCleanup")),
        *(("Running", reason) for reason in ("Suspended", "SuspendedOutOfQueue", "Completed", "Failed")),
        *(("Running", reason) for reason in ("WaitingForBase", "WaitingForTeacher", "WaitingForSources")),
        *(("Ready", reason) for reason in ("RollingOut", "NoReplicas", "WaitingForCleanup")),
        *(
            ("Ready", reason)
            for reason in ("ModelNotFound", "FallbackNotFound", "FallbackUnfit", "DigestMissing", "RegistryUnavailable")
        ),
        *(("Progressing", reason) for reason in ("RolloutComplete", "RolledBack")),
        *(("CanaryHealthy", reason) for reason in ("NotJudgedYet", "WaitingForRequests")),
        ("Registered", _MOVING),
        ("AliasMoved", _MOVING),
    }
)

_MESSAGE_LIMIT: Final = 4096


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition without its bookkeeping.

    generation: of the resource when this was found; None for what is found now.
    """

    status: str
    reason: str
    message: str = ""
    generation: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something to tell the person who looks at the resource."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Target:
    """A child to delete, exactly the one that was looked at.

    with_pods: it is there until its pods are gone, so that what takes its place meets none of them.
    """

    kind: str
    name: str
    uid: str
    with_pods: bool = False


def target_of(child: Object) -> Target:
    """A live child as something to change or delete."""
    metadata = child["metadata"]
    return Target(str(child["kind"]), metadata["name"], metadata["uid"])


@dataclass(frozen=True, slots=True)
class Change:
    """Fields of a child's spec to set; None removes a field."""

    target: Target
    spec: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AliasMove:
    """Point an alias to a version, provided that it still points to `expected` (None: to nothing).

    condition: the one that tells of the move, and of a refusal.
    """

    model: str
    alias: str
    version: str
    expected: str | None
    condition: str


@dataclass(frozen=True, slots=True)
class TagChange:
    """Set a tag of a model version."""

    model: str
    version: str
    key: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Everything that is to happen to one resource now.

    remember: a record that children will follow from; it is written after what it names, and only over the one that
        was observed.
    obeyed: the command in the resource's annotation that has been carried out and may go.
    ended: how a rollout ended, to be counted.

    status: all fields of the status but `conditions`, `state` and `observedGeneration`.
    start: the status is written before there is a Job to run, and only if the resource is still the one that was
        observed.
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
    remember: Manifest | None = None
    tag: TagChange | None = None
    obeyed: str = ""
    ended: str = ""
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

    def confirmed(self) -> "Verdict":
        """With every condition found again as it is."""
        return replace(self, findings={kind: replace(found, generation=None) for kind, found in self.findings.items()})

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

    def pointing(self, move: AliasMove, text: str, patience: float) -> "Verdict":
        """With this alias moved, and looked at again to see that it is: soon, then every `patience` seconds."""
        old = self.findings.get(move.condition)
        seconds = patience if old and old.reason == _MOVING else 0.5
        return replace(self.find(move.condition, "False", _MOVING, text).again(seconds), alias=move)

    def remembering(self, manifest: Manifest, ended: str) -> "Verdict":
        """With this record written, and looked at again at once to carry it out."""
        return replace(self, remember=manifest, ended=ended).again(0)

    def tagging(self, change: TagChange) -> "Verdict":
        """With this tag of a model version changed."""
        return replace(self, tag=change)

    def having_obeyed(self, command: str) -> "Verdict":
        """With the annotation of this command taken away."""
        return replace(self, obeyed=command).again(0)

    def deleting(self, *targets: Target) -> "Verdict":
        """With these children deleted."""
        return replace(self, delete=(*self.delete, *targets))

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
        """With the start of the run written before there is a Job to run."""
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


def carried(resource: Object, status: type[Reported]) -> Verdict:
    """The verdict that everything is as the resource's status has it: what decisions start from."""
    said = resource.get("status") or {}
    own = {field.alias or name for name, field in status.model_fields.items()} - {
        "observedGeneration",
        "state",
        "conditions",
    }
    return Verdict(findings=previous_findings(resource), status={key: said[key] for key in said if key in own})


def previous_findings(resource: Object) -> dict[str, Finding]:
    """The conditions that the resource has now, but for the one that isn't decided."""
    conditions = (resource.get("status") or {}).get("conditions") or ()
    return {
        entry["type"]: Finding(
            entry["status"], entry["reason"], entry.get("message", ""), entry.get("observedGeneration", 0)
        )
        for entry in conditions
        if entry["type"] != RECONCILE_FAILED
    }


def render_condition(resource: Object, kind: str, found: Finding, now: datetime) -> dict[str, Any]:
    """One entry of `status.conditions`. It keeps its transition time for as long as its status stays the same."""
    old = condition(resource, kind)
    same = old.get("status") == found.status
    generation = resource["metadata"].get("generation", 0)
    return {
        "type": kind,
        "status": found.status,
        "reason": found.reason,
        "message": found.message,
        "observedGeneration": generation if found.generation is None else found.generation,
        "lastTransitionTime": old["lastTransitionTime"] if same else format_time(now),
    }


def render_status(resource: Object, verdict: Verdict, state: str, now: datetime) -> dict[str, Any]:
    """The whole status."""
    status = {
        **verdict.status,
        "observedGeneration": resource["metadata"].get("generation", 0),
        "state": state,
        "conditions": [
            render_condition(resource, kind, found, now) for kind, found in sorted(verdict.findings.items())
        ],
    }
    return {key: value for key, value in status.items() if value is not None}


def event_of(resource: Object, kind: str, found: Finding) -> Event | None:
    """The event of a condition that has become something worth telling; None otherwise."""
    before = condition(resource, kind)
    if (before.get("status"), before.get("reason")) == (found.status, found.reason):
        return None
    level = _EVENTS.get((kind, found.status))
    if level is None or (kind, found.reason) in _UNTOLD:
        return None
    return Event("Normal" if found.reason in _WAITING else level, found.reason, found.message)


def transition_events(resource: Object, verdict: Verdict) -> tuple[Event, ...]:
    """One event for each condition that has become something worth telling."""
    events = (event_of(resource, kind, found) for kind, found in sorted(verdict.findings.items()))
    return tuple(event for event in events if event is not None)
