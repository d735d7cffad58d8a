"""The part of Prometheus' HTTP API that canary analysis needs: range queries."""

from collections.abc import Mapping

from cloze_operator.analysis.counters import Series
from cloze_operator.decide.answers import Unavailable


class Prometheus:
    """Questions that always get an answer."""

    def __init__(
        self, url: str, token_file: str = "", timeout_seconds: float = 10.0, headers: Mapping[str, str] | None = None
    ) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        """Close the connections."""

    async def range(
        self, query: str, start: float, end: float, step_seconds: float
    ) -> tuple[Series, ...] | Unavailable:
        """The series of a query."""
        raise NotImplementedError
