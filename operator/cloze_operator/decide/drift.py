"""Whether a child is still what it should be."""

from collections.abc import Mapping
from typing import Any

from cloze_api.names import ANNOTATION_CONTENT_DIGEST
from cloze_api.quantity import quantity
from cloze_operator.decide.fields import Object, dig
from cloze_operator.desired.metadata import Manifest


def content_digest(child: Object | None) -> str | None:
    """The digest of the manifest that a child was made from."""
    digest = (dig(child, "metadata", "annotations") or {}).get(ANNOTATION_CONTENT_DIGEST)
    return str(digest) if digest else None


def is_current(child: Object | None, manifest: Manifest) -> bool:
    """Whether a child was made from this manifest, whatever has happened to it since."""
    return child is not None and content_digest(child) == content_digest(manifest)


def has_drifted(child: Object | None, manifest: Manifest) -> bool:
    """Whether applying the manifest would change the child."""
    return not _contains(child, manifest)


def _contains(live: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        # Kubernetes leaves empty maps out.
        return isinstance(live, Mapping) and all(
            _contains(live.get(key), value) for key, value in wanted.items() if value != {} or live.get(key)
        )
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(_contains(one, other) for one, other in zip(live, wanted, strict=True))
        )
    number = quantity(wanted)
    return bool(live == wanted) or (number is not None and number == quantity(live))
