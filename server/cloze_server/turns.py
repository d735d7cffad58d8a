"""Whose batch runs next, where several models share the processors."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Lets so many batches of all models run at a time, in the order in which their threads came.

    A thread that has had its turn stands behind all that wait. So between two batches of one model each of the others
    gets one, if it wants: none starves, whatever the others have in their queues and however slow they are.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @property
    def waiting(self) -> int:
        """How many threads wait for their turn."""
        return len(self._waiting)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and have it until the end of the block."""
        with self._changed:
            place = object()
            self._waiting.append(place)
            while not self._free or self._waiting[0] is not place:
                self._changed.wait()
            self._waiting.popleft()
            self._free -= 1
            # There may be another turn for the next in line.
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()
