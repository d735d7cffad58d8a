"""Live children of a resource, read when they are needed: slower than a cache, and never out of date."""

import asyncio
from collections.abc import Mapping

from cloze_operator.cluster import Cluster
from cloze_operator.decide.fields import Object, is_owned_by
from cloze_operator.desired.metadata import selector


async def read_children(cluster: Cluster, namespace: str, names: Mapping[str, str]) -> dict[str, Object]:
    """The objects with these names, by kind; those that don't exist are left out."""
    found = await asyncio.gather(*(cluster.get(kind, namespace, name) for kind, name in names.items()))
    return {kind: child for kind, child in zip(names, found, strict=True) if child is not None}


async def read_pods(cluster: Cluster, resource: Object, owner: str | None = None) -> tuple[Object, ...]:
    """The resource's pods; with `owner`, those of the child with this uid, which leaves out an older one's."""
    metadata = resource["metadata"]
    labels = selector(resource["kind"], metadata["name"])
    pods = await cluster.list("Pod", metadata["namespace"], labels)
    return tuple(pod for pod in pods if owner is None or is_owned_by(pod, owner))
