"""Ending without losing a request.

SIGTERM makes the server unready at once, but it goes on serving for the lame-duck time, because proxies and gateways
learn of it only later; every reply then says `Connection: close`, so that clients with a kept connection dial anew.
After that the port closes, accepted requests are finished, and the process exits 0. Requests that are not finished when
the time for draining is over are told so, and counted. A second signal ends both waits.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from cloze_server.lifecycle import Lifecycle, State
from cloze_server.listener import has_waiting, refuse_new
from cloze_server.logs import fields

_log = logging.getLogger(__name__)

# For handshakes that had begun: a round trip within a cluster or between its zones.
_HANDSHAKE_SECONDS = 0.05
# No longer than a client takes to send what it has begun, or to take a short answer.
_PATIENCE_SECONDS = 1.0
_POLL_SECONDS = 0.02


class DrainingServer(uvicorn.Server):
    """uvicorn with a lame-duck time, and without dying of the signal that it has handled.

    drain_seconds: after the port is closed, for accepted requests.
    """

    def __init__(
        self, config: uvicorn.Config, lifecycle: Lifecycle, *, lame_duck_seconds: float, drain_seconds: float
    ) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._lame_duck_seconds = lame_duck_seconds
        self._drain_seconds = drain_seconds
        self._close_at: float | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT; not raised again afterwards, so that a drained server exits 0."""
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        """Begin to drain. No logging here: a handler may run while a log line is being written."""
        if self._close_at is not None:
            self._close_at = 0.0
            self.force_exit = True
            return
        # Nobody sends requests to a server that was never ready, and a person at a terminal doesn't want to wait.
        waits = self._lifecycle.state is State.READY and sig == signal.SIGTERM
        self._close_at = time.monotonic() + (self._lame_duck_seconds if waits else 0.0)
        self._lifecycle.drain()

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop accepting; asked ten times a second."""
        if self._lifecycle.failure is not None:
            self.should_exit = True
        if self._close_at is not None and time.monotonic() >= self._close_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, let connections that were just accepted send their request, then finish all of them."""
        for listener in sockets or []:
            # Not every kernel can; then a connection that is opened in this very moment is lost.
            with contextlib.suppress(OSError):
                refuse_new(listener)
        await self._until(lambda: not any(map(has_waiting, sockets or [])), _PATIENCE_SECONDS, _HANDSHAKE_SECONDS)
        _log.info("port closes", extra=fields(connections=len(self.server_state.connections)))
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        await self._until(lambda: not self._has_silent_connection(), _PATIENCE_SECONDS)
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._until(lambda: not (self.server_state.tasks or self.server_state.connections), self._drain_seconds)
        await self._abandon()
        if not self.force_exit:
            await self.lifespan.shutdown()
        _log.info("drained", extra=fields(abandoned=self._lifecycle.abandoned))

    async def _abandon(self) -> None:
        """End the requests that are left; the middleware answers and counts them."""
        if left := set(self.server_state.tasks):
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=_PATIENCE_SECONDS)

    def _has_silent_connection(self) -> bool:
        """Whether a connection was accepted and has not sent its first request yet."""
        return any(getattr(connection, "cycle", None) is None for connection in self.server_state.connections)

    async def _until(self, condition: Callable[[], bool], at_most: float, at_least: float = 0.0) -> None:
        """Wait for a condition, but no longer than `at_most` seconds or until a second signal."""
        started = time.monotonic()
        while (waited := time.monotonic() - started) < at_most and not self.force_exit:
            if waited >= at_least and condition():
                return
            await asyncio.sleep(_POLL_SECONDS)
