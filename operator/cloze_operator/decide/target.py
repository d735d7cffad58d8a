"""Which revision the spec asks for."""

from cloze_api.names import LABEL_REVISION
from cloze_operator.decide.answers import Answer, NotFound, Version
from cloze_operator.decide.arms import arm
from cloze_operator.decide.fields import dig
from cloze_operator.decide.snapshot import ServingSnapshot, StoredRevision
from cloze_operator.desired.revision import Revision, ServedVersion, revision_of


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
    return revision_of(snapshot.parsed, served, snapshot.platform) if served else None


def first_revision(snapshot: ServingSnapshot) -> Revision | None:
    """The revision to begin with: a version that was promoted before serves while the candidate is tried."""
    if serving := _serving_revision(snapshot):
        return serving
    if snapshot.parsed.spec.model.follow is not None:
        if promoted := _served(snapshot.alias):
            return revision_of(snapshot.parsed, promoted, snapshot.platform)
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
