"""Decisions about a ModelDeployment: which version, how its rollout goes on, may the alias follow."""

from cloze_api.deployment import ModelDeploymentStatus
from cloze_api.names import TAG_QUARANTINED
from cloze_operator.decide.answers import NotFound, Unavailable, Version, current_version
from cloze_operator.decide.children import claimed, drifted, unneeded, wanted
from cloze_operator.decide.fields import is_going
from cloze_operator.decide.ownership import foreign, left_over
from cloze_operator.decide.record import dump
from cloze_operator.decide.report import report_rollout, report_serving
from cloze_operator.decide.rollout import View, next_move
from cloze_operator.decide.snapshot import ServingSnapshot
from cloze_operator.decide.target import (
    decided_fallback,
    decided_version,
    fallback_fault,
    target_revision,
    unstored,
    version_fault,
)
from cloze_operator.decide.verdict import AliasMove, Steps, TagChange, Verdict, carried
from cloze_operator.desired.metadata import selector
from cloze_operator.desired.record import record_map, record_name
from cloze_operator.desired.revision import ServedVersion, controller_revision, devices_of


def leave_when_going(view: View, verdict: Verdict) -> Verdict:
    """A resource that is being deleted is the garbage collector's."""
    return verdict.settle() if is_going(view.snapshot.resource) else verdict


def accept(view: View, verdict: Verdict) -> Verdict:
    """The spec is one that this operator understands, and so is the rollout's record."""
    snapshot = view.snapshot
    if snapshot.deployment is None:
        return verdict.find("Accepted", "False", "InvalidSpec", snapshot.invalid).settle()
    if snapshot.corrupt:
        text = (
            f"ConfigMap {record_name(snapshot.name)} can't be read: {snapshot.corrupt}; put it right, or delete it to "
        )
        return verdict.find("Accepted", "False", "RecordUnreadable", f"{text}start without a rollout").settle()
    if (devices := devices_of(snapshot.deployment)) and not (
        snapshot.deployment.spec.runtime.image or snapshot.platform.serve_gpu_image
    ):
        text = (
            f"spec.resources asks for {devices[0][0]}, and this installation has no image for it: name one in "
            "spec.runtime.image, or set the chart's images.serveGpu"
        )
        return verdict.find("Accepted", "False", "GpuImageMissing", text).settle()
    return verdict.find("Accepted", "True", "SpecAccepted")


def claim_alias(view: View, verdict: Verdict) -> Verdict:
    """Condition AliasConflict: an alias has one owner, the oldest. The others serve, but never move it."""
    snapshot = view.snapshot
    follow = snapshot.parsed.spec.model.follow
    if follow is None or not snapshot.rivals:
        return verdict.without("AliasConflict")
    text = (
        f"{snapshot.rivals[0]} is older and moves alias {follow.alias} of {snapshot.parsed.spec.model.name}: "
        "this one serves the model but leaves the alias alone; give it another spec.model.follow.alias"
    )
    return verdict.find("AliasConflict", "True", "AliasOwnedByAnother", text)


def resolve_model(view: View, verdict: Verdict) -> Verdict:
    """Condition ModelResolved. Without an answer, what was resolved before is served on."""
    snapshot = view.snapshot
    served = decided_version(snapshot)
    unanswered = isinstance(snapshot.model, NotFound | Unavailable)
    if snapshot.parsed.spec.model.follow is not None or served is None or unanswered:
        # Nothing tells when an alias moves, a version appears, or the registry is back.
        verdict = verdict.again(snapshot.platform.wait_seconds)
    kept = f"; serving version {served.version} as before" if served else ""
    match snapshot.model:
        case Version(name=name, version=version, digest=digest) if digest:
            verdict = verdict.find("ModelResolved", "True", "Resolved", f"{name} version {version}, {digest}")
        case Version(name=name, version=version):
            text = f"{name} version {version} has no digest tag: it wasn't registered by Cloze{kept}"
            verdict = verdict.find("ModelResolved", "False", "DigestMissing", text)
        case NotFound(message):
            verdict = verdict.find("ModelResolved", "False", "ModelNotFound", f"{message}{kept}")
        case Unavailable(message):
            verdict = verdict.find("ModelResolved", "Unknown", "RegistryUnavailable", f"{message}{kept}")
        case None:
            # A fixed version that is stored: versions never change, so there was nothing to ask.
            assert served is not None, "the registry wasn't asked although nothing is known"
            text = f"{served.name} version {served.version}, {served.digest}"
            verdict = verdict.find("ModelResolved", "True", "Resolved", text)
    verdict = _resolve_fallback(snapshot, verdict, served)
    if served is not None and (fault := version_fault(snapshot, served)):
        verdict = verdict.find("ModelResolved", "False", *fault)
    if served is None or (target_revision(snapshot) is None and not snapshot.record.stable):
        verdict = verdict.report(desired=None)
        waiting = verdict.findings["ModelResolved"]
        return verdict if snapshot.record.stable else verdict.find("Ready", "False", waiting.reason, waiting.message)
    return verdict.report(desired={"name": served.name, "version": served.version, "digest": served.digest})


