"""Everything that one decision may know."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cloze_api.progress import Progress
from cloze_api.resources import ModelDeployment, TrainingJob
from cloze_operator.analysis.checks import Evidence
from cloze_operator.decide.answers import Answer, HeldUp, Loaded
from cloze_operator.decide.fields import Object, dig, is_true
from cloze_operator.decide.record import Record
from cloze_operator.desired.platform import Platform
from cloze_operator.desired.revision import Revision


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSnapshot:
    """A training job and what surrounds it.

    job: the parsed resource; None when it can't be parsed, `invalid` says why.
    children: the live object by kind, absent when there is none.
    pods: those of the live Job alone.
    leaving: names of pods of former Jobs that run or stop, where there is no Job.
    missing: a sentence for each source that isn't there.
    base: the registry's answer about the base model; base_job: the PretrainJob that it is to come from.
    teacher: the registry's answer about the model that this one is distilled by.
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
    leaving: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    base: Answer = None
    base_job: Object | None = None
    teacher: Answer = None
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


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """A revision as its ControllerRevision has it. number: in the order in which they were first asked for."""

    name: str
    number: int
    revision: Revision


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSnapshot:
    """A ModelDeployment and what surrounds it.

    children: the live objects that are its own, or have its children's names, by kind and name.
    record: where the rollout is; corrupt: why the stored one can't be read.
    revisions: those that are stored, by name.
    model: the registry's answer about the version to serve; fallback: about the one that answers where it abstains.
    alias: the registry's answer to where `follow.alias` points.
    loaded: what each ready pod says it has loaded, by pod name; absent for one that didn't answer.
    held_up: what each pod that isn't ready says is in the way, by pod name.
    rivals: `namespace/name` of older ModelDeployments that move the same alias.
    evidence: what Prometheus has counted about the canary, or about a promoted revision; None when nobody asked.
    """

    now: datetime
    platform: Platform
    resource: Object
    deployment: ModelDeployment | None
    invalid: str = ""
    children: Mapping[tuple[str, str], Object] = field(default_factory=dict)
    record: Record = field(default_factory=Record)
    corrupt: str = ""
    revisions: Mapping[str, StoredRevision] = field(default_factory=dict)
    pods: tuple[Object, ...] = ()
    model: Answer = None
    fallback: Answer = None
    alias: Answer = None
    loaded: Mapping[str, Loaded] = field(default_factory=dict)
    held_up: Mapping[str, HeldUp] = field(default_factory=dict)
    rivals: tuple[str, ...] = ()
    evidence: Evidence | None = None

    @property
    def parsed(self) -> ModelDeployment:
        """The ModelDeployment, for steps that come after the one that checked it."""
        assert self.deployment is not None, "a step needs the ModelDeployment before its validity was decided"
        return self.deployment

    @property
    def name(self) -> str:
        """The ModelDeployment's name."""
        return str(self.resource["metadata"]["name"])

    def child(self, kind: str, name: str) -> Object | None:
        """A live child, or another object of its name."""
        return self.children.get((kind, name))
