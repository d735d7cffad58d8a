"""SIGTERM: finish the step, save, go."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cloze_trainer.errors import Suspended


class StopSignal:
    """Hears SIGTERM and SIGINT.

    Outside training there is nothing worth saving that isn't saved already: the signal ends the work at once. Within
    `deferred` it only sets `requested`, and the training loop ends between two steps.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False
        signal.signal(signal.SIGTERM, self._hear)
        signal.signal(signal.SIGINT, self._hear)

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise Suspended("stopped by a signal before or after the training steps; it goes on from what is done")

    def ignore(self) -> None:
        """From now on: how the work ends is known, and only has to be written down."""
        self._deferred = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only take note of the signal within this block."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            raise Suspended("stopped by a signal; it goes on from what is done")
