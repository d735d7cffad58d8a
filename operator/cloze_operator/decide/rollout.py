"""How a rollout goes on: from the record and what is seen to the next record. An ordered list of small decisions, of
which the first that has something to say is the one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Final, Literal

from cloze_api.names import ANNOTATION_ROLLOUT
from cloze_api.rollout import OnNoData, Provider
from cloze_operator.analysis.burn import fast_burn
from cloze_operator.analysis.checks import Judgement, Result, judge
from cloze_operator.decide import pods
from cloze_operator.decide.answers import Unavailable, Version
from cloze_operator.decide.arms import Arm, arm, full_size, in_force, mismatches
from cloze_operator.decide.fields import dig, format_time
from cloze_operator.decide.guards import changes_tokenizer, obstacle
from cloze_operator.decide.record import Record, Rejection
from cloze_operator.decide.shares import Share, plan
from cloze_operator.decide.snapshot import ServingSnapshot
from cloze_operator.decide.target import first_revision, target_revision
from cloze_operator.decide.traffic import present_share, step_text, weights
from cloze_operator.decide.verdict import Event
from cloze_operator.desired.revision import child_name

#: Pods that get no more requests are kept for so long: gateways and proxies take a moment to notice.
SHIFT_SECONDS: Final = 15.0

COMMANDS: Final = ("promote", "abort", "pause", "resume", "retry")

#: Reasons by the check that fails.
_REASONS: Final = {
    "errors": "ErrorRatioWorse",
    "latency": "LatencyWorse",
    "unknown-tokens": "UnknownTokensWorse",
    "predictions": "PredictionsShifted",
}

Ended = Literal["", "promoted", "rolled_back", "aborted", "superseded"]


@dataclass(frozen=True, slots=True)
class Move:
    """A change of the record, what to tell of it, and whether it ends a rollout."""

    record: Record
    event: Event | None = None
    ended: Ended = ""


@dataclass(frozen=True)
class View:
    """What the decisions look at, each thing worked out once."""

    snapshot: ServingSnapshot

    @cached_property
    def target(self) -> str | None:
        """The revision that the spec asks for; None while nobody knows."""
        revision = target_revision(self.snapshot)
        return revision.name if revision else None

    @cached_property
    def quarantined(self) -> str:
        """Why the registry says not to try the target."""
        return self.snapshot.model.quarantined if isinstance(self.snapshot.model, Version) else ""

    @cached_property
    def now(self) -> datetime:
        """In whole seconds, as records are kept."""
        return self.snapshot.now.replace(microsecond=0)

    @cached_property
    def record(self) -> Record:
        """Where the rollout is."""
        return self.snapshot.record

    @cached_property
    def canary(self) -> Arm:
        """The revision that is tried."""
        return arm(self.snapshot, self.record.canary)

    @cached_property
    def share(self) -> Share:
        """The share that the canary is to have."""
        return present_share(self.snapshot)

    @cached_property
    def last_step(self) -> int:
        """Index of the promotion."""
        return len(plan(self.snapshot.parsed.spec, full_size(self.snapshot))) - 1

    @cached_property
    def judgements(self) -> tuple[Judgement, ...]:
        """What the evidence says about the canary, or about the promoted revision."""
        evidence, record = self.snapshot.evidence, self.record
        since = record.since if record.canary else record.burning
        if evidence is None or since is None:
            return ()
        return judge(self.snapshot.parsed.spec.rollout.analysis, evidence, since=since)

    def version(self, revision: str) -> str:
        """The model version of a revision, for people."""
        stored = self.snapshot.revisions.get(revision)
        return f"version {stored.revision.served.version}" if stored else f"revision {revision}"


Decision = Callable[[View], Move | None]


def begin(view: View) -> Move | None:
    """The first revision has nothing to be compared with."""
    first = None if view.record.stable else first_revision(view.snapshot)
    return Move(replace(view.record, stable=first.name, asked=view.now)) if first else None


def obey(view: View) -> Move | None:
    """What a person says in the annotation, once."""
    record, command = view.record, (view.snapshot.resource["metadata"].get("annotations") or {}).get(ANNOTATION_ROLLOUT)
    if not command:
        return Move(replace(record, obeyed="")) if record.obeyed else None
    if command == record.obeyed:
        return None
    record = replace(record, obeyed=command)
    match command:
        case "promote" if record.canary:
            event = Event("Normal", "PromoteCommand", f"{view.version(record.canary)} is promoted by command")
            # Whoever says so has seen that spec.rollout.paused is true.
            return Move(replace(record.at_step(view.last_step, view.now), resumed=True), event)
        case "abort" if record.canary:
            return _reject(view, record, "Aborted", f"{view.version(record.canary)} was aborted by command", "aborted")
        case "abort" if record.previous:
            return _return(view, record, "Aborted", "the promotion was taken back by command", "aborted")
        case "pause" if record.canary:
            text = "paused by command; annotate with resume to go on"
            return Move(record.paused("PausedByCommand", text), Event("Normal", "PausedByCommand", text))
        case "resume" if record.pause:
            text = f"{view.version(record.canary)} goes on by command; it was paused: {record.pause_message}"
            resumed = record.pause != "PausedByCommand"
            return Move(replace(record.paused("", ""), resumed=resumed), Event("Normal", "ResumedByCommand", text))
        case "retry" if view.target is not None and _is_barred(view):
            text = f"{view.version(view.target)} is tried again by command"
            rejected = {name: entry for name, entry in record.rejected.items() if name != view.target}
            return Move(
                replace(record, rejected=rejected, retried=view.target), Event("Normal", "RetriedByCommand", text)
            )
    text = (
        f"{ANNOTATION_ROLLOUT}: {command} means nothing now; it takes "
        "promote, abort or pause while there is a canary, resume while it is paused, retry after one was taken back"
        if command in COMMANDS
        else f"{ANNOTATION_ROLLOUT} takes {', '.join(COMMANDS)}, not {command[:40]!r}"
    )
    return Move(record, Event("Warning", "CommandIgnored", text))


def follow_target(view: View) -> Move | None:
    """The spec asks for another revision than is served or tried."""
    record, target, now = view.record, view.target, view.now
    if target is None or not record.stable or target == record.canary:
        return None
    if target == record.stable or _is_barred(view) or obstacle(view.snapshot, target):
        if not record.canary:
            return None
        text = f"the canary of {view.version(record.canary)} is withdrawn: it isn't asked for any more"
        return Move(record.without_canary(now), Event("Normal", "RolloutWithdrawn", text), "superseded")
    if view.snapshot.parsed.spec.rollout.paused and not record.canary:
        return None
    if _is_awaited(view) or isinstance(view.snapshot.model, Unavailable):
        # A version that the registry can't speak of may be quarantined, and couldn't be loaded either.
        return None
    ended: Ended = "superseded" if record.canary else ""
    if target == record.previous and arm(view.snapshot, target).ready >= full_size(view.snapshot):
        text = f"back to {view.version(target)}, whose pods are still there"
        swapped = replace(
            record.without_canary(now), stable=target, previous=record.stable, promoted=now, burning=None, blamed=False
        )
        return Move(swapped, Event("Normal", "ReturnedToPrevious", text), "promoted")
    tried = record.trying(target, now)
    text = f"{view.version(target)} is tried as a canary beside {view.version(record.stable)}"
    if changes_tokenizer(view.snapshot, target):
        text += "; it has another tokenizer, as spec.rollout.allowTokenizerChange says"
    if not arm(view.snapshot, record.stable).ready:
        # Nobody is served, so there is nothing to protect and nothing to compare with.
        tried = tried.at_step(view.last_step, now)
        text = f"{view.version(target)} takes over as soon as it is ready: {view.version(record.stable)} serves nobody"
    reason = "RolloutRestarted" if record.canary else "RolloutStarted"
    return Move(tried, Event("Normal", reason, text), ended)


def _is_awaited(view: View) -> bool:
    """Whether a version that was promoted before is only just starting: a canary is compared with what it serves."""
    record, alias = view.record, view.snapshot.alias
    stored = view.snapshot.revisions.get(record.stable)
    if record.canary or record.asked is None or stored is None or not isinstance(alias, Version):
        return False
    patience = timedelta(seconds=view.snapshot.parsed.spec.rollout.progress_deadline_seconds)
    same = alias.version == stored.revision.served.version
    return same and view.now - record.asked < patience and not arm(view.snapshot, record.stable).ready


def _is_barred(view: View) -> bool:
    """Whether the target isn't to be tried by itself."""
    if view.target is None or view.target == view.record.retried:
        return False
    return view.target in view.record.rejected or bool(view.quarantined)


