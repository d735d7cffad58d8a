"""FineTuneJob: a registered encoder and labelled examples to a registered task model."""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field

from cloze_api.dataset import Dataset
from cloze_api.distillation import Distillation
from cloze_api.early_stopping import EarlyStopping
from cloze_api.evaluation import Evaluation
from cloze_api.lora import Lora
from cloze_api.precision import Precision
from cloze_api.pretrained import PretrainedFolder, PretrainedVersion
from cloze_api.privacy import Privacy
from cloze_api.schema import ObjectName, Rule, Schema, distinct
from cloze_api.task import LABEL_TASKS, Problem, Task
from cloze_api.training import (
    ADJUSTABLE_RULES,
    SPEC_RULES,
    Arithmetic,
    Optimization,
    Sharding,
    TrainingSpec,
    immutable_after_start,
)


class BaseJob(Schema):
    """A PretrainJob of the same namespace; the FineTuneJob waits until it has registered its model."""

    name: ObjectName


def _named(base: "Base") -> int:
    return sum(each is not None for each in (base.model, base.pretrain_job, base.uri))


class Base(PretrainedFolder):
    """The encoder to start from: a registered version of any task, what a PretrainJob registers, or a folder in Hugging
    Face's format with weights in safetensors. A head, if there is one, is left."""

    model: PretrainedVersion | None = None
    pretrain_job: BaseJob | None = None

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="[has(self.model), has(self.pretrainJob), has(self.uri)].filter(given, given).size() == 1",
            message="spec.base needs exactly one of model, pretrainJob and uri: set one, remove the others",
            check=lambda base: _named(base) == 1,
        ),
        *PretrainedFolder.rules,
    )


class Truncation(StrEnum):
    """What is read of a text with more tokens than there is room for, as requests to a server say it, too."""

    RIGHT = "right"
    """Its beginning."""
    WINDOW = "window"
    """All of it, in overlapping windows."""


class ClassWeights(StrEnum):
    """How much the loss of each class counts."""

    NONE = "none"
    """All the same, so that frequent classes count for more."""
    BALANCED = "balanced"
    """In inverse proportion to how often the class occurs in the training examples; 1 on average over them."""


class FineTuneOptimization(Optimization):
    """Optimization over whole passes through the training examples."""

    epochs: Annotated[int, Field(ge=1, le=1000)] = 3
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    class_weights: ClassWeights = ClassWeights.NONE
    """Of classification with one label for a text, or for a word."""
    early_stopping: EarlyStopping | None = None
    """The last step is taken when absent."""
    lora: Lora | None = None
    """All weights are trained when absent."""


