"""The number formats that an artifact's graph may be in, beside the 32-bit floats that every artifact has."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Precision(StrEnum):
    """What a graph computes in."""

    FP32 = "fp32"
    INT8 = "int8"
    """8-bit matrix products, for CPUs."""
    FP16 = "fp16"
    """16-bit floats, for GPUs."""


def graph_file(precision: Precision) -> str:
    """Name of a precision's graph in the artifact's folder."""
    return "model.onnx" if precision is Precision.FP32 else f"model_{precision}.onnx"


def named(precisions: Iterable[Precision]) -> str:
    """The precisions of an artifact that has these besides fp32, as in `fp32, int8`."""
    return ", ".join([Precision.FP32, *(each for each in Precision if each in set(precisions) - {Precision.FP32})])


class Slice(BaseModel):
    """A precision held to fp32 on the examples that say the same of themselves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """As `key=value`."""
    examples: int
    fp32: float
    """The metric's value for fp32."""
    value: float
    """Its value for this precision."""
    chance: float
    """A loss that 95 of 100 such slices would stay below if it were by chance which of the two answered better."""

    @property
    def loss(self) -> float:
        """What this precision loses."""
        return self.fp32 - self.value

    @property
    def certain(self) -> bool:
        """Whether chance hardly makes such a loss."""
        return not self.loss <= self.chance + 1e-9


class Measured(BaseModel):
    """A precision held to fp32, on the examples that the task's metric is of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    difference: Annotated[float, Field(ge=0)]
    """Largest difference of an output, as a share of the largest output or of 1."""
    metric: str = ""
    """`accuracy`, `macro_f1`, `entity_f1`, `micro_f1`, `r2`, `span_f1` or `cosine`; empty where there were no
    examples."""
    fp32: float | None = None
    """Its value for fp32."""
    value: float | None = None
    """Its value for this precision."""
    examples: int = 0
    worst_slice: Slice | None = Field(default=None, exclude_if=lambda worst: worst is None)
    """The one that loses most of those that lose more than chance makes, or where none does, of all; left out where the
    examples have no slices that count: an older server refuses fields that it doesn't know."""
    calibration_examples: int = 0
    """Training texts by which the ranges of activations were found; 0 where each token has its own, found as it is
    read."""
    latency_ms: float | None = None
    """What one of these texts alone took on the trainer's processor, median over some of them."""
    fp32_latency_ms: float | None = None
    """The same in fp32."""
