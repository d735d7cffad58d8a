"""By how much a loss is multiplied so that 16-bit floats hold its gradient: a pure value that a checkpoint holds.

Small gradients would be 0 in fp16, and large ones infinite (Micikevicius et al., arXiv:1710.03740, section 3.2). The
rules are those of torch's GradScaler, which knows no gradients in parts, loses the batch that was too large, and never
ends.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from cloze_api.training import Arithmetic

#: The first scale of a run.
START: Final = 2.0**16
#: Updates in a row without an overflow after which the scale is doubled.
GROWTH_STEPS: Final = 2000
_LEAST: Final = 2.0
#: Beyond it nothing is gained; a float32 loss must not overflow itself.
_MOST: Final = 2.0**24


@dataclass(frozen=True, slots=True)
class LossScale:
    """value: a power of two; 1 for a loss that isn't scaled at all. held: updates since it last changed."""

    value: float = 1.0
    held: int = 0

    @classmethod
    def first(cls, arithmetic: Arithmetic) -> "LossScale":
        """That of a new run."""
        return cls(START) if arithmetic is Arithmetic.FP16 else cls()

    def suiting(self, arithmetic: Arithmetic) -> "LossScale":
        """What a run in this arithmetic goes on with, whatever the one before it was in."""
        first = LossScale.first(arithmetic)
        return self if (self.value < _LEAST) == (first.value < _LEAST) else first

    @property
    def may_fall(self) -> bool:
        """Whether a gradient that isn't finite may be the scale's fault."""
        return self.value > _LEAST

    def fallen(self) -> "LossScale":
        """After an overflow."""
        return LossScale(max(_LEAST, self.value / 2))

    def updated(self) -> "LossScale":
        """After an update of the weights."""
        if self.value < _LEAST:
            return self
        if self.held + 1 < GROWTH_STEPS:
            return replace(self, held=self.held + 1)
        return LossScale(min(max(_MOST, self.value), 2 * self.value))


def overflowed(scale: LossScale, norm: float, loss: float) -> bool:
    """Whether the same batch is worth another try at a smaller scale.

    norm: of the gradient. loss: of all ranks; when it isn't finite itself, or the scale is as small as may be, the
    training is in trouble, and no scale helps.
    """
    return scale.may_fall and not math.isfinite(norm) and math.isfinite(loss)
