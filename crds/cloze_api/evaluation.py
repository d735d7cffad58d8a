"""What a fine-tuned model must show before it is registered."""

from typing import Annotated, ClassVar

from pydantic import Field

from cloze_api.names import PROMOTED_ALIAS
from cloze_api.schema import Alias, Rule, Schema, alias_rule

FIGURE_PATTERN = r"^[a-zA-Z](.*\S)?$"
"""Name of a figure, as the evaluation reports it: `accuracy`, `f1_spam`, `entity_f1`…"""

Share = Annotated[float, Field(ge=0, le=1)]
_Bound = Annotated[float, Field(allow_inf_nan=False)]


class Gate(Schema):
    """A bound on one figure of the evaluation."""

    figure: Annotated[str, Field(pattern=FIGURE_PATTERN, max_length=160)]
    """As the evaluation names it: `accuracy`, `macro_f1`, `f1_<label>`, `entity_f1`, `calibration_error`,
    `false_positive_rate`, `exact_match`, `spearman`, `worst_slice_accuracy`, `seed_deviation_accuracy`,
    `data_test_seen_share`…"""
    minimum: _Bound | None = None
    maximum: _Bound | None = None

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.minimum) || has(self.maximum)",
            message="spec.evaluation.gates has a gate without a bound: give minimum, maximum or both",
            check=lambda gate: gate.minimum is not None or gate.maximum is not None,
        ),
        Rule(
            cel="!has(self.minimum) || !has(self.maximum) || self.minimum <= self.maximum",
            message="spec.evaluation.gates has a gate that nothing passes: its minimum is above its maximum",
            check=lambda gate: gate.minimum is None or gate.maximum is None or gate.minimum <= gate.maximum,
        ),
    )


class Champion(Schema):
    """The version that a new one must not be worse than: both answer the same test examples."""

    alias: Alias = PROMOTED_ALIAS
    """Of the registered model, resolved when the run ends. While nothing has it, there is nothing to compare with."""
    max_loss: Share = 0.01
    """How much worse in the task's figure the new version may be: accuracy, for several labels micro F1, for token
    classification entity F1, or macro F1 where labels mark no entities, for question answering F1, for numbers and
    embeddings Spearman's correlation, or the mean reciprocal rank."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """How sure it must be that it isn't worse than that, over which examples there might have been (one-sided)."""

    rules: ClassVar[tuple[Rule, ...]] = (alias_rule("spec.evaluation.champion.alias"),)


class Evaluation(Schema):
    """How the finished model is judged, on the test examples. What fails a gate is not registered."""

    gates: Annotated[list[Gate], Field(max_length=32)] = []
    champion: Champion | None = None
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of the intervals that the figures come with."""
    calibrate: bool = True
    """Find the temperature that makes probabilities say how often they are right, and put it into the artifact. Of
    classifiers, multi-label too."""
    abstain_below_precision: Annotated[float, Field(gt=0, lt=1)] | None = None
    """When set, the artifact gets a threshold for each label, above which so many of its predictions are right; the
    server marks those below as abstained. Of sequence classification; multi-label, the label applies from there on.
    `answered_share` and `answered_accuracy`, or `applied_micro_f1`, tell what comes of it, and may have gates."""
    abstain_keeping_recall: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The same for recall: the highest threshold for each label from which on so many of the examples that have the
    label are still given it."""
    max_seen_share: Share | None = None
    """Which share of the test examples may be training examples, or nearly: of more the job ends before the training,
    and says where they are. Any may when absent, and the log tells them."""
    seeds: Annotated[int, Field(ge=1, le=10)] = 1
    """From how many seeds the model is trained, one after another: `optimization.seed`, whose model is the job's, and
    those that follow it, of which only figures are kept. `seed_deviation_accuracy` and its like tell how much of a
    figure is luck, and may have gates. Each seed costs a whole training."""
    min_slice_examples: Annotated[int, Field(ge=1, le=1_000_000)] = 30
    """Slices with fewer examples don't count for the worst one, and no precision is held to fp32 on them: chance alone
    would decide."""

    @property
    def thresholds(self) -> bool:
        """Whether labels get thresholds."""
        return self.abstain_below_precision is not None or self.abstain_keeping_recall is not None

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.abstainBelowPrecision) || !has(self.abstainKeepingRecall)",
            message="spec.evaluation.abstainBelowPrecision and abstainKeepingRecall ask for different thresholds of "
            "the same labels: remove one",
            check=lambda asked: asked.abstain_below_precision is None or asked.abstain_keeping_recall is None,
        ),
    )
