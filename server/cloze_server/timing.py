"""How far one request is, for the headers and metrics of its reply."""

import math
from dataclasses import dataclass, field

from cloze_server.replies import CacheResult
from cloze_server.segments import Segment

Stage = tuple[str, float, float]
"""Name, when it began on the monotonic clock, and the seconds that it took."""


@dataclass(slots=True)
class Timing:
    """Filled in as a request is answered.

    longest: tokens of its longest input as the model reads it, once it was tokenized. seconds: by stage, those that
    are done. stages: the same as they came. cached: how the cache of replies answered; None where there is none.
    segments: what the request said of itself. until: when nobody waits for it any more, on the monotonic clock.
    """

    longest: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    cached: CacheResult | None = None
    segments: tuple[Segment, ...] = ()
    until: float = math.inf

    def stage(self, name: str, began: float, seconds: float) -> None:
        """A stage is done. began: on the monotonic clock."""
        self.stages.append((name, began, seconds))
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def header(self, total_seconds: float) -> str:
        """The value of `Server-Timing` (W3C Server Timing): milliseconds of each stage, and of all."""
        entries = [*self.seconds.items(), ("total", total_seconds)]
        return ", ".join(f"{stage};dur={1000 * seconds:.3f}" for stage, seconds in entries)
