"""What a training's length and its schedule are counted in."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Counts steps, or real tokens. total: at which the training is over. warmup: until which the rate rises."""

    total: int
    warmup: int = 0
    in_tokens: bool = False

    def reading(self, step: int, tokens: int) -> int:
        """Where it stands after so many steps and tokens."""
        return tokens if self.in_tokens else step

    def over(self, step: int, tokens: int) -> bool:
        """Whether the training is."""
        return self.reading(step, tokens) >= self.total

    def share(self, step: int, tokens: int) -> float:
        """How much of the training is done."""
        return self.reading(step, tokens) / self.total
