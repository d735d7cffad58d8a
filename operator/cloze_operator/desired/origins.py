"""The exact versions that a run starts from and learns from, and where that decision is kept."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from cloze_api.names import GROUP
from cloze_api.pretrained import PretrainedVersion
from cloze_api.resources import FineTuneJob, TrainingJob

ANNOTATION_BASE: Final = f"{GROUP}/base"
"""On a run's ConfigMap and Job: the base as it was resolved."""
ANNOTATION_TEACHER: Final = f"{GROUP}/teacher"
"""On a run's ConfigMap and Job: the teacher as it was resolved."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """An exact version in the registry."""

    name: str
    version: str
    digest: str

    def annotation(self) -> str:
        """Text of its annotation."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """Versions that a run needs from the registry; None for what it doesn't need, or what isn't known yet.

    base: what it starts from, or takes its tokenizer from. teacher: what it is distilled by.
    """

    base: ResolvedModel | None = None
    teacher: ResolvedModel | None = None

    def annotations(self) -> dict[str, str]:
        """Of the run's children: a resolution is made once, then read back from here."""
        found = {ANNOTATION_BASE: self.base, ANNOTATION_TEACHER: self.teacher}
        return {key: model.annotation() for key, model in found.items() if model}


def registered_base(job: TrainingJob) -> PretrainedVersion | None:
    """The version in the registry that the spec names, which may be an alias yet."""
    return job.spec.pretrained.model if job.spec.pretrained else None


def registered_teacher(job: TrainingJob) -> PretrainedVersion | None:
    """The version that the spec names as the teacher, which may be an alias yet."""
    asked = job.spec.distillation if isinstance(job, FineTuneJob) else None
    return asked.teacher.model if asked else None


def with_origins(spec: Mapping[str, Any], origins: Origins) -> dict[str, Any]:
    """The spec with exact versions in the place of those that it names."""
    exact = dict(spec)
    if origins.base:
        start = _named(origins.base)
        if "reuse" in spec.get("tokenizer", {}):
            exact["tokenizer"] = {"reuse": start}
        else:
            exact["base"] = start
    if origins.teacher:
        exact["distillation"] = {**spec["distillation"], "teacher": _named(origins.teacher)}
    return exact


def _named(model: ResolvedModel) -> dict[str, Any]:
    return {"model": {"name": model.name, "version": model.version}}


def read_origins(child: Mapping[str, Any] | None) -> Origins:
    """The versions as a child's annotations have them."""
    texts = (child or {}).get("metadata", {}).get("annotations") or {}
    base, teacher = (
        ResolvedModel(**json.loads(texts[key])) if texts.get(key) else None
        for key in (ANNOTATION_BASE, ANNOTATION_TEACHER)
    )
    return Origins(base=base, teacher=teacher)
