"""Whether a revision burns its error budget so fast that nobody should wait: the SRE workbook's fast burn, in short."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from cloze_operator.analysis.checks import Evidence


@dataclass(frozen=True, slots=True)
class Burn:
    """ratio: errors by request in the long window, of so many requests and events (errors)."""

    burning: bool
    ratio: float
    requests: float
    events: float
    message: str


def fast_burn(evidence: Evidence, arm: Literal["canary", "stable"], *, availability: float, now: datetime) -> Burn:
    """Whether an arm's errors, over the last five minutes and over the last one, use the budget 14.4 times too fast."""
    raise NotImplementedError
