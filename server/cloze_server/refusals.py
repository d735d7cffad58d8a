"""How fast a full queue tells so.

A refusal costs a fraction of a millisecond. Clients that ask again at once, whatever `Retry-After` says, make thousands
of them a second, and would take the processors from the requests that were accepted.
"""

import time
from collections.abc import Callable

PER_SECOND = 100
BURST = 50
LONGEST_SECONDS = 1.0


class Refusals:
    """So many a second are told at once; the others wait for their turn, a second at most. Belongs to one event loop.

    This is a leaky bucket as a meter (ITU-T I.371, "generic cell rate algorithm").
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turn = -float("inf")

    def delay(self) -> float:
        """Seconds until the next refusal may be told; it is counted as told then."""
        now = self._clock()
        turn = max(self._turn, now - BURST / PER_SECOND) + 1 / PER_SECOND
        # One that had to wait for longer isn't held back for those before it.
        self._turn = min(turn, now + LONGEST_SECONDS)
        return max(0.0, self._turn - now)
