"""The ConfigMap in which a rollout's record is kept."""

from collections.abc import Mapping
from typing import Any

from cloze_operator.desired.metadata import Manifest, child_metadata

KEY = "record.json"


def record_name(owner: str) -> str:
    """Name of the ConfigMap."""
    return f"{owner}-rollout"


def record_map(owner: Mapping[str, Any], text: str, version: str | None) -> Manifest:
    """The ConfigMap. version: resourceVersion of the one that it replaces; None when there is none."""
    metadata = child_metadata(owner, record_name(owner["metadata"]["name"]))
    if version:
        metadata["resourceVersion"] = version
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {KEY: text}}
