"""The exact version that a fine-tuning run starts from, and where that decision is kept."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from cloze_api.names import GROUP

ANNOTATION_BASE: Final = f"{GROUP}/base"
"""On a fine-tuning run's ConfigMap and Job: the base as it was resolved."""


@dataclass(frozen=True, slots=True)
class ResolvedBase:
    """The exact version that a fine-tuning run starts from."""

    name: str
    version: str
    digest: str

    def annotation(self) -> str:
        """Text of ANNOTATION_BASE."""
        return json.dumps(asdict(self), sort_keys=True)


def read_base(child: Mapping[str, Any] | None) -> ResolvedBase | None:
    """The base as a child's annotation has it: a resolution is made once, then read back from here."""
    text = ((child or {}).get("metadata", {}).get("annotations") or {}).get(ANNOTATION_BASE)
    return ResolvedBase(**json.loads(text)) if text else None
