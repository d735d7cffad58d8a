"""Differential privacy: how much a fine-tuned model may tell about any one of its training examples."""

from typing import Annotated

from pydantic import Field

from cloze_api.schema import Schema


class Privacy(Schema):
    """Bounds in the sense of (ε, δ)-differential privacy, for two sets of examples of which one has one example more.

    Each example's gradient is cut to a norm, and noise is added to each step's sum (arXiv:1607.00133).
    """

    epsilon: Annotated[float, Field(gt=0, le=1000)]
    """The whole run's budget. The noise is what makes all of its steps fit into it; there is no further step then."""
    delta: Annotated[float, Field(gt=0, lt=1)]
    """Below one over the number of training examples, or the run is refused; a tenth of that is usual."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """To which each example's gradient is cut. The noise is in proportion to it."""
