"""How far one request is, for the headers and metrics of its reply."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Timing:
    """Filled in as a request is answered.

    longest: tokens of its longest input as the model reads it, once it was tokenized. seconds: by stage, those that
    are done.
    """

    longest: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def header(self, total_seconds: float) -> str:
        """The value of `Server-Timing` (W3C Server Timing): milliseconds of each stage, and of all."""
        entries = [*self.seconds.items(), ("total", total_seconds)]
        return ", ".join(f"{stage};dur={1000 * seconds:.3f}" for stage, seconds in entries)
