"""Which revision the spec asks for."""

from cloze_api.names import LABEL_REVISION
from cloze_api.task import Task
from cloze_operator.decide.answers import Answer, NotFound, Version
from cloze_operator.decide.arms import arm
from cloze_operator.decide.fields import dig
from cloze_operator.decide.guards import unloadable
from cloze_operator.decide.snapshot import ServingSnapshot, StoredRevision
from cloze_operator.desired.revision import Revision, ServedVersion, revision_of

_ABSTAINING = (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION)


def decided_version(snapshot: ServingSnapshot) -> ServedVersion | None:
    """The version to serve: what the registry says, else what is being served or tried already."""
    return _served(snapshot.model) or known_version(snapshot)


def known_version(snapshot: ServingSnapshot) -> ServedVersion | None:
    """The version that the spec asks for, as the stored revisions have it: there is nobody to ask about such a one."""
    model, record = snapshot.parsed.spec.model, snapshot.record
    names = [record.canary, record.stable, *(() if model.follow else snapshot.revisions)]
    for stored in filter(None, map(snapshot.revisions.get, names)):
        served = stored.revision.served
        if served.name == model.name and model.version in (None, served.version):
            return served
    return None


def known_fallback(snapshot: ServingSnapshot) -> ServedVersion | None:
    """The fallback that the spec asks for, as a stored revision has it: versions never change."""
    wanted = snapshot.parsed.spec.model.fallback
    for stored in snapshot.revisions.values():
        for found in (stored.revision.fallback, stored.revision.served):
            if wanted and found and (found.name, found.version) == (wanted.name, wanted.version):
                return found
    return None


def decided_fallback(snapshot: ServingSnapshot) -> ServedVersion | None:
    """The fallback of the spec; None where it has none, or where nobody knows its digest."""
    if snapshot.parsed.spec.model.fallback is None:
        return None
    return _served(snapshot.fallback) or known_fallback(snapshot)


def fallback_fault(snapshot: ServingSnapshot, served: ServedVersion, fallback: ServedVersion) -> str:
    """Why the one can't answer what the other abstains on, as far as the registry tells; empty where it can."""
    mine, other = served.facts.task, fallback.facts.task
    if mine and mine not in _ABSTAINING:
        return f"{served.name} version {served.version} is for {mine}: only classifiers of texts or tokens abstain"
    if mine and other and mine != other:
        return (
            f"{fallback.name} version {fallback.version} is for {other}, not for {mine}: name another fallback, or none"
        )
    precision, has = snapshot.parsed.spec.runtime.precision, fallback.facts.precisions
    if has and precision not in has.split(", "):
        name = f"{fallback.name} version {fallback.version}"
        return f"{name} has the precisions {has}, not {precision}, which spec.runtime.precision asks of both models"
    return ""


def is_settled(snapshot: ServingSnapshot) -> bool:
    """Whether the registry has nothing to tell about a fixed version: it is served or tried, and hasn't failed."""
    model, record = snapshot.parsed.spec.model, snapshot.record
    if model.follow is not None or record.rejected:
        return False
    # Of one that is only remembered, somebody may have found out meanwhile that it is no good.
    used = (snapshot.revisions[name].revision.served for name in record.in_use if name in snapshot.revisions)
    return any((served.name, served.version) == (model.name, model.version) for served in used)


def target_revision(snapshot: ServingSnapshot) -> Revision | None:
    """The revision that the spec asks for; None while its version isn't known."""
    served = decided_version(snapshot)
    return _revision(snapshot, served) if served else None


def version_fault(snapshot: ServingSnapshot, served: ServedVersion) -> tuple[str, str] | None:
    """Why nothing can begin with this version: (reason, message). Where something is served, the rollout says it."""
    return None if snapshot.record.stable else unloadable(served, snapshot.parsed.spec.runtime.precision)


def _revision(snapshot: ServingSnapshot, served: ServedVersion) -> Revision | None:
    """The revision with this version; None for one that can't be loaded, and while its fallback isn't known, or can't
    be one."""
    if version_fault(snapshot, served):
        return None
    fallback = decided_fallback(snapshot)
    if snapshot.parsed.spec.model.fallback and (fallback is None or fallback_fault(snapshot, served, fallback)):
        return None
    return revision_of(snapshot.parsed, served, snapshot.platform, fallback)


def first_revision(snapshot: ServingSnapshot) -> Revision | None:
    """The revision to begin with: a version that was promoted before serves while the candidate is tried."""
    if serving := _serving_revision(snapshot):
        return serving
    if snapshot.parsed.spec.model.follow is not None:
        if promoted := _served(snapshot.alias):
            return _revision(snapshot, promoted)
        if not isinstance(snapshot.alias, NotFound | Version):
            # Whether one was promoted before isn't known: serving the candidate could be a switch without a canary.
            return None
    return target_revision(snapshot)


def _serving_revision(snapshot: ServingSnapshot) -> Revision | None:
    """The revision that has the requests although no record says so: the record was lost, and nobody else must be."""
    chosen = (dig(snapshot.child("Service", snapshot.name), "spec", "selector") or {}).get(LABEL_REVISION)
    able = [stored for stored in snapshot.revisions.values() if arm(snapshot, stored.name).ready]
    if not able:
        return None
    return max(able, key=lambda one: (one.name == chosen, arm(snapshot, one.name).ready, -one.number)).revision


def unstored(snapshot: ServingSnapshot) -> tuple[StoredRevision, ...]:
    """Revisions that the record is about to name and that aren't stored yet, with their numbers."""
    first = None if snapshot.record.stable else first_revision(snapshot)
    wanted = {revision.name: revision for revision in (first, target_revision(snapshot)) if revision}
    highest = max((stored.number for stored in snapshot.revisions.values()), default=0)
    missing = [revision for name, revision in wanted.items() if name not in snapshot.revisions]
    return tuple(
        StoredRevision(revision.name, highest + place, revision) for place, revision in enumerate(missing, start=1)
    )


def _served(answer: Answer) -> ServedVersion | None:
    if isinstance(answer, Version) and answer.digest:
        return ServedVersion(answer.name, answer.version, answer.digest, answer.facts)
    return None
