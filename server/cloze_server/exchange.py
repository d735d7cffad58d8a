"""One request between the connection and its endpoint: how far it is, and what is told of it when it ends."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.types import Receive, Send

from cloze_server.hosting import Hosted
from cloze_server.logs import model_variable
from cloze_server.telemetry import RequestCounter
from cloze_server.timing import Timing

if TYPE_CHECKING:
    # Its library is loaded where it is used.
    from cloze_server.tracing import Trace

# An exemplar has room for 128 characters, with names (OpenMetrics 1.0).
_EXEMPLAR_ID_MAX = 64


class ClientLeftError(Exception):
    """Nobody waits for the reply any more."""


@dataclass(slots=True)
class Exchange:
    """One request: how far it is. Its endpoint finds it in the scope's state.

    route: its label in metrics.
    counter: counts it. limit: seconds that it may take, from its arrival. held: bytes of its body that count against
    the bound over all requests. tenant: the name of its API key; empty where none is asked for.
    trace: None for a request that isn't traced.
    """

    request_id: bytes
    route: str
    counter: RequestCounter
    hosted: Hosted | None
    limit: float
    arrived: float
    deadline: asyncio.Timeout | None = None
    status: int | None = None
    body_complete: bool = False
    held: int = 0
    tenant: str = ""
    trace: "Trace | None" = None
    timing: Timing = field(default_factory=Timing)

    def belongs_to(self, hosted: Hosted) -> None:
        """Note which of several models answers."""
        if hosted is self.hosted:
            return
        if self.hosted is not None:
            self.hosted.leave()
        hosted.enter()
        self.counter.request_left()
        self.counter, self.hosted = hosted.telemetry, hosted
        self.counter.request_started()
        model = hosted.service.model
        model_variable.set({"model": model.name, "version": model.version, "digest": model.digest})

    def exemplar(self) -> dict[str, str]:
        """What leads from a metric to this request."""
        found = {"request_id": self.request_id.decode("ascii")} if len(self.request_id) <= _EXEMPLAR_ID_MAX else {}
        return found if self.trace is None else {"trace_id": self.trace.id, **found}

    def end_trace(self, now: float, status: int) -> None:
        """Hand its spans on, if it is traced; what is in them is never a user's text."""
        if self.trace is None:
            return
        attributes: dict[str, str | int] = {}
        if self.hosted is not None:
            model = self.hosted.service.model
            attributes = {"cloze.model": model.name, "cloze.version": model.version, "cloze.digest": model.digest}
        if self.timing.longest is not None:
            attributes["cloze.longest_input_tokens"] = self.timing.longest
        if self.timing.cached is not None:
            attributes["cloze.cache"] = self.timing.cached
        self.trace.end(self.arrived, now, status, self.timing.stages, attributes)

    def shorten(self, milliseconds: int) -> None:
        """Give the request less time than every other one has; more is not to be had."""
        # As whole numbers, of which a client may send any: not all are a float.
        if milliseconds >= 1000 * self.limit:
            return
        seconds = milliseconds / 1000
        if self.deadline is not None and (when := self.deadline.when()) is not None:
            self.deadline.reschedule(when - self.limit + seconds)
        self.limit = seconds


Endpoint = Callable[[Exchange, dict[bytes, bytes], bytes, Receive, Send], Awaitable[None]]
"""Answers a POST: the exchange, its headers and its body, and the connection's two ends."""
