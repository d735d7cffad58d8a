"""HTTP as uvicorn speaks it, with bounds on what a client may hold.

uvicorn waits for ever: for the rest of a head, for a client that reads no reply, for one that never asks. Here each of
these has its time and its bytes, and a request that can't be read is answered by a problem document. Trailers are
dropped: they would become headers of a request that was checked already. An offer to upgrade is ignored, with the body
that comes with it left in place; the parser takes everything behind it for another protocol's.
"""

import asyncio
import fcntl
import secrets
import sys
import termios
from enum import Enum, auto
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from cloze_server.connections import Crowd
from cloze_server.problems import ProblemError, ProblemType

CROWDED = "crowded"
"""In the state of a request's scope: it came by a connection too many."""

_WRITE_BUFFER_BYTES = 16 << 10
# While a client that still sends its body is told that nobody wants it: closing at once would reset the connection, and
# the reply would be lost.
_LINGER_SECONDS = 2.0
# In the time that a client is given to take a part of its reply.
_PROGRESS_BYTES = 32 << 10
_HOP_BY_HOP = (b"upgrade", b"http2-settings")


class Phase(Enum):
    """Of a connection: what is being read."""

    NOTHING = auto()
    HEAD = auto()
    BODY = auto()
    REST = auto()
    """Of what nobody wants."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *, crowd: Crowd, **given: Any) -> None:
        """`given` is what uvicorn gives a protocol."""
        super().__init__(**given)
        self._crowd = crowd
        self._bounds = crowd.bounds
        self._phase = Phase.NOTHING
        self._gentle: Any = None
        # Bytes read since anything was complete: a head, a part of a body, a message.
        self._pending = 0
        # Bytes of the last read, and of all reads that hold a part of the head: it is no longer than they are.
        self._read = 0
        self._around_head = 0
        self._upgrading = False
        self._closing = False
        self._patience: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    # From the transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client dialled."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(_WRITE_BUFFER_BYTES)
        self._gentle = _GentleTransport(transport, self._close)
        self._keep_alive()
        self._crowd.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It ended, whoever did it."""
        self._be_patient(None)
        self._stop_watching()
        self._unset_keepalive_if_required()
        self._crowd.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Something was read."""
        if self._phase is Phase.REST:
            return
        self._unset_keepalive_if_required()
        self._read = len(data)
        self._pending += self._read
        self._around_head += self._read
        if not self._feed(data):
            return
        if self._pending > self._bounds.head_bytes:
            self._refuse(ProblemType.HEAD_TOO_LARGE, f"send at most {self._bounds.head_bytes} bytes of headers")
        elif self._patience is None and (self._phase is Phase.HEAD or (self._phase is Phase.NOTHING and self._pending)):
            self._be_patient(self._bounds.patience_seconds)

    def _feed(self, data: bytes) -> bool:
        """Parse it. Whether more is wanted."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._upgrading:
                return self._go_on_without_upgrade(data[upgrade.args[0] :])
            # CONNECT. It is answered, and nothing behind it is read.
            self.cycle.keep_alive = False
            self._phase = Phase.REST
        except httptools.HttpParserError:
            self._refuse(ProblemType.REQUEST_INVALID, "this can't be read as HTTP/1.1")
        return self._phase is not Phase.REST

    def pause_writing(self) -> None:
        """The client takes less than is sent."""
        super().pause_writing()
        self._watch()
        self._crowd.blocked(self)

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._crowd.flows(self)
        if not self.transport.is_closing():
            self._stop_watching()

    # From the parser.

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._phase is not Phase.REST:
            self._phase = Phase.HEAD
            self._around_head = self._read
            super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        if self._phase is Phase.HEAD:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there: the request can be answered."""
        if self._phase is not Phase.HEAD:
            return
        # Also of one that was read at once.
        most = self._bounds.head_bytes
        if self._around_head > most and self._head_bytes() > most:
            self._refuse(ProblemType.HEAD_TOO_LARGE, f"send at most {most} bytes of headers")
            return
        self._pending = 0
        self._upgrading = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._upgrading:
            return
        if self._crowd.too_many:
            self.scope["state"][CROWDED] = True
        # Fails for a target that is none.
        super().on_headers_complete()
        # Before its task has begun.
        self.cycle.transport = self._gentle
        self._phase = Phase.BODY
        if self._patience is not None:
            self._be_patient(None)
        self._crowd.busy(self)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._pending = 0
        if self._phase is Phase.BODY:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request was read to its end."""
        self._pending = 0
        if self._phase is not Phase.BODY:
            return
        self._phase = Phase.NOTHING
        if self.cycle.response_complete:
            # The reply was given before, and the client stays.
            self._be_patient(None)
            self._keep_alive()
        super().on_message_complete()

    # From the request.

    def on_response_complete(self) -> None:
        """A reply was handed to the transport."""
        if self._closing:
            return
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._crowd.waits(self)
            if self._phase is Phase.BODY:
                self._unset_keepalive_if_required()
                self._be_patient(_LINGER_SECONDS)

    # Of connections.

    def unread(self) -> int:
        """Bytes of replies that the client has not taken."""
        return self.transport.get_write_buffer_size()

    def leave(self) -> None:
        """Close it; there is no request."""
        self._end()

    def give_up(self) -> None:
        """End it, with all that waits to be read."""
        self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        """Nobody has asked for long."""
        if not self.transport.is_closing():
            self._end()

    def _keep_alive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _be_patient(self, seconds: float | None) -> None:
        """Wait so long for what the client is about to send; None: it is there."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if seconds is not None:
            self._patience = self.loop.call_later(seconds, self._lose_patience)

    def _lose_patience(self) -> None:
        self._patience = None
        if self._phase in (Phase.NOTHING, Phase.HEAD):
            seconds = self._bounds.patience_seconds
            self._refuse(ProblemType.HEAD_TIMEOUT, f"the headers were not complete within {seconds:g} s")
        else:
            self._end()

    def _go_on_without_upgrade(self, rest: bytes) -> bool:
        """Read the request again as it would be without its offer. rest: what comes behind its head."""
        self._upgrading = False
        method = self.parser.get_method()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        lines = [b"%s %s HTTP/1.1" % (method, self.url)]
        for name, value in self.headers:
            if name == b"connection":
                kept = [each for each in value.split(b",") if each.strip().lower() not in _HOP_BY_HOP]
                lines.append(b"connection: " + b",".join(kept))
            elif name not in _HOP_BY_HOP:
                lines.append(name + b": " + value)
        return self._feed(b"\r\n".join([*lines, b"", b""]) + rest)

    def _refuse(self, kind: ProblemType, detail: str) -> None:
        """Answer what is no request, unless a reply to another is on its way; read no more of it."""
        self._crowd.count(kind)
        in_body = self._phase is Phase.BODY
        self._phase = Phase.REST
        self._be_patient(None)
        if in_body and self.cycle.response_complete:
            self._close()
            return
        if in_body and not self.pipeline and not self.cycle.response_started:
            # The same as a client that leaves: nobody waits for this reply.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        elif self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            return
        response = ProblemError(kind, detail).response(identity := secrets.token_hex(16), path="")
        lines = [STATUS_LINE[response.status_code].rstrip()]
        lines += [name + b": " + value for name, value in (*self.server_state.default_headers, *response.raw_headers)]
        lines += [b"x-request-id: " + identity.encode(), b"connection: close", b"", b""]
        self.transport.write(b"\r\n".join(lines) + bytes(response.body))
        self._close()

    def _close(self) -> None:
        """Close once all is sent, leaving the client time to read it before what it sends is answered by a reset."""
        self._closing = True
        if self._phase is Phase.NOTHING:
            self._end()
            return
        self._phase = Phase.REST
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._be_patient(_LINGER_SECONDS)

    def _end(self) -> None:
        """Close once all is sent, but don't wait for ever for a client to take it."""
        self._watch()
        self.transport.close()

    def _watch(self) -> None:
        """End the connection when its client takes nothing of what is sent for some time."""
        if self._reading is None:
            self._reading = self.loop.call_later(self._bounds.patience_seconds, self._check_progress, self._owed())

    def _check_progress(self, before: int) -> None:
        self._reading = None
        if self.unread() and self._owed() > max(0, before - _PROGRESS_BYTES):
            self._crowd.count("unread")
            self.give_up()
        else:
            self._watch()

    def _owed(self) -> int:
        """Bytes that the client has not taken, with those that the kernel has, which takes them in large lumps."""
        waiting = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        return self.unread() + int.from_bytes(waiting, sys.byteorder)

    def _stop_watching(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None


class _GentleTransport:
    """What a request writes its reply to; closing it leaves the client time to read that."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, close: Any) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close
