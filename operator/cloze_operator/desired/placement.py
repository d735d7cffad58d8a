"""The machines on which a pod may run, and before which others."""

from collections.abc import Mapping, Sequence
from typing import Any

from cloze_api.scheduling import Toleration


def placement(
    node_selector: Mapping[str, str], tolerations: Sequence[Toleration], priority_class_name: str
) -> dict[str, Any]:
    """These fields of a pod's spec, without those that say nothing."""
    tolerated = [entry.model_dump(by_alias=True, exclude_defaults=True) for entry in tolerations]
    found = {"nodeSelector": dict(node_selector), "tolerations": tolerated, "priorityClassName": priority_class_name}
    return {key: value for key, value in found.items() if value}
