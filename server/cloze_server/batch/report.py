"""How a run tells how it goes: a bar for a person at a terminal, else a log line now and then."""

import logging
import time
from collections.abc import Callable
from typing import Protocol

from tqdm import tqdm

from cloze_server.batch.journal import Progress
from cloze_server.logs import fields

_log = logging.getLogger(__name__)

_LOG_SECONDS = 10.0


class Report(Protocol):
    """Told after each row."""

    def update(self, now: Progress) -> None:
        """How far the run is."""
        ...

    def close(self) -> None:
        """The run ends."""
        ...


class Rates:
    """Speeds since this process began, which may have found a part of the work done. clock: monotonic seconds."""

    def __init__(self, first: Progress, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        """total: position at the end of the input."""
        self._first = first
        self._total = total
        self._clock = clock
        self._started = clock()

    def __call__(self, now: Progress) -> dict[str, float | int | None]:
        """Rows so far, rows and tokens in a second, errors, and seconds left."""
        seconds = max(self._clock() - self._started, 1e-9)
        moved = now.position - self._first.position
        left = seconds * (self._total - now.position) / moved if moved else None
        return {
            "rows": now.rows,
            "rows_per_second": round((now.rows - self._first.rows) / seconds, 1),
            "tokens_per_second": round((now.tokens - self._first.tokens) / seconds, 1),
            "errors": now.errors,
            "eta_seconds": None if left is None else round(left, 1),
        }


class Bar:
    """A progress bar."""

    def __init__(self, first: Progress, total: int, unit: str) -> None:
        self._rates = Rates(first, total)
        self._bar = tqdm(total=total, initial=first.position, unit=unit, unit_scale=True, dynamic_ncols=True)

    def update(self, now: Progress) -> None:
        """Move the bar, which draws itself ten times a second at most."""
        if self._bar.update(now.position - self._bar.n):
            rates = self._rates(now)
            self._bar.set_postfix_str(
                f"{now.rows:,} rows, {rates['rows_per_second']:,} rows/s, {rates['tokens_per_second']:,} tokens/s, "
                f"{now.errors:,} errors",
                refresh=False,
            )

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


class Lines:
    """Log lines. clock: monotonic seconds."""

    def __init__(self, first: Progress, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = Rates(first, total, clock)
        self._clock = clock
        self._next = clock() + _LOG_SECONDS

    def update(self, now: Progress) -> None:
        """Log when it is time."""
        if self._clock() >= self._next:
            self._next = self._clock() + _LOG_SECONDS
            _log.info("scoring", extra=fields(**self._rates(now)))

    def close(self) -> None:
        """Nothing to tidy up."""
