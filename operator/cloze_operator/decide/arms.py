"""The revisions of a ModelDeployment that have pods, as they are."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cloze_api.names import ANNOTATION_MODEL_DIGEST, ANNOTATION_MODEL_VERSION, LABEL_REVISION
from cloze_api.rollout import Provider
from cloze_operator.decide import pods
from cloze_operator.decide.answers import Loaded
from cloze_operator.decide.fields import Object, condition, dig
from cloze_operator.decide.snapshot import ServingSnapshot
from cloze_operator.desired.revision import child_name
from cloze_operator.desired.route import http_route

#: Reason of a gateway that still does what the route said before its last change.
ROUTE_CHANGING: Final = "RouteChanging"


@dataclass(frozen=True, slots=True)
class Arm:
    """One revision's Deployment and pods."""

    name: str
    live: Object | None
    pods: tuple[Object, ...]

    @property
    def ready(self) -> int:
        """Pods that have been ready for long enough, and are."""
        available = int(dig(self.live, "status", "availableReplicas") or 0)
        return min(available, sum(pods.is_ready(pod) for pod in self.pods))

    @property
    def replicas(self) -> int | None:
        """Pods that its Deployment wants; None without a Deployment."""
        found = dig(self.live, "spec", "replicas")
        return None if found is None else int(found)


def arm(snapshot: ServingSnapshot, revision: str) -> Arm:
    """A revision as it is; without a Deployment and pods when it has none."""
    own = tuple(pod for pod in snapshot.pods if revision and revision_of_pod(pod) == revision)
    return Arm(revision, snapshot.child("Deployment", child_name(snapshot.name, revision)), own)


def revision_of_pod(pod: Object) -> str:
    """The revision that a pod belongs to; empty for one from before there were revisions."""
    return str((dig(pod, "metadata", "labels") or {}).get(LABEL_REVISION, ""))


def made_for(pod: Object) -> Loaded:
    """What a pod was made to load: its server accepts nothing else."""
    annotations = dig(pod, "metadata", "annotations") or {}
    return Loaded(annotations.get(ANNOTATION_MODEL_VERSION, ""), annotations.get(ANNOTATION_MODEL_DIGEST, ""))


def mismatches(snapshot: ServingSnapshot, of: Iterable[Object]) -> dict[str, Loaded]:
    """Ready pods that say that they have loaded something else than they were made for."""
    said = {pods.name_of(pod): (snapshot.loaded.get(pods.name_of(pod)), made_for(pod)) for pod in of}
    return {name: loaded for name, (loaded, wanted) in said.items() if loaded is not None and loaded != wanted}


def full_size(snapshot: ServingSnapshot) -> int:
    """Pods that serve all requests: what the spec says, or what the autoscaler has made of the stable revision."""
    spec = snapshot.parsed.spec
    if spec.autoscaling is None:
        return spec.replicas
    live = arm(snapshot, snapshot.record.stable).replicas
    wanted = spec.replicas if live is None else live
    return min(max(wanted, spec.autoscaling.min_replicas), spec.autoscaling.max_replicas)


def route_refusal(snapshot: ServingSnapshot) -> tuple[str, str] | None:
    """Why the gateway doesn't do what the HTTPRoute says: (reason, message). None once it has taken it over."""
    live = snapshot.child("HTTPRoute", snapshot.name)
    if live is None:
        return "RouteMissing", "the HTTPRoute isn't there yet"
    parents = [entry for entry in dig(live, "status", "parents") or () if _is_wanted(snapshot, entry.get("parentRef"))]
    if len(parents) < len(snapshot.parsed.spec.traffic.route.parent_refs if snapshot.parsed.spec.traffic.route else ()):
        return (
            "RoutePending",
            "no gateway has taken the HTTPRoute: is there a Gateway of spec.traffic.route.parentRefs?",
        )
    for entry in parents:
        for kind in ("Accepted", "ResolvedRefs"):
            found = condition({"status": entry}, kind)
            if found.get("observedGeneration") != live["metadata"].get("generation"):
                return ROUTE_CHANGING, f"the gateway hasn't seen the present HTTPRoute: condition {kind}"
            if found.get("status") != "True":
                return f"Route{found.get('reason') or 'Refused'}", f"{kind}: {found.get('message', '')}"
    return None


def _is_wanted(snapshot: ServingSnapshot, reference: Object | None) -> bool:
    route, own = snapshot.parsed.spec.traffic.route, snapshot.resource["metadata"]["namespace"]
    said = tuple(dig(reference, key) for key in ("name", "sectionName", "port"))
    return route is not None and any(
        (entry.name, entry.section_name, entry.port) == said
        and (entry.namespace or own) == (dig(reference, "namespace") or own)
        for entry in route.parent_refs
    )


def in_force(snapshot: ServingSnapshot, weights: dict[str, int]) -> bool:
    """Whether requests are divided like this now."""
    traffic = snapshot.parsed.spec.traffic
    if traffic.provider == Provider.GATEWAY_API:
        assert traffic.route is not None, "a gateway's traffic has no route"
        live = snapshot.child("HTTPRoute", snapshot.name)
        wanted = http_route(snapshot.resource, traffic.route, weights)["spec"]["rules"][0]["backendRefs"]
        rules = dig(live, "spec", "rules") or ()
        found = [
            {"name": entry.get("name"), "weight": entry.get("weight")}
            for rule in rules
            for entry in rule.get("backendRefs") or ()
        ]
        same = found == [{"name": entry["name"], "weight": entry["weight"]} for entry in wanted]
        return same and route_refusal(snapshot) is None
    selector = dig(snapshot.child("Service", snapshot.name), "spec", "selector") or {}
    chosen = [revision for revision, weight in weights.items() if weight]
    wanted_revision = chosen[0] if len(chosen) == 1 else None
    return bool(selector) and selector.get(LABEL_REVISION) == wanted_revision