def take_back(view: View) -> Move | None:
    """The canary has failed."""
    record, canary = view.record, view.canary
    if not record.canary:
        return None
    crashed = [text for pod in canary.pods if (text := pods.crash_loop(pod, view.now))]
    if crashed:
        return _fail(view, "CanaryCrashLoop", "; ".join(sorted(crashed)))
    if wrong := mismatches(view.snapshot, canary.pods):
        told = ", ".join(f"{name} has version {loaded.version}, {loaded.digest}" for name, loaded in wrong.items())
        return _fail(view, "VersionMismatch", f"pods have loaded something else than they were made for: {told}")
    deadline = timedelta(seconds=view.snapshot.parsed.spec.rollout.progress_deadline_seconds)
    if record.since is None and record.asked and view.now - record.asked > deadline and canary.ready < view.share.pods:
        told = next((found[1] for pod in canary.pods if (found := pods.trouble(pod, view.now))), "")
        text = f"{canary.ready} of {view.share.pods} pods are ready after {deadline.total_seconds():g} s"
        return _fail(view, "ProgressDeadlineExceeded", f"{text}; {told}".rstrip("; "))
    failed = [judgement for judgement in view.judgements if judgement.result == Result.FAIL]
    if failed:
        text = "; ".join(f"{judgement.name}: {judgement.message}" for judgement in failed)
        return _fail(view, _REASONS.get(failed[0].name, "QueryFailed"), text)
    return None


