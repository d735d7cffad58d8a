"""Everything that one decision may know."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cloze_api.progress import Progress
from cloze_api.resources import ModelDeployment, TrainingJob
from cloze_operator.decide.answers import Answer, HeldUp, Loaded
from cloze_operator.decide.fields import Object, dig, is_true
from cloze_operator.desired.platform import Platform


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSnapshot:
    """A training job and what surrounds it.

    job: the parsed resource; None when it can't be parsed, `invalid` says why.
    children: the live object by kind, absent when there is none.
    pods: those of the live Job alone.
    missing: a sentence for each source that isn't there.
    base: the registry's answer about the base model; base_job: the PretrainJob that it is to come from.
    registered: the registry's answer to which version carries this job's uid.
    alias: the registry's answer to where the alias points.
    """

    now: datetime
    platform: Platform
    resource: Object
    job: TrainingJob | None
    invalid: str = ""
    children: Mapping[str, Object] = field(default_factory=dict)
    pods: tuple[Object, ...] = ()
    missing: tuple[str, ...] = ()
    base: Answer = None
    base_job: Object | None = None
    progress: Progress | None = None
    registered: Answer = None
    alias: Answer = None

    @property
    def parsed(self) -> TrainingJob:
        """The job, for steps that come after the one that checked it."""
        assert self.job is not None, "a step needs the job before its validity was decided"
        return self.job

    @property
    def has_started(self) -> bool:
        """Whether a pod of this run has ever been wanted: from then on, what defines the result stands."""
        return bool(dig(self.resource, "status", "startTime") or dig(self.children.get("Job"), "status", "startTime"))


def finished_status(resource: Object) -> bool | None:
    """True for a training job that succeeded, False for one that failed, None for one that hasn't ended."""
    if is_true(resource, "Succeeded"):
        return True
    conditions = dig(resource, "status", "conditions") or ()
    failed = any(entry["type"] == "Succeeded" and entry["status"] == "False" for entry in conditions)
    return False if failed else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSnapshot:
    """A ModelDeployment and what surrounds it.

    model: the registry's answer about the version to serve.
    alias: the registry's answer to where `follow.alias` points.
    loaded: what each ready pod says it has loaded, by pod name; absent for one that didn't answer.
    held_up: what each pod that isn't ready says is in the way, by pod name.
    rivals: `namespace/name` of older ModelDeployments that move the same alias.
    """

    now: datetime
    platform: Platform
    resource: Object
    deployment: ModelDeployment | None
    invalid: str = ""
    children: Mapping[str, Object] = field(default_factory=dict)
    pods: tuple[Object, ...] = ()
    model: Answer = None
    alias: Answer = None
    loaded: Mapping[str, Loaded] = field(default_factory=dict)
    held_up: Mapping[str, HeldUp] = field(default_factory=dict)
    rivals: tuple[str, ...] = ()

    @property
    def parsed(self) -> ModelDeployment:
        """The ModelDeployment, for steps that come after the one that checked it."""
        assert self.deployment is not None, "a step needs the ModelDeployment before its validity was decided"
        return self.deployment
