"""The snapshot of a ModelDeployment."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from pydantic import ValidationError

from cloze_api.names import LABEL_REVISION
from cloze_api.resources import ModelDeployment
from cloze_api.rollout import Provider
from cloze_operator.analysis.checks import Evidence
from cloze_operator.cluster import Cluster
from cloze_operator.decide.answers import Answer
from cloze_operator.decide.fields import Object, dig, is_going, is_owned_by
from cloze_operator.decide.record import load
from cloze_operator.decide.snapshot import ServingSnapshot, StoredRevision
from cloze_operator.decide.target import is_settled, known_fallback
from cloze_operator.desired.metadata import selector
from cloze_operator.desired.platform import Platform
from cloze_operator.desired.record import record_name
from cloze_operator.desired.revision import child_name, read_revision
from cloze_operator.desired.serving import preview_name
from cloze_operator.observe.children import read_pods
from cloze_operator.observe.evidence import EvidenceObserver, Question
from cloze_operator.observe.validity import explain
from cloze_operator.registry import Registry
from cloze_operator.reports import Reports

_Children = dict[tuple[str, str], Object]


class ServingObserver:
    """Asks the API server, the registry and the pods about a ModelDeployment."""

    def __init__(
        self,
        cluster: Cluster,
        registry: Registry,
        reports: Reports,
        evidence: EvidenceObserver,
        *,
        platform: Platform,
        clock: Callable[[], datetime],
        namespaces: tuple[str, ...] = (),
    ) -> None:
        self._cluster = cluster
        self._registry = registry
        self._reports = reports
        self._evidence = evidence
        self._platform = platform
        self._clock = clock
        self._namespaces = namespaces or ("",)

    async def observe(self, resource: Object) -> ServingSnapshot:
        """The snapshot. Raises ClusterError."""
        try:
            deployment = ModelDeployment.model_validate(dict(resource))
        except ValidationError as error:
            return ServingSnapshot(
                now=self._clock(),
                platform=self._platform,
                resource=resource,
                deployment=None,
                invalid=explain(error),
            )
        if is_going(resource):
            return ServingSnapshot(now=self._clock(), platform=self._platform, resource=resource, deployment=deployment)
        children, pods = await asyncio.gather(self._children(resource), read_pods(self._cluster, resource))
        loaded, held_up = await self._reports.servers(pods)
        follow = deployment.spec.model.follow
        snapshot = ServingSnapshot(
            now=self._clock(),
            platform=self._platform,
            resource=resource,
            deployment=deployment,
            children=children,
            revisions=_revisions(resource, children),
            pods=pods,
            loaded=loaded,
            held_up=held_up,
        )
        try:
            record = load(snapshot.child("ConfigMap", record_name(snapshot.name)))
        except ValidationError as error:
            return replace(snapshot, corrupt=explain(error))
        snapshot = replace(snapshot, record=record)
        return replace(
            snapshot,
            model=await self._model(snapshot),
            fallback=await self._fallback(snapshot),
            alias=await self._registry.behind(deployment.spec.model.name, follow.alias) if follow else None,
            rivals=await self._rivals(resource) if follow else (),
            evidence=await self._ask(snapshot),
        )

    async def _children(self, resource: Object) -> _Children:
        """What is the resource's own, and whatever else has one of its children's fixed names."""
        metadata = resource["metadata"]
        name, namespace = metadata["name"], metadata["namespace"]
        labels = selector(resource["kind"], name)
        listed = ("Deployment", "Service", "ControllerRevision")
        named = (
            ("Service", name),
            ("Service", preview_name(name)),
            ("ConfigMap", record_name(name)),
            ("HTTPRoute", name),
            ("HorizontalPodAutoscaler", name),
            ("PodDisruptionBudget", name),
        )
        lists, ones = await asyncio.gather(
            asyncio.gather(*(self._cluster.list(kind, namespace, labels) for kind in listed)),
            asyncio.gather(*(self._cluster.get(kind, namespace, child) for kind, child in named)),
        )
        found = {key: child for key, child in zip(named, ones, strict=True) if child is not None}
        for kind, members in zip(listed, lists, strict=True):
            found |= {(kind, child["metadata"]["name"]): child for child in members}
        return found

    async def _model(self, snapshot: ServingSnapshot) -> Answer:
        model = snapshot.parsed.spec.model
        if model.follow is not None:
            return await self._registry.behind(model.name, model.follow.candidate_alias)
        assert model.version is not None, "spec.model has neither version nor follow"
        if is_settled(snapshot):
            # Nothing to ask, and nothing that a registry's outage could disturb.
            return None
        return await self._registry.version(model.name, model.version)

    async def _fallback(self, snapshot: ServingSnapshot) -> Answer:
        fallback = snapshot.parsed.spec.model.fallback
        if fallback is None or known_fallback(snapshot):
            return None
        return await self._registry.version(fallback.name, fallback.version)

    async def _ask(self, snapshot: ServingSnapshot) -> Evidence | None:
        asked = question(snapshot)
        return await self._evidence.observe(asked) if asked else None

    async def _rivals(self, resource: Object) -> tuple[str, ...]:
        """Older ModelDeployments that move the same alias, the oldest first."""
        listed = [await self._cluster.list("ModelDeployment", namespace) for namespace in self._namespaces]
        every = [other for part in listed for other in part]
        mine = _age(resource)
        older = sorted(_age(other) for other in every if _moves(other) == _moves(resource) and _age(other) < mine)
        return tuple(f"{namespace}/{name}" for _, namespace, name in older)


def question(snapshot: ServingSnapshot) -> Question | None:
    """What to ask Prometheus: about the canary beside the stable revision, or about that beside the former one."""
    record = snapshot.record
    tried, other, began = record.canary, record.stable, record.began
    if not record.canary:
        tried, other, began = record.stable, record.previous, record.burning or record.promoted
    if not (tried and other and began):
        return None
    spec, name = snapshot.parsed.spec, snapshot.name
    return Question(
        namespace=snapshot.resource["metadata"]["namespace"],
        canary_pods=_pods_of(name, tried),
        stable_pods=_pods_of(name, other),
        canary_service=child_name(name, tried),
        stable_service=child_name(name, other),
        route=name,
        gateway=spec.traffic.provider == Provider.GATEWAY_API,
        began=began,
        analysis=spec.rollout.analysis,
        canary_model=_model_of(snapshot, tried),
        stable_model=_model_of(snapshot, other),
    )


def _model_of(snapshot: ServingSnapshot, revision: str) -> tuple[str, str]:
    """Name and version of what a revision serves; empty for one that isn't stored."""
    stored = snapshot.revisions.get(revision)
    return (stored.revision.served.name, stored.revision.served.version) if stored else ("", "")