def _resolve_fallback(snapshot: ServingSnapshot, verdict: Verdict, served: ServedVersion | None) -> Verdict:
    """Condition ModelResolved, as far as it is the fallback's."""
    wanted, model = snapshot.parsed.spec.model.fallback, verdict.findings["ModelResolved"]
    if wanted is None or model.status != "True" or served is None:
        return verdict
    kept = "; what was served is served as before" if snapshot.record.stable else ""
    if (found := decided_fallback(snapshot)) is not None:
        if fault := fallback_fault(snapshot, served, found):
            return verdict.find("ModelResolved", "False", "FallbackUnfit", f"spec.model.fallback: {fault}{kept}")
        text = f"{model.message}; fallback {found.name} version {found.version}, {found.digest}"
        return verdict.find("ModelResolved", "True", "Resolved", text)
    verdict = verdict.again(snapshot.platform.wait_seconds)
    match snapshot.fallback:
        case NotFound(message):
            text = f"spec.model.fallback: {message}: register it, or name another one{kept}"
            return verdict.find("ModelResolved", "False", "FallbackNotFound", text)
        case Unavailable(message):
            return verdict.find("ModelResolved", "Unknown", "RegistryUnavailable", f"{message}{kept}")
        case _:
            text = f"{wanted.name} version {wanted.version} has no digest tag: it wasn't registered by Cloze{kept}"
            return verdict.find("ModelResolved", "False", "DigestMissing", f"spec.model.fallback: {text}")


def respect_others(view: View, verdict: Verdict) -> Verdict:
    """Nothing is made or changed while somebody else has one of the names."""
    snapshot = view.snapshot
    children = claimed(snapshot)
    if conflict := foreign(children, snapshot.resource):
        verdict = verdict.find("Ready", "False", "NameConflict", conflict)
        return verdict.again(snapshot.platform.wait_seconds).settle()
    if leaving := left_over(children, snapshot.resource):
        return verdict.find("Ready", "False", "WaitingForCleanup", leaving).again(2).settle()
    return verdict


def go_on(view: View, verdict: Verdict) -> Verdict:
    """Either the record changes, or what it says is carried out: never both in one look."""
    snapshot = view.snapshot
    owner = snapshot.resource
    new = unstored(snapshot)
    if new:
        stored_now = (controller_revision(owner, stored.revision, stored.number) for stored in new)
        return verdict.applying(*stored_now).again(0)
    if move := next_move(view):
        version = (snapshot.child("ConfigMap", record_name(snapshot.name)) or {}).get("metadata", {})
        manifest = record_map(owner, dump(move.record), version.get("resourceVersion"))
        verdict = verdict.remembering(manifest, move.ended)
        return verdict.telling(move.event.type, move.event.reason, move.event.message) if move.event else verdict
    if snapshot.record.obeyed:
        verdict = verdict.having_obeyed(snapshot.record.obeyed)
    if not snapshot.record.stable:
        if isinstance(snapshot.alias, Unavailable):
            # Whether the candidate may begin depends on what was promoted before.
            verdict = verdict.find("Ready", "False", "RegistryUnavailable", snapshot.alias.message)
        return verdict
    manifests = wanted(snapshot)
    if any(is_going(child) for child in snapshot.children.values()):
        # Applying to an object that is going would be lost with it.
        verdict = verdict.again(2)
    verdict = verdict.applying(*drifted(snapshot, manifests)).deleting(*unneeded(snapshot, manifests))
    name, namespace = owner["metadata"]["name"], owner["metadata"]["namespace"]
    labels = ",".join(f"{key}={value}" for key, value in sorted(selector(owner["kind"], name).items()))
    if snapshot.record.canary or snapshot.record.previous or snapshot.record.retired:
        verdict = verdict.again(snapshot.platform.poll_seconds)
    return verdict.report(url=f"http://{name}.{namespace}.svc", selector=labels)


