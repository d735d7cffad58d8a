"""The snapshot of a ModelDeployment."""

from collections.abc import Callable
from datetime import datetime

from pydantic import ValidationError

from cloze_api.resources import ModelDeployment
from cloze_operator.cluster import Cluster
from cloze_operator.decide.answers import Answer
from cloze_operator.decide.fields import Object, dig, is_going
from cloze_operator.decide.serving import intact_version
from cloze_operator.decide.snapshot import ServingSnapshot
from cloze_operator.desired.platform import Platform
from cloze_operator.desired.serving import deployment_name
from cloze_operator.observe.children import read_children, read_pods
from cloze_operator.observe.validity import explain
from cloze_operator.registry import Registry
from cloze_operator.reports import Reports


class ServingObserver:
    """Asks the API server, the registry and the pods about a ModelDeployment."""

    def __init__(
        self,
        cluster: Cluster,
        registry: Registry,
        reports: Reports,
        platform: Platform,
        clock: Callable[[], datetime],
        *,
        namespaces: tuple[str, ...] = (),
    ) -> None:
        self._cluster = cluster
        self._registry = registry
        self._reports = reports
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
        metadata = resource["metadata"]
        names = {"Service": metadata["name"], "Deployment": deployment_name(metadata["name"])}
        children = await read_children(self._cluster, metadata["namespace"], names)
        pods = await read_pods(self._cluster, resource)
        loaded, held_up = await self._reports.servers(pods)
        follow = deployment.spec.model.follow
        return ServingSnapshot(
            now=self._clock(),
            platform=self._platform,
            resource=resource,
            deployment=deployment,
            children=children,
            pods=pods,
            model=await self._model(resource, deployment, children.get("Deployment")),
            alias=await self._registry.behind(deployment.spec.model.name, follow.alias) if follow else None,
            loaded=loaded,
            held_up=held_up,
            rivals=await self._rivals(resource) if follow else (),
        )

    async def _model(self, resource: Object, deployment: ModelDeployment, live: Object | None) -> Answer:
        model = deployment.spec.model
        if model.follow is not None:
            return await self._registry.behind(model.name, model.follow.candidate_alias)
        assert model.version is not None, "spec.model has neither version nor follow"
        if intact_version(live, resource, deployment, self._platform):
            # Nothing to ask, and nothing that a registry's outage could disturb.
            return None
        return await self._registry.version(model.name, model.version)

    async def _rivals(self, resource: Object) -> tuple[str, ...]:
        """Older ModelDeployments that move the same alias, the oldest first."""
        listed = [await self._cluster.list("ModelDeployment", namespace) for namespace in self._namespaces]
        every = [other for part in listed for other in part]
        mine = _age(resource)
        older = sorted(_age(other) for other in every if _moves(other) == _moves(resource) and _age(other) < mine)
        return tuple(f"{namespace}/{name}" for _, namespace, name in older)


def _age(resource: Object) -> tuple[str, str, str]:
    """Order of seniority; names decide between those created within the same second."""
    metadata = resource["metadata"]
    return metadata["creationTimestamp"], metadata["namespace"], metadata["name"]


def _moves(resource: Object) -> tuple[str, str] | None:
    """Model and alias that a ModelDeployment moves, if any and if it isn't being deleted."""
    alias = dig(resource, "spec", "model", "follow", "alias")
    return (resource["spec"]["model"]["name"], alias) if alias and not is_going(resource) else None
