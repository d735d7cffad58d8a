"""Reading Kubernetes objects, where any field may be absent."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

Object = Mapping[str, Any]
"""A Kubernetes object as JSON."""


def dig(node: Any, *keys: str) -> Any:
    """The value below a chain of keys; None where the chain breaks."""
    for key in keys:
        if not isinstance(node, Mapping):
            return None
        node = node.get(key)
    return node


def condition(node: Any, kind: str) -> Object:
    """The condition of one type in an object's status; empty when there is none."""
    for entry in dig(node, "status", "conditions") or ():
        if entry.get("type") == kind:
            found: Object = entry
            return found
    return {}


def is_true(node: Any, kind: str) -> bool:
    """Whether the condition of one type is True."""
    return condition(node, kind).get("status") == "True"


def parse_time(text: str | None) -> datetime | None:
    """A moment as Kubernetes writes it."""
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def format_time(moment: datetime) -> str:
    """A moment as Kubernetes writes it, in whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_going(node: Any) -> bool:
    """Whether the object has been told to go."""
    return dig(node, "metadata", "deletionTimestamp") is not None


def is_owned_by(node: Any, uid: str) -> bool:
    """Whether the object is controlled by the owner with this uid."""
    references = dig(node, "metadata", "ownerReferences") or ()
    return any(reference.get("uid") == uid and reference.get("controller") for reference in references)
