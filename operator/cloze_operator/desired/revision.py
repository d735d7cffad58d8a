"""Revisions of a ModelDeployment: what exactly runs, named by the hash of it and kept as a ControllerRevision."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from cloze_api.deployment import Runtime
from cloze_api.names import DEVICE_PREFIX, LABEL_REVISION
from cloze_api.quantity import quantity
from cloze_api.resources import ModelDeployment
from cloze_operator.desired.facts import UNKNOWN, Facts
from cloze_operator.desired.metadata import Manifest, child_metadata, sealed
from cloze_operator.desired.platform import Platform

_HASH_LENGTH = 8
# Settings that had a default once and have none now. The API server has written it into all objects of that time.
_FORMER_DEFAULTS = {"threads": 1, "maxBatchTokens": 2048}


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """The exact version to serve."""

    name: str
    version: str
    digest: str
    facts: Facts = field(default=UNKNOWN, compare=False)

    @property
    def uri(self) -> str:
        """Where the server finds it."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class Revision:
    """A model version with the server that runs it and its settings. Equal ones have equal names."""

    served: ServedVersion
    image: str
    runtime: Runtime
    devices: tuple[tuple[str, str], ...] = ()
    """GPUs of one pod, each kind with its number. With others, or none, it is another server."""
    fallback: ServedVersion | None = None
    """Answers what the version abstains on."""

    @cached_property
    def name(self) -> str:
        """A hash: equal revisions have equal names."""
        # Defaults are left out, so that a setting which a later Cloze adds gives nothing that runs another name.
        # Those of then name nothing either, hence their absence does.
        now, former = self.data(exclude_defaults=True), _FORMER_DEFAULTS.items()
        runtime = {**dict.fromkeys(_FORMER_DEFAULTS), **now["runtime"]}
        runtime = {name: value for name, value in runtime.items() if (name, value) not in former}
        content = {**now, "runtime": runtime, "facts": {}}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]

    def data(self, *, exclude_defaults: bool = False) -> dict[str, Any]:
        """As it is stored."""
        runtime = self.runtime.model_dump(
            by_alias=True, exclude_none=True, exclude_defaults=exclude_defaults, exclude={"image"}
        )
        found: dict[str, Any] = {"model": _exactly(self.served), "image": self.image, "runtime": runtime}
        if self.devices:
            found["devices"] = dict(self.devices)
        if self.fallback is not None:
            found["fallback"] = _exactly(self.fallback)
        return {**found, "facts": asdict(self.served.facts)}


def _exactly(version: ServedVersion) -> dict[str, str]:
    return {"name": version.name, "version": version.version, "digest": version.digest}


def revision_of(
    resource: ModelDeployment, served: ServedVersion, platform: Platform, fallback: ServedVersion | None = None
) -> Revision:
    """The revision that the spec asks for, with this version and its fallback."""
    runtime, devices = resource.spec.runtime, devices_of(resource)
    image = runtime.image or (platform.serve_gpu_image if devices else platform.serve_image)
    return Revision(served, image, runtime.model_copy(update={"image": None}), devices, fallback)


def is_device(resource: str) -> bool:
    """Whether a resource of a pod is a GPU, or a part of one, that the server can use."""
    return resource.startswith(DEVICE_PREFIX)


def devices_of(resource: ModelDeployment) -> tuple[tuple[str, str], ...]:
    """The GPUs of one pod that the spec asks for."""
    resources = resource.spec.resources
    asked = {**resources.requests, **resources.limits}
    return tuple(sorted((name, text) for name, text in asked.items() if is_device(name) and quantity(text)))


def child_name(owner: str, revision: str) -> str:
    """Name of a revision's Deployment, Service and ControllerRevision."""
    return f"{owner}-{revision}"


def controller_revision(
    owner: Mapping[str, Any], revision: Revision, number: int, data: Mapping[str, Any] | None = None
) -> Manifest:
    """The ControllerRevision. The number tells which was asked for first.

    data: as another Cloze has stored them, maybe with fewer settings; the API server lets nobody change them.
    """
    metadata = child_metadata(owner, child_name(owner["metadata"]["name"], revision.name))
    metadata["labels"][LABEL_REVISION] = revision.name
    return sealed(
        {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": metadata,
            "data": revision.data() if data is None else dict(data),
            "revision": number,
        }
    )


def read_revision(stored: Mapping[str, Any]) -> Revision:
    """The revision in a ControllerRevision. Raises KeyError or ValueError for one that isn't ours."""
    data = stored["data"]
    model = data["model"]
    served = ServedVersion(model["name"], model["version"], model["digest"], Facts(**data.get("facts") or {}))
    devices = tuple(sorted((data.get("devices") or {}).items()))
    other = data.get("fallback")
    fallback = ServedVersion(other["name"], other["version"], other["digest"]) if other else None
    return Revision(served, data["image"], Runtime.model_validate(data.get("runtime") or {}), devices, fallback)