def _pods_of(owner: str, revision: str) -> str:
    """A regular expression of the names of a revision's pods."""
    return f"{child_name(owner, revision)}-[a-z0-9]+-[a-z0-9]+"


def _revisions(resource: Object, children: _Children) -> dict[str, StoredRevision]:
    """The stored revisions by name; one that can't be read is as if it weren't there, and is stored again."""
    found = {}
    for (kind, _), child in children.items():
        if kind != "ControllerRevision" or not is_owned_by(child, resource["metadata"]["uid"]) or is_going(child):
            continue
        try:
            name = child["metadata"]["labels"][LABEL_REVISION]
            found[name] = StoredRevision(name, int(child["revision"]), read_revision(child))
        except (KeyError, TypeError, ValueError):
            continue
    return found


def _age(resource: Object) -> tuple[str, str, str]:
    """Order of seniority; names decide between those created within the same second."""
    metadata = resource["metadata"]
    return metadata["creationTimestamp"], metadata["namespace"], metadata["name"]


def _moves(resource: Object) -> tuple[str, str] | None:
    """Model and alias that a ModelDeployment moves, if any and if it isn't being deleted."""
    alias = dig(resource, "spec", "model", "follow", "alias")
    return (resource["spec"]["model"]["name"], alias) if alias and not is_going(resource) else None
