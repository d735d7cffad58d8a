"""How far one request is, for the headers and metrics of its reply."""

from dataclasses import dataclass, field

from cloze_server.replies import CacheResult


@dataclass(slots=True)
class Timing:
    """Filled in as a request is answered.

    longest: tokens of its longest input as the model reads it, once it was tokenized. seconds: by stage, those that
    are done. cached: how the cache of replies answered; None where there is none.
    """

    longest: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    cached: CacheResult | None = None

    def header(self, total_seconds: float) -> str:
        """The value of `Server-Timing` (W3C Server Timing): milliseconds of each stage, and of all."""
        entries = [*self.seconds.items(), ("total", total_seconds)]
        return ", ".join(f"{stage};dur={1000 * seconds:.3f}" for stage, seconds in entries)
