"""Children of a ModelDeployment: what the record comes to, what has drifted from it, and what nobody needs any more."""

from collections.abc import Iterator
from typing import Final

from cloze_api.rollout import Provider
from cloze_operator.decide.arms import Arm, arm, full_size
from cloze_operator.decide.drift import has_drifted
from cloze_operator.decide.fields import Object, dig, is_going, is_owned_by
from cloze_operator.decide.rollout import is_due
from cloze_operator.decide.snapshot import ServingSnapshot
from cloze_operator.decide.traffic import present_share, weights
from cloze_operator.decide.verdict import Target
from cloze_operator.desired.metadata import Manifest
from cloze_operator.desired.revision import child_name, controller_revision
from cloze_operator.desired.route import http_route
from cloze_operator.desired.scaling import autoscaler, disruption_budget
from cloze_operator.desired.serving import preview_name, server_deployment, server_service

#: Kinds of which one that nobody needs is deleted.
_SWEPT: Final = ("Deployment", "Service", "HTTPRoute", "HorizontalPodAutoscaler", "ControllerRevision")


def wanted(snapshot: ServingSnapshot) -> tuple[Manifest, ...]:
    """Everything that there should be, in the order in which it is made: what gets requests comes last."""
    return tuple(_wanted(snapshot))


def _wanted(snapshot: ServingSnapshot) -> Iterator[Manifest]:
    record, owner, spec = snapshot.record, snapshot.resource, snapshot.parsed.spec
    if not record.stable:
        return
    for revision in sorted(record.in_use):
        if stored := snapshot.revisions.get(revision):
            live = snapshot.child("ControllerRevision", child_name(snapshot.name, revision))
            yield controller_revision(owner, stored.revision, stored.number, dig(live, "data"))
    gateway = spec.traffic.provider == Provider.GATEWAY_API
    sizes = _sizes(snapshot)
    for revision, replicas in sizes.items():
        if stored := snapshot.revisions.get(revision):
            yield server_deployment(owner, snapshot.parsed, stored.revision, replicas, snapshot.platform)
        if gateway:
            yield server_service(owner, child_name(snapshot.name, revision), revision)
    yield disruption_budget(owner, spec.disruption_budget)
    if spec.autoscaling:
        # While a canary takes requests off the stable revision, that one must still be able to take all of them back.
        least = full_size(snapshot) if record.canary else 0
        yield autoscaler(owner, spec.autoscaling, record.stable, least)
    if spec.rollout.strategy == "BlueGreen":
        yield server_service(owner, preview_name(snapshot.name), record.canary or record.stable)
    given = weights(snapshot)
    yield server_service(owner, snapshot.name, _service_revision(snapshot, given))
    if gateway and spec.traffic.route:
        yield http_route(owner, spec.traffic.route, given)


def claimed(snapshot: ServingSnapshot) -> dict[tuple[str, str], Object]:
    """Live objects with names that this one needs: somebody else's route or autoscaler is welcome where it has none."""
    name, spec = snapshot.name, snapshot.parsed.spec
    needless = {
        ("HTTPRoute", name): spec.traffic.provider != Provider.GATEWAY_API,
        ("HorizontalPodAutoscaler", name): spec.autoscaling is None,
        ("Service", preview_name(name)): spec.rollout.strategy != "BlueGreen",
    }
    return {key: child for key, child in snapshot.children.items() if not needless.get(key)}


def _sizes(snapshot: ServingSnapshot) -> dict[str, int]:
    """Pods by revision. Those that are about to go keep theirs: they aren't named, so nothing changes them."""
    record, full = snapshot.record, full_size(snapshot)
    sizes = {record.stable: full}
    if record.canary:
        already = arm(snapshot, record.canary).replicas or 0
        # Nothing is taken away from it: it would have to be made again at the next step.
        sizes[record.canary] = max(present_share(snapshot).pods, min(already, full))
    if record.previous:
        live = arm(snapshot, record.previous).replicas
        sizes[record.previous] = full if live is None or snapshot.parsed.spec.autoscaling is None else live
    return sizes


def _service_revision(snapshot: ServingSnapshot, given: dict[str, int]) -> str | None:
    """The one revision behind the main Service; None for all pods."""
    record = snapshot.record
    if _older_servers(snapshot) and arm(snapshot, record.stable).ready < full_size(snapshot):
        # Servers from before there were revisions, which serve until all of the first revision's do.
        return None
    if snapshot.parsed.spec.traffic.provider == Provider.GATEWAY_API:
        return record.stable
    chosen = [revision for revision, weight in given.items() if weight]
    return chosen[0] if len(chosen) == 1 else None


def _older_servers(snapshot: ServingSnapshot) -> bool:
    return snapshot.child("Deployment", f"{snapshot.name}-server") is not None


def drifted(snapshot: ServingSnapshot, manifests: tuple[Manifest, ...]) -> tuple[Manifest, ...]:
    """Those that have to be applied."""
    found = []
    for manifest in manifests:
        child = snapshot.child(manifest["kind"], manifest["metadata"]["name"])
        if has_drifted(child, manifest) and not is_going(child):
            found.append(manifest)
    return tuple(found)


def unneeded(snapshot: ServingSnapshot, manifests: tuple[Manifest, ...]) -> tuple[Target, ...]:
    """Children that nobody needs any more."""
    uid = snapshot.resource["metadata"]["uid"]
    needed = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    needed |= {("ControllerRevision", name) for name in _history(snapshot)}
    needed |= {(kind, name) for name in _leaving(snapshot) for kind in ("Deployment", "Service")}
    if _older_servers(snapshot) and not _has_taken_over(snapshot, arm(snapshot, snapshot.record.stable)):
        needed.add(("Deployment", f"{snapshot.name}-server"))
    return tuple(
        Target(kind, name, child["metadata"]["uid"])
        for (kind, name), child in sorted(snapshot.children.items())
        if kind in _SWEPT and (kind, name) not in needed and is_owned_by(child, uid) and not is_going(child)
    )


def _has_taken_over(snapshot: ServingSnapshot, stable: Arm) -> bool:
    """Whether the main Service has the first revision's pods alone behind it."""
    live: Object = dig(snapshot.child("Service", snapshot.name), "spec", "selector") or {}
    return stable.ready >= full_size(snapshot) and stable.name in live.values()


def _leaving(snapshot: ServingSnapshot) -> set[str]:
    """Names of the children of revisions that may still have a request."""
    return {
        child_name(snapshot.name, revision) for revision in snapshot.record.retired if not is_due(snapshot, revision)
    }


def _history(snapshot: ServingSnapshot) -> set[str]:
    """Names of the ControllerRevisions that are kept: those in use or rejected, and the last others."""
    record = snapshot.record
    used = record.in_use | record.rejected.keys()
    others = sorted(
        (stored for name, stored in snapshot.revisions.items() if name not in used), key=lambda stored: -stored.number
    )
    kept = [stored.name for stored in others[: snapshot.parsed.spec.rollout.revision_history_limit]]
    return {child_name(snapshot.name, revision) for revision in (*used, *kept)}
