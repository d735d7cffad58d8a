"""Log lines: one JSON object each, or a progress bar where a person watches. No text of the user ever goes in."""

import json
import sys
import time
from datetime import UTC, datetime
from typing import Any

from cloze_api.progress import Progress


def log(event: str, **fields: Any) -> None:
    """Write one event to standard error."""
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if sys.stderr.isatty():
        details = "  ".join(f"{key}={_short(value)}" for key, value in fields.items())
        line = f"\r\x1b[K{stamp[11:19]}  {event}  {details}"
    else:
        line = json.dumps({"time": stamp, "event": event, **fields}, ensure_ascii=False, default=str)
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Reporter:
    """Shows rank 0's progress: a bar on a terminal, a log line now and then elsewhere."""

    def __init__(self, every_seconds: float = 10.0) -> None:
        self._every = every_seconds
        self._last = 0.0

    def show(self, progress: Progress) -> None:
        """Show figures, at most a few times a second."""
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if now - self._last < (0.2 if terminal else self._every) and progress.step != progress.total_steps:
            return
        self._last = now
        if not terminal:
            log("progress", **progress.model_dump(exclude_none=True))
            return
        share = progress.step / progress.total_steps if progress.total_steps else 0.0
        bar = ("█" * int(share * 24)).ljust(24, "░")
        figures = [f"{progress.step}/{progress.total_steps}"]
        if progress.loss is not None:
            figures.append(f"loss {progress.loss:.3f}")
        if progress.tokens_per_second is not None:
            figures.append(f"{progress.tokens_per_second:,.0f} tokens/s")
        if progress.eta_seconds is not None:
            figures.append(f"{progress.eta_seconds // 60}:{progress.eta_seconds % 60:02d} left")
        sys.stderr.write(f"\r\x1b[K{progress.stage} {bar} {'  '.join(figures)}")
        if progress.step == progress.total_steps:
            sys.stderr.write("\n")
        sys.stderr.flush()
