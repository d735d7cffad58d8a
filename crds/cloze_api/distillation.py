"""Distillation: a model also learns from what a larger one, its teacher, says of the same examples."""

from typing import Annotated, ClassVar

from pydantic import Field

from cloze_api.pretrained import PretrainedVersion
from cloze_api.schema import Rule, Schema

_Layer = Annotated[int, Field(ge=0, le=127)]


class Teacher(Schema):
    """A registered classifier for the same task, with the same labels and the same tokenizer as the student.

    The tokenizers are the same when their fingerprints are, which manifests have as `tokenizer_fingerprint`.
    """

    model: PretrainedVersion
    """An alias is resolved when the run starts; the run keeps to that version."""


class Relation(Schema):
    """Learn how tokens relate to each other in one layer of the teacher's (MiniLMv2, arXiv:2012.15828).

    The loss is the divergence of the scaled products of queries with queries, keys with keys and values with values,
    in the teacher's layer and in the student's, which may be of different widths.
    """

    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Of this loss, beside the targets' of weight 1."""
    heads: Annotated[int, Field(ge=1, le=256)] | None = None
    """Parts into which the states of either layer are cut; a divisor of both widths. The teacher's attention heads
    when absent."""
    teacher_layer: _Layer | None = None
    """Counted from 0; the last one when absent. Of large teachers one above the middle teaches more."""
    student_layer: _Layer | None = None
    """Counted from 0; the last one when absent."""


class Distillation(Schema):
    """What a student learns besides its examples' labels."""

    teacher: Teacher
    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    """Both models' logits are divided by it before they are compared (Hinton et al., arXiv:1503.02531)."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the teacher's answers in the targets; the rest is the examples' labels."""
    relation: Relation | None = None
    layers: Annotated[list[_Layer], Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"})] = []
    """When given, the student has just as many layers, and begins as the teacher's embeddings, these layers of the
    teacher's, counted from 0, and its head. The base model has the teacher's sizes then."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.weight > 0.0 || has(self.relation)",
            message="spec.distillation.weight is 0 and there is no spec.distillation.relation, so that nothing is "
            "learnt from the teacher: raise the weight, or add a relation",
            check=lambda distillation: distillation.weight > 0 or distillation.relation is not None,
        ),
    )
