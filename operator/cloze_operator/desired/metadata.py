"""Names, labels, owner references and digests that every child carries."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from cloze_api.names import (
    ANNOTATION_CONTENT_DIGEST,
    API_VERSION,
    LABEL_COMPONENT,
    LABEL_INSTANCE,
    LABEL_KIND,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_OWNER,
    MANAGED_BY,
)

Manifest = dict[str, Any]
"""A Kubernetes object as JSON."""

COMPONENTS: Final = {"PretrainJob": "trainer", "FineTuneJob": "trainer", "ModelDeployment": "server"}

#: User and group of all our containers; the images have no other.
USER: Final = 65532


def selector(kind: str, name: str) -> dict[str, str]:
    """Labels that find all children of one resource within its namespace."""
    return {LABEL_KIND: kind, LABEL_OWNER: name}


def labels(kind: str, name: str) -> dict[str, str]:
    """All labels of a child."""
    return {
        LABEL_NAME: MANAGED_BY,
        LABEL_INSTANCE: name,
        LABEL_COMPONENT: COMPONENTS[kind],
        LABEL_MANAGED_BY: MANAGED_BY,
        **selector(kind, name),
    }


def owner_reference(owner: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the garbage collector delete the child with its owner; no finalizer is needed."""
    return {
        "apiVersion": API_VERSION,
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def child_metadata(owner: Mapping[str, Any], name: str, annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Metadata of a child of `owner`."""
    metadata = owner["metadata"]
    return {
        "name": name,
        "namespace": metadata["namespace"],
        "labels": labels(owner["kind"], metadata["name"]),
        "annotations": dict(annotations or {}),
        "ownerReferences": [owner_reference(owner)],
    }


def sealed(manifest: Manifest, without: Iterable[str] = ()) -> Manifest:
    """The manifest with the digest of its content as an annotation: equal digests mean that nothing has changed.

    without: fields of `spec` that may change without making it another object.
    """
    spec = {key: value for key, value in manifest.get("spec", {}).items() if key not in set(without)}
    content = json.dumps({**manifest, "spec": spec}, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(content.encode()).hexdigest()
    metadata = manifest["metadata"]
    return {
        **manifest,
        "metadata": {**metadata, "annotations": {**metadata["annotations"], ANNOTATION_CONTENT_DIGEST: digest}},
    }


def pod_security() -> dict[str, Any]:
    """Pod part of the `restricted` Pod Security Standard. fsGroup makes a fresh volume writable."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        # Changing the owner of every file at each mount takes minutes on a volume full of shards.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    """Container part of the `restricted` Pod Security Standard, with a read-only root on top."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