def _fail(view: View, reason: str, message: str) -> Move | None:
    record = view.record
    if view.snapshot.parsed.spec.rollout.on_failure == "Rollback":
        return _reject(view, record, reason, message, "rolled_back")
    if record.pause == reason or record.resumed:
        return None
    text = f"{view.version(record.canary)} has failed and keeps its share, as spec.rollout.onFailure says: {message}"
    return Move(record.paused(reason, message), Event("Warning", reason, text))


def _reject(view: View, record: Record, reason: str, message: str, ended: Ended) -> Move:
    rejection = Rejection(reason, message[:1024], format_time(view.now))
    text = f"{view.version(record.canary)} is rolled back, {view.version(record.stable)} serves on: {message}"
    event = Event("Warning", "RolledBack", f"{reason}: {text}")
    return Move(record.without_canary(view.now).rejecting(record.canary, rejection), event, ended)


def _return(view: View, record: Record, reason: str, message: str, ended: Ended) -> Move:
    """Back to the former revision, whose pods are still there."""
    rejection = Rejection(reason, message[:1024], format_time(view.now))
    text = f"{view.version(record.stable)} is rolled back, {view.version(record.previous)} serves again: {message}"
    back = replace(record, stable=record.previous, previous="", promoted=None, burning=None, blamed=False)
    back = back.retiring(record.stable, view.now).rejecting(record.stable, rejection)
    return Move(back, Event("Warning", "RolledBack", f"{reason}: {text}"), ended)


def advance(view: View) -> Move | None:
    """The canary's share is in force, or has been for long enough with nothing against it."""
    record, now = view.record, view.now
    if not record.canary:
        return None
    if record.since is None:
        return _enter(view)
    if view.share.pods and not view.canary.ready:
        text = f"no pod of {view.version(record.canary)} is ready any more: it is given no requests until one is"
        return Move(record.at_step(record.step, now), Event("Warning", "CanaryNotReady", text))
    if record.pause or (view.snapshot.parsed.spec.rollout.paused and not record.resumed):
        return None
    if (now - record.since).total_seconds() < view.share.hold:
        return None
    if view.share.judged and not record.resumed:
        if not view.judgements:
            return None
        late = (now - record.since).total_seconds() - view.share.hold
        waiting = [found for found in view.judgements if found.result == Result.WAITING]
        if any(found.result == Result.UNKNOWN for found in view.judgements):
            return None
        if any(late < found.patience_seconds for found in waiting):
            return None
        if move := _without_data(view, waiting):
            return move
    if record.step >= view.last_step:
        return _promote(view)
    return Move(record.at_step(record.step + 1, now))


def _enter(view: View) -> Move | None:
    """The step's share of the requests is what the canary gets by now."""
    record, now = view.record, view.now
    given = weights(view.snapshot)
    if given.get(record.canary, 0) != view.share.weight or view.canary.ready < view.share.pods:
        return None
    if not in_force(view.snapshot, given):
        return None
    began = record.began or (now if view.share.weight else None)
    entered = replace(record, since=now, began=began)
    about = "about " if view.snapshot.parsed.spec.traffic.provider == Provider.REPLICA_RATIO else ""
    text = (
        f"step {step_text(view.snapshot)}: {view.version(record.canary)} gets {about}{view.share.weight} % of the "
        f"requests, with {view.share.pods} pods"
    )
    return Move(entered, Event("Normal", "CanaryStep", text))


