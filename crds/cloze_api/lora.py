"""Fine-tuning of small matrices beside an encoder's own."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from cloze_api.schema import Schema


class LoraTargets(StrEnum):
    """Which of an encoder's matrices get small ones beside them."""

    ATTENTION = "attention"
    """Those of its attention: queries, keys, values and what follows them."""
    ALL_LINEAR = "all-linear"
    """These, and those of its feed-forward blocks."""


class Lora(Schema):
    """Low-rank adaptation (Hu et al., arXiv:2106.09685): the encoder stays as it is, but for products of two small
    matrices that are added to some of its own. They are merged into these at the end: the artifact is as any other."""

    rank: Annotated[int, Field(ge=1, le=256)] = 8
    """Inner width of the products."""
    alpha: Annotated[float, Field(gt=0, le=4096)] = 16.0
    """The products are scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of what the small matrices read."""
    targets: LoraTargets = LoraTargets.ATTENTION
