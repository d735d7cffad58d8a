"""What Prometheus has counted about a canary."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cloze_api.rollout import Analysis
from cloze_operator.analysis.checks import Evidence
from cloze_operator.analysis.queries import GatewayCounters
from cloze_operator.prometheus import Prometheus


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked about a rollout.

    canary_pods, stable_pods: anchored regular expressions of pod names. canary_service, stable_service: names of the
    Services behind `route`, for the gateway's counters, which are asked when `gateway` is set. began: when the canary
    may have got its first request.
    """

    namespace: str
    canary_pods: str
    stable_pods: str
    canary_service: str
    stable_service: str
    route: str = ""
    gateway: bool
    began: datetime
    analysis: Analysis


class EvidenceObserver:
    """Asks at most once for each completed interval of a question, and never raises."""

    def __init__(
        self, prometheus: Prometheus | None, gateway: GatewayCounters | None, clock: Callable[[], datetime]
    ) -> None:
        raise NotImplementedError

    async def observe(self, question: Question) -> Evidence:
        """What was counted so far."""
        raise NotImplementedError
