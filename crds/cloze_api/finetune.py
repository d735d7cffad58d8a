"""FineTuneJob: a registered encoder and labelled examples to a registered task model."""

from collections import Counter
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from cloze_api.distillation import Distillation
from cloze_api.evaluation import Evaluation
from cloze_api.precision import Precision
from cloze_api.pretrained import PretrainedVersion
from cloze_api.privacy import Privacy
from cloze_api.schema import ObjectName, Rule, Schema
from cloze_api.source import SourceURI, uri_rule
from cloze_api.task import Task
from cloze_api.training import SPEC_RULES, Optimization, Sharding, TrainingSpec, immutable_after_start


class BaseJob(Schema):
    """A PretrainJob of the same namespace; the FineTuneJob waits until it has registered its model."""

    name: ObjectName


class Base(Schema):
    """The encoder to start from."""

    model: PretrainedVersion | None = None
    pretrain_job: BaseJob | None = None

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.model) != has(self.pretrainJob)",
            message="spec.base needs exactly one of model and pretrainJob: set one, remove the other",
            check=lambda base: (base.model is None) != (base.pretrain_job is None),
        ),
    )


class Dataset(Schema):
    """Labelled examples in JSON lines.

    Sequence classification: `{"text": …, "label": …}`. Token classification: `{"tokens": […], "labels": […]}`
    with one label for each word. Test examples may have `"metadata": {"language": "de"}`, of few values: the evaluation
    tells the groups apart.
    """

    train: SourceURI
    test: SourceURI
    """Examples for the evaluation; none of them is trained on."""

    rules: ClassVar[tuple[Rule, ...]] = (uri_rule("spec.dataset.train"), uri_rule("spec.dataset.test"))


class FineTuneOptimization(Optimization):
    """Optimization over whole passes through the training examples."""

    epochs: Annotated[int, Field(ge=1, le=1000)] = 3
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4


class Export(Schema):
    """In which precisions the model can be served, besides fp32."""

    precisions: Annotated[
        list[Literal[Precision.INT8, Precision.FP16]],
        Field(max_length=2, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = []
    """int8 for CPUs, fp16 for GPUs. Each is tried on the evaluation's examples, on at most 4,000 of them."""
    max_accuracy_loss: Annotated[float, Field(ge=0, le=1)] = 0.005
    """How far a precision may fall below fp32, in accuracy, or in macro F1 for token classification; 0.005 is half a
    point. One that falls further is left out of the artifact, and the outcome says so."""


def _distinct(labels: list[str]) -> list[str]:
    repeated = sorted(label for label, count in Counter(labels).items() if count > 1)
    if repeated:
        raise ValueError(f"{', '.join(repeated)}: named more than once, name each label once")
    return labels


class FineTuneJobSpec(TrainingSpec):
    """Desired state of a FineTuneJob."""

    base: Base
    task: Literal[Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION]
    dataset: Dataset
    labels: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128)]],
        AfterValidator(_distinct),
        Field(max_length=1000, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = []
    """The label schema, in order. When empty: the sorted labels of the training examples."""
    max_length: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Longest sequence in tokens; the base model's limit when absent."""
    optimization: FineTuneOptimization = FineTuneOptimization()
    distillation: Distillation | None = None
    privacy: Privacy | None = None
    evaluation: Evaluation = Evaluation()
    export: Export = Export()

    rules: ClassVar[tuple[Rule, ...]] = (
        *SPEC_RULES,
        Rule(
            cel="self.labels.size() != 1",
            message="spec.labels has a single label: name at least two, or leave it empty to take them from the data",
            check=lambda spec: len(spec.labels) != 1,
        ),
        Rule(
            cel="self.dataset.train != self.dataset.test",
            message="spec.dataset.test is the same as spec.dataset.train: name examples that are not trained on",
            check=lambda spec: spec.dataset.train != spec.dataset.test,
        ),
        Rule(
            cel="!has(self.privacy) || !has(self.distillation)",
            message="spec.distillation learns from a teacher's answers, about which spec.privacy can promise nothing: "
            "remove one",
            check=lambda spec: spec.privacy is None or spec.distillation is None,
        ),
        Rule(
            cel="!has(self.privacy) || self.optimization.sharding == 'none'",
            message="spec.privacy cuts each example's whole gradient, which no rank has with optimization.sharding: "
            "remove the sharding",
            check=lambda spec: spec.privacy is None or spec.optimization.sharding is Sharding.NONE,
        ),
    )


FINE_TUNE_RULES = immutable_after_start(
    "FineTuneJob",
    (
        "base",
        "task",
        "dataset",
        "labels",
        "maxLength",
        "optimization",
        "distillation",
        "privacy",
        "evaluation",
        "export",
        "topology",
        "storage",
        "checkpoint",
        "registry",
        "image",
    ),
)
