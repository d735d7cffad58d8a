"""How many connections there may be, and how much of their replies may wait to be read; for all of them together.

A connection costs a client nothing to keep, so that what is scarce is taken back from those that use it least: where
one too many is opened, the one that has been without a request for longest is closed; where replies fill the memory,
the client that has not read for longest is given up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

UNREAD_BYTES_MAX = 64 << 20
HEAD_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What connections may take.

    connections: how many. patience_seconds: for the head of a request, from its first byte; for a client that reads
    nothing of its reply. head_bytes: of a request's line and headers. unread_bytes: of all replies that wait to be
    read.
    """

    connections: int
    patience_seconds: float
    head_bytes: int = HEAD_BYTES_MAX
    unread_bytes: int = UNREAD_BYTES_MAX


class Connection(Protocol):
    """One of them."""

    def unread(self) -> int:
        """Bytes of its replies that the client has not taken."""
        ...

    def leave(self) -> None:
        """Close it; it has no request."""
        ...

    def give_up(self) -> None:
        """End it, with all that waits to be read."""
        ...


class Crowd:
    """The connections of one process. Belongs to one event loop."""

    def __init__(self, bounds: Bounds, count: Callable[[str], None] = lambda _: None) -> None:
        """count: told why a connection was ended, as one of `metrics.CONNECTION_ENDS`."""
        self.bounds = bounds
        self.count = count
        self._open: set[Connection] = set()
        # In the order in which they began to.
        self._waiting: dict[Connection, None] = {}
        self._unread: dict[Connection, None] = {}

    @property
    def open(self) -> int:
        """Connections that there are."""
        return len(self._open)

    @property
    def too_many(self) -> bool:
        """Whether there are more than there may be, because all have a request."""
        return len(self._open) > self.bounds.connections

    def opened(self, connection: Connection) -> None:
        """One more; the bound is kept as long as there is another without a request."""
        self._open.add(connection)
        if self.too_many and self._waiting:
            longest = next(iter(self._waiting))
            self.count("crowded")
            # It is as good as gone: the next one must not choose it again.
            self.closed(longest)
            longest.leave()
        self.waits(connection)

    def closed(self, connection: Connection) -> None:
        """One less."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)
        self._unread.pop(connection, None)

    def waits(self, connection: Connection) -> None:
        """It has no request from now on."""
        self._waiting[connection] = None

    def busy(self, connection: Connection) -> None:
        """It has a request, whose head is complete."""
        self._waiting.pop(connection, None)

    def blocked(self, connection: Connection) -> None:
        """Its client takes a reply more slowly than it is sent; who has done so for longest makes room."""
        self._unread[connection] = None
        total = sum(each.unread() for each in self._unread)
        for each in list(self._unread):
            if total <= self.bounds.unread_bytes:
                break
            total -= each.unread()
            del self._unread[each]
            self.count("unread")
            each.give_up()

    def flows(self, connection: Connection) -> None:
        """Its client has taken what there was."""
        self._unread.pop(connection, None)
