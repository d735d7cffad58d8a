"""The exact version that a run starts from or takes its tokenizer from, and where that decision is kept."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from cloze_api.names import GROUP
from cloze_api.pretrained import PretrainedVersion
from cloze_api.resources import TrainingJob

ANNOTATION_BASE: Final = f"{GROUP}/base"
"""On a run's ConfigMap and Job: the base as it was resolved."""


@dataclass(frozen=True, slots=True)
class ResolvedBase:
    """The exact version that a run starts from or takes its tokenizer from."""

    name: str
    version: str
    digest: str

    def annotation(self) -> str:
        """Text of ANNOTATION_BASE."""
        return json.dumps(asdict(self), sort_keys=True)


def registered_base(job: TrainingJob) -> PretrainedVersion | None:
    """The version in the registry that the spec names, which may be an alias yet."""
    return job.spec.pretrained.model if job.spec.pretrained else None


def with_base(spec: Mapping[str, Any], base: ResolvedBase) -> dict[str, Any]:
    """The spec with an exact base in the place of the one that it names."""
    start = {"model": {"name": base.name, "version": base.version}}
    if "reuse" in spec.get("tokenizer", {}):
        return {**spec, "tokenizer": {"reuse": start}}
    return {**spec, "base": start}


def read_base(child: Mapping[str, Any] | None) -> ResolvedBase | None:
    """The base as a child's annotation has it: a resolution is made once, then read back from here."""
    text = ((child or {}).get("metadata", {}).get("annotations") or {}).get(ANNOTATION_BASE)
    return ResolvedBase(**json.loads(text)) if text else None