def _without_data(view: View, waiting: list[Judgement]) -> Move | None:
    """What follows when a step has come to its end and nothing can be said; None to go on."""
    record = view.record
    for rule in (OnNoData.ROLLBACK, OnNoData.PAUSE):
        found = [judgement for judgement in waiting if judgement.on_no_data == rule]
        if not found:
            continue
        text = "; ".join(f"{judgement.name}: {judgement.message}" for judgement in found)
        if rule == OnNoData.ROLLBACK:
            return _reject(view, record, "NoData", text, "rolled_back")
        text = f"too few requests to say anything, see spec.rollout.analysis.onNoData: {text}"
        return Move(record.paused("NoData", text[:1024]), Event("Warning", "NoData", text))
    return None


def _promote(view: View) -> Move:
    record = view.record
    text = f"{view.version(record.canary)} is promoted: it gets all requests"
    return Move(record.promoting(view.now), Event("Normal", "Promoted", text), "promoted")


def watch_promoted(view: View) -> Move | None:
    """A promoted revision that burns its error budget gives half of the requests back, to find out who is to blame."""
    record, evidence, now = view.record, view.snapshot.evidence, view.now
    if record.canary or not record.previous or record.promoted is None:
        return None
    spec = view.snapshot.parsed.spec
    window = timedelta(seconds=spec.rollout.rollback_window_seconds)
    if record.burning is None:
        if now - record.promoted >= window:
            text = f"{view.version(record.previous)}, the former one, is scaled down"
            return Move(record.forgetting(now), Event("Normal", "RollbackWindowOver", text))
        if record.blamed or evidence is None or not arm(view.snapshot, record.previous).ready:
            return None
        burn = fast_burn(evidence, "canary", availability=spec.objectives.availability, now=now)
        if not burn.burning:
            return None
        text = (
            f"{view.version(record.stable)} burns its error budget after the promotion ({burn.message}): half of the "
            f"requests go back to {view.version(record.previous)}"
        )
        return Move(replace(record, burning=now), Event("Warning", "FastBurn", text))
    errors = next((found for found in view.judgements if found.name == "errors"), None)
    if evidence is None or errors is None or errors.result == Result.UNKNOWN:
        return None
    if errors.result == Result.FAIL:
        return _return(view, record, "FastBurn", f"errors after the promotion: {errors.message}", "rolled_back")
    ours = fast_burn(evidence, "canary", availability=spec.objectives.availability, now=now)
    theirs = fast_burn(evidence, "stable", availability=spec.objectives.availability, now=now)
    if ours.burning and theirs.burning:
        text = f"both versions fail alike, so it isn't the new one: nothing moves ({ours.message}; {theirs.message})"
        return Move(replace(record, burning=None, blamed=True), Event("Warning", "BothVersionsBurn", text))
    if errors.result == Result.PASS and not ours.burning:
        text = f"{view.version(record.stable)} doesn't fail any more: it gets all requests again"
        return Move(replace(record, burning=None), Event("Normal", "BurnEnded", text))
    return None


def sweep(view: View) -> Move | None:
    """Revisions whose pods are gone, or that were none to begin with, need no more care."""
    record = view.record
    gone = [
        name
        for name in record.retired
        if is_due(view.snapshot, name)
        and view.snapshot.child("Deployment", child_name(view.snapshot.name, name)) is None
    ]
    if not gone:
        return None
    return Move(replace(record, retired={name: at for name, at in record.retired.items() if name not in gone}))


def is_due(snapshot: ServingSnapshot, revision: str) -> bool:
    """Whether a revision may lose its pods: it gets no more requests, and has got none for a while."""
    at = snapshot.record.retired.get(revision)
    return (
        at is not None and (snapshot.now - at).total_seconds() >= SHIFT_SECONDS and _is_left_alone(snapshot, revision)
    )


def _is_left_alone(snapshot: ServingSnapshot, revision: str) -> bool:
    live = snapshot.child("HTTPRoute", snapshot.name)
    for rule in dig(live, "spec", "rules") or ():
        for entry in rule.get("backendRefs") or ():
            if entry.get("name") == child_name(snapshot.name, revision) and entry.get("weight", 1):
                return False
    # A Service before all pods is left for one before the stable revision's first.
    return in_force(snapshot, weights(snapshot))


MOVES: Final[tuple[Decision, ...]] = (begin, obey, follow_target, take_back, advance, watch_promoted, sweep)


def next_move(view: View) -> Move | None:
    """The first decision that has something to say; None when everything is as it should be."""
    for decide in MOVES:
        if move := decide(view):
            return move
    return None
