"""Whether a training is well, from what all ranks know of its steps: a pure value that a checkpoint holds."""

import math
from dataclasses import dataclass, replace

#: Steps over which losses are averaged: one batch says little.
WINDOW = 16
#: Updates in a row that may be left out because the gradient isn't finite; of more steps, those above one in so many.
NON_FINITE_BUDGET = 3
TOLERABLE_EVERY = 10


@dataclass(frozen=True, slots=True)
class Health:
    """What the steps so far tell.

    losses: the last finite ones (nats), at most WINDOW of them. lowest: the lowest mean of WINDOW losses in a row so
    far. left_out: updates that were left out in a row. strain: of all of them those that are above what is tolerable.
    """

    losses: tuple[float, ...] = ()
    lowest: float | None = None
    left_out: int = 0
    strain: float = 0.0

    def seen(self, loss: float) -> "Health":
        """After a step with this loss; one that isn't finite tells nothing but by its gradient."""
        if not math.isfinite(loss):
            return self
        losses = (*self.losses, loss)[-WINDOW:]
        if len(losses) < WINDOW:
            return replace(self, losses=losses)
        mean = sum(losses) / WINDOW
        return replace(self, losses=losses, lowest=mean if self.lowest is None else min(mean, self.lowest))

    def updated(self, *, finite: bool) -> "Health":
        """After an update, or after one that was left out as its gradient wasn't finite."""
        if finite:
            return replace(self, left_out=0, strain=max(0.0, self.strain - 1 / TOLERABLE_EVERY))
        return replace(self, left_out=self.left_out + 1, strain=self.strain + 1)

    @property
    def rise(self) -> float:
        """By how much (nats) the mean of the last losses lies above the lowest one; 0 while they are too few."""
        return sum(self.losses) / WINDOW - self.lowest if self.lowest is not None and self._full else 0.0

    @property
    def _full(self) -> bool:
        return len(self.losses) == WINDOW

    def trouble(self, max_rise: float) -> str:
        """Why the training diverges; empty when it doesn't."""
        if self.left_out >= NON_FINITE_BUDGET:
            return f"the gradient was not finite in {self.left_out} steps in a row"
        if self.strain >= NON_FINITE_BUDGET:
            return f"the gradient is not finite in more than one of {TOLERABLE_EVERY} steps"
        if self.rise > max_rise:
            return f"the mean loss of {WINDOW} steps has risen by {self.rise:.2f} nats"
        return ""

    def sound(self, max_rise: float) -> bool:
        """Whether to go back to this: well, not halfway to trouble, and not just come back itself."""
        return not self.left_out and self.rise <= max_rise / 2 and (self._full or self.lowest is None)

    def restarted(self) -> "Health":
        """After going back to where this was: a full window of losses shows whether it helped."""
        return replace(self, losses=(), strain=0.0)