class Export(Schema):
    """In which precisions the model can be served, besides fp32."""

    precisions: Annotated[
        list[Literal[Precision.INT8, Precision.FP16]],
        Field(max_length=2, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = []
    """int8 for CPUs, fp16 for GPUs. Each is tried on the evaluation's examples, on at most 4,000 of them."""
    max_accuracy_loss: Annotated[float, Field(ge=0, le=1)] = 0.005
    """How far a precision may fall below fp32; 0.005 is half a point. One that falls further, over all examples or in
    a slice that counts, isn't in the artifact, and the outcome says so; in a slice it may also fall by what chance
    makes of so few examples. Of classifiers: in accuracy, in micro F1 for several labels, or for words in entity F1, or
    macro F1 where labels mark no entities. For numbers: in R² against fp32's, so that 0.005 lets them differ by 7 % of
    these numbers' standard deviation (root mean square). For question answering: in F1 of the tokens in fp32's answers.
    For embeddings: in the mean cosine of its vectors and fp32's."""


def _abstention_rule(name: str, value: Callable[[Evaluation], float | None]) -> Rule:
    """That thresholds are asked for of texts' labels alone. value: the field of that name."""
    return Rule(
        cel=f"!has(self.evaluation.{name}) || (self.task == 'sequence-classification' && self.problem != 'regression')",
        message=f"spec.evaluation.{name} is for labels of sequence-classification alone: remove it",
        check=lambda spec: (
            value(spec.evaluation) is None
            or (spec.task is Task.SEQUENCE_CLASSIFICATION and spec.problem is not Problem.REGRESSION)
        ),
    )


_LABELLED: Final = f"self.task in [{', '.join(map(repr, map(str, LABEL_TASKS)))}]"


class FineTuneJobSpec(TrainingSpec):
    """Desired state of a FineTuneJob."""

    base: Base
    task: Literal[Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.QUESTION_ANSWERING, Task.EMBEDDING]
    problem: Problem = Problem.SINGLE_LABEL
    """What sequence classification answers of a text: one label, each label by itself, or a number."""
    dataset: Dataset
    labels: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128)]],
        AfterValidator(distinct),
        Field(max_length=1000, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = []
    """The label schema of a classification, in order. When empty: the sorted labels of the training examples."""
    max_length: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Longest sequence in tokens; the base model's limit when absent."""
    truncate: Truncation = Truncation.RIGHT
    """Of classification. In the training each window of a text is a sequence with the text's label, or with those of
    the words that are its own; in the evaluation the mean of their outputs, weighted by their tokens, answers for the
    text, and for each word the window in which it is farther from a cut, as servers have it."""
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
            cel=f"self.labels.size() == 0 || ({_LABELLED} && self.problem != 'regression')",
            message="spec.labels is for classification, and the answers of spec.task aren't labels: remove one of them",
            check=lambda spec: not spec.labels or (spec.task in LABEL_TASKS and spec.problem is not Problem.REGRESSION),
        ),
        Rule(
            cel=f"self.optimization.classWeights == 'none' || ({_LABELLED} && self.problem == 'single-label')",
            message="spec.optimization.classWeights is for one label of each text or word, and spec.task asks for "
            "something else: remove it",
            check=lambda spec: (
                spec.optimization.class_weights is ClassWeights.NONE
                or (spec.task in LABEL_TASKS and spec.problem is Problem.SINGLE_LABEL)
            ),
        ),
        Rule(
            cel=f"self.truncate == 'right' || {_LABELLED}",
            message="spec.truncate is for sequence and token classification; question answering reads all of a context "
            "anyhow: remove it",
            check=lambda spec: spec.truncate is Truncation.RIGHT or spec.task in LABEL_TASKS,
        ),
        Rule(
            cel="self.problem == 'single-label' || self.task == 'sequence-classification'",
            message="spec.problem is for sequence-classification: remove it",
            check=lambda spec: spec.problem is Problem.SINGLE_LABEL or spec.task is Task.SEQUENCE_CLASSIFICATION,
        ),
        _abstention_rule("abstainBelowPrecision", lambda evaluation: evaluation.abstain_below_precision),
        _abstention_rule("abstainKeepingRecall", lambda evaluation: evaluation.abstain_keeping_recall),
        Rule(
            cel="self.task != 'embedding' || self.optimization.batchSequences > 1",
            message="spec.optimization.batchSequences is 1, and embeddings learn to tell the texts of a batch apart: "
            "raise it",
            check=lambda spec: spec.task is not Task.EMBEDDING or spec.optimization.batch_sequences > 1,
        ),
        Rule(
            cel="has(self.optimization.earlyStopping) == (has(self.dataset.validation) || "
            "has(self.dataset.validationFraction))",
            message="spec.optimization.earlyStopping chooses a step by spec.dataset.validation, or by "
            "validationFraction of the training examples: set it and one of these, or none of them",
            check=lambda spec: (
                (spec.optimization.early_stopping is not None)
                == (spec.dataset.validation is not None or spec.dataset.validation_fraction is not None)
            ),
        ),
        Rule(
            cel="!has(self.optimization.lora) || (!has(self.distillation) && self.optimization.sharding == 'none')",
            message="spec.optimization.lora trains a part of the weights, and spec.distillation and "
            "optimization.sharding are for all of them: remove one",
            check=lambda spec: (
                spec.optimization.lora is None
                or (spec.distillation is None and spec.optimization.sharding is Sharding.NONE)
            ),
        ),
        Rule(
            cel="!has(self.privacy) || !has(self.optimization.earlyStopping)",
            message="spec.optimization.earlyStopping looks at examples for which spec.privacy doesn't account: remove "
            "one",
            check=lambda spec: spec.privacy is None or spec.optimization.early_stopping is None,
        ),
        Rule(
            cel="self.dataset.train != self.dataset.test",
            message="spec.dataset.test is the same as spec.dataset.train: name examples that are not trained on",
            check=lambda spec: spec.dataset.train != spec.dataset.test,
        ),
        Rule(
            cel=f"!has(self.distillation) || ({_LABELLED} && self.problem == 'single-label')",
            message="spec.distillation is for one label of each text or word, and spec.task asks for something else: "
            "remove it",
            check=lambda spec: (
                spec.distillation is None or (spec.task in LABEL_TASKS and spec.problem is Problem.SINGLE_LABEL)
            ),
        ),
        Rule(
            cel="!has(self.privacy) || self.truncate == 'right'",
            message="spec.truncate makes several sequences of a text, and spec.privacy is for examples that count one "
            "by one: remove one",
            check=lambda spec: spec.privacy is None or spec.truncate is Truncation.RIGHT,
        ),
        Rule(
            cel=f"!has(self.privacy) || {_LABELLED}",
            message="spec.privacy is for examples that count one by one, and those of spec.task share a gradient or "
            "come in several parts: remove it",
            check=lambda spec: spec.privacy is None or spec.task in LABEL_TASKS,
        ),
        Rule(
            cel="!has(self.privacy) || self.optimization.classWeights == 'none'",
            message="spec.optimization.classWeights tells how often each label occurs, which spec.privacy must not: "
            "remove one",
            check=lambda spec: spec.privacy is None or spec.optimization.class_weights is ClassWeights.NONE,
        ),
        Rule(
            cel="!has(self.privacy) || self.evaluation.seeds == 1",
            message="spec.evaluation.seeds trains several models on the same examples, and spec.privacy counts what "
            "one of them tells: remove one",
            check=lambda spec: spec.privacy is None or spec.evaluation.seeds == 1,
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
        Rule(
            cel="!self.optimization.compile || !has(self.distillation) || !has(self.distillation.relation)",
            message="spec.distillation.relation listens within a layer, of which spec.optimization.compile makes one "
            "program: remove one of them",
            check=lambda spec: (
                not spec.optimization.compile or spec.distillation is None or spec.distillation.relation is None
            ),
        ),
        Rule(
            cel="!has(self.privacy) || self.optimization.arithmetic != 'fp16'",
            message="spec.privacy cuts each example's gradient, of which fp16 loses small parts: use "
            "optimization.arithmetic bf16, fp32 or auto",
            check=lambda spec: spec.privacy is None or spec.optimization.arithmetic is not Arithmetic.FP16,
        ),
    )

    @property
    def pretrained(self) -> Base:
        """What isn't made from the examples: the base."""
        return self.base


FINE_TUNE_RULES = (
    immutable_after_start(
        "FineTuneJob",
        (
            "base",
            "task",
            "problem",
            "dataset",
            "labels",
            "maxLength",
            "truncate",
            "optimization",
            "distillation",
            "privacy",
            "evaluation",
            "export",
            "storage",
            "checkpoint",
            "registry",
            "image",
        ),
    )
    + ADJUSTABLE_RULES
)