def report(view: View, verdict: Verdict) -> Verdict:
    """What the status says."""
    return report_rollout(view, report_serving(view.snapshot, verdict))


def promote_alias(view: View, verdict: Verdict) -> Verdict:
    """`follow.alias` goes to the version that is promoted and ready, and only from where it was seen to be."""
    snapshot = view.snapshot
    model = snapshot.parsed.spec.model
    stored = snapshot.revisions.get(snapshot.record.stable)
    ready = verdict.findings.get("Ready")
    if model.follow is None:
        return verdict.without("AliasMoved")
    if snapshot.rivals or stored is None or ready is None or ready.status != "True" or snapshot.record.burning:
        return verdict
    served = stored.revision.served
    if served.name != model.name:
        return verdict
    alias, version = model.follow.alias, served.version
    match snapshot.alias:
        case None:
            return verdict.again(0.5)
        case Unavailable(message):
            verdict = verdict.find("AliasMoved", "Unknown", "RegistryUnavailable", message)
            return verdict.again(snapshot.platform.wait_seconds)
        case Version() as current if current.version == version:
            return verdict.find("AliasMoved", "True", f"Version{version}", f"alias {alias} points to version {version}")
        case current:
            move = AliasMove(model.name, alias, version, current_version(current), "AliasMoved")
            return verdict.pointing(
                move, f"pointing alias {alias} to version {version}", snapshot.platform.wait_seconds
            )


def quarantine(view: View, verdict: Verdict) -> Verdict:
    """A version whose canary was rolled back for its own faults is marked in the registry."""
    answer, record = view.snapshot.model, view.record
    stable = view.snapshot.revisions.get(record.stable)
    if not isinstance(answer, Version) or view.target is None:
        return verdict
    if stable and (stable.revision.served.name, stable.revision.served.version) == (answer.name, answer.version):
        # It serves well with the former image and settings: those of the canary are to blame.
        return verdict
    rejected = record.rejected.get(view.target)
    if rejected and rejected.reason not in _BLAMELESS and not answer.quarantined:
        text = f"{rejected.reason}: {rejected.message}"[:500]
        return verdict.tagging(TagChange(answer.name, answer.version, TAG_QUARANTINED, text))
    return verdict


#: A canary that was taken back for these has shown nothing bad about the model.
_BLAMELESS = frozenset({"Aborted", "NoData", "ProgressDeadlineExceeded"})


def serving_state(verdict: Verdict) -> str:
    """`status.state`: derived from the conditions, for people."""
    found = {kind: (finding.status, finding.reason) for kind, finding in verdict.findings.items()}
    ready, reason = found.get("Ready", ("False", ""))
    progress = found.get("Progressing", ("True", ""))
    special = {
        "NoReplicas": "Stopped",
        "CrashLoopBackOff": "Failing",
        "NameConflict": "Invalid",
        "WaitingForCleanup": "Waiting",
    }
    if found.get("Accepted", ("True", ""))[0] == "False":
        return "Invalid"
    if ready == "True":
        return _ROLLOUT_STATES.get(progress[1], "Ready")
    if reason in special:
        return special[reason]
    if verdict.status.get("desired") is None and verdict.status.get("stable") is None:
        return "Waiting"
    return "RollingOut" if progress[0] == "True" else "Failing"


_ROLLOUT_STATES = {
    **dict.fromkeys(
        (
            "ManifestSchemaUnknown",
            "PrecisionMissing",
            "TaskMismatch",
            "LabelSchemaMismatch",
            "TokenizerMismatch",
            "TokenizerChangeNeedsSteps",
        ),
        "Blocked",
    ),
    "PreparingStep": "Canary",
    "CanaryStep": "Canary",
    "Paused": "Paused",
    "ProbingBurn": "Probing",
    "RolledBack": "RolledBack",
    "Quarantined": "RolledBack",
}


SERVING: Steps[View] = Steps(
    steps=(
        leave_when_going,
        accept,
        claim_alias,
        resolve_model,
        respect_others,
        go_on,
        report,
        promote_alias,
        quarantine,
    ),
    state=serving_state,
)


def decide_serving(snapshot: ServingSnapshot) -> tuple[Verdict, str]:
    """What is to happen to a ModelDeployment, and its state."""
    return SERVING.decide(View(snapshot), carried(snapshot.resource, ModelDeploymentStatus))
