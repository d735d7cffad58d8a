"""The three resources as a whole: kind, names, columns, spec and status."""

import re
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from cloze_api.deployment import ModelDeploymentSpec, ModelDeploymentStatus
from cloze_api.finetune import FINE_TUNE_RULES, FineTuneJobSpec
from cloze_api.pretrain import PRETRAIN_RULES, PretrainJobSpec
from cloze_api.schema import NAME_MAX, NAME_PATTERN, Rule, Schema
from cloze_api.training_status import TrainingStatus


class Column(BaseModel):
    """One column of `kubectl get`."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False


class Metadata(BaseModel):
    """The part of an object's metadata that Cloze reads."""

    model_config = ConfigDict(extra="ignore")

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resourceVersion: str = ""  # noqa: N815 - spelled as in Kubernetes
    creationTimestamp: str = ""  # noqa: N815
    deletionTimestamp: str | None = None  # noqa: N815
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


_NAME_RULES = (
    Rule(
        cel=f"self.metadata.name.size() <= {NAME_MAX}",
        message=f"metadata.name is longer than {NAME_MAX} characters: "
        "shorten it, its children's names are built from it",
        check=lambda resource: len(resource.metadata.name) <= NAME_MAX,
    ),
    Rule(
        cel=f"self.metadata.name.matches('{NAME_PATTERN}')",
        message="metadata.name has a dot or begins with a digit, which its Service's name can't: "
        "rename it, with lower-case letters, digits and hyphens, a letter first",
        check=lambda resource: re.match(NAME_PATTERN, resource.metadata.name) is not None,
    ),
)

_READY_OR_DONE = '.status.conditions[?(@.type=="{}")].reason'


class Resource(Schema):
    """Common part of the three resources."""

    model_config = ConfigDict(extra="ignore")

    plural: ClassVar[str]
    short_names: ClassVar[tuple[str, ...]]
    columns: ClassVar[tuple[Column, ...]]
    scale: ClassVar[bool] = False

    api_version: Literal["cloze.dev/v1alpha1"] = "cloze.dev/v1alpha1"
    metadata: Metadata

    @classmethod
    def kind_name(cls) -> str:
        """The Kubernetes kind."""
        return cls.__name__


class PretrainJob(Resource):
    """Raw text to a registered masked language model: cleaning, tokenizer, distributed training, evaluation."""

    plural: ClassVar[str] = "pretrainjobs"
    short_names: ClassVar[tuple[str, ...]] = ("ptj",)
    columns: ClassVar[tuple[Column, ...]] = (
        Column(name="State", path=".status.state"),
        Column(name="Progress", path=".status.progress.summary"),
        Column(name="Loss", path=".status.progress.loss", type="number"),
        Column(name="Model", path=".spec.registry.name"),
        Column(name="Version", path=".status.model.version"),
        Column(name="Restarts", path=".status.restarts", type="integer", wide=True),
        Column(name="Reason", path=_READY_OR_DONE.format("Succeeded"), wide=True),
        Column(name="Age", path=".metadata.creationTimestamp", type="date"),
    )
    rules: ClassVar[tuple[Rule, ...]] = (*_NAME_RULES, *PRETRAIN_RULES)

    kind: Literal["PretrainJob"] = "PretrainJob"
    spec: PretrainJobSpec
    status: TrainingStatus = TrainingStatus()


class FineTuneJob(Resource):
    """A registered encoder and labelled examples to a registered task model."""

    plural: ClassVar[str] = "finetunejobs"
    short_names: ClassVar[tuple[str, ...]] = ("ftj",)
    columns: ClassVar[tuple[Column, ...]] = (
        Column(name="State", path=".status.state"),
        Column(name="Task", path=".spec.task"),
        Column(name="Progress", path=".status.progress.summary"),
        Column(name="Loss", path=".status.progress.loss", type="number"),
        Column(name="Model", path=".spec.registry.name"),
        Column(name="Version", path=".status.model.version"),
        Column(name="Restarts", path=".status.restarts", type="integer", wide=True),
        Column(name="Reason", path=_READY_OR_DONE.format("Succeeded"), wide=True),
        Column(name="Age", path=".metadata.creationTimestamp", type="date"),
    )
    rules: ClassVar[tuple[Rule, ...]] = (*_NAME_RULES, *FINE_TUNE_RULES)

    kind: Literal["FineTuneJob"] = "FineTuneJob"
    spec: FineTuneJobSpec
    status: TrainingStatus = TrainingStatus()


class ModelDeployment(Resource):
    """A registered model version, served over HTTP."""

    plural: ClassVar[str] = "modeldeployments"
    short_names: ClassVar[tuple[str, ...]] = ("mdep",)
    columns: ClassVar[tuple[Column, ...]] = (
        Column(name="State", path=".status.state"),
        Column(name="Model", path=".spec.model.name"),
        Column(name="Version", path=".status.stable.version"),
        Column(name="Canary", path=".status.rollout.canaryVersion"),
        Column(name="Step", path=".status.rollout.step"),
        Column(name="Weight", path=".status.rollout.weight", type="integer"),
        Column(name="Ready", path=".status.readyReplicas", type="integer"),
        Column(name="Replicas", path=".spec.replicas", type="integer"),
        Column(name="Reason", path=_READY_OR_DONE.format("Ready"), wide=True),
        Column(name="URL", path=".status.url", wide=True),
        Column(name="Age", path=".metadata.creationTimestamp", type="date"),
    )
    rules: ClassVar[tuple[Rule, ...]] = _NAME_RULES
    scale: ClassVar[bool] = True

    kind: Literal["ModelDeployment"] = "ModelDeployment"
    spec: ModelDeploymentSpec
    status: ModelDeploymentStatus = ModelDeploymentStatus()


KINDS: tuple[type[Resource], ...] = (PretrainJob, FineTuneJob, ModelDeployment)

TrainingJob = PretrainJob | FineTuneJob


def parse_job(document: dict[str, Any]) -> TrainingJob:
    """Validate a PretrainJob or FineTuneJob document.

    Raises ValueError (pydantic's ValidationError is one) with the field and the remedy.
    """
    kind = document.get("kind")
    if kind == "PretrainJob":
        return PretrainJob.model_validate(document)
    if kind == "FineTuneJob":
        return FineTuneJob.model_validate(document)
    raise ValueError(f"kind is {kind!r}: expected PretrainJob or FineTuneJob")
