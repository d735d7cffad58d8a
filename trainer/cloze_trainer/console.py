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
        self._stage = ""

    def show(self, progress: Progress) -> None:
        """Show figures, at most a few times a second; what begins and what ends the training at once."""
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        ended = 0 < progress.step == progress.total_steps
        if now - self._last < (0.2 if terminal else self._every) and not ended and progress.stage == self._stage:
            return
        self._last, self._stage = now, progress.stage
        if not terminal:
            log("progress", **progress.model_dump(exclude_none=True, exclude={"figures"}))
            return
        sys.stderr.write(f"\r\x1b[K{progress.stage} {_bar(progress)} {'  '.join(_figures(progress))}")
        if ended:
            sys.stderr.write("\n")
        sys.stderr.flush()


def _bar(progress: Progress) -> str:
    """How much is done of the training, or of a pass over the data."""
    done, total = progress.step, progress.total_steps
    if progress.doing is not None:
        done, total = progress.done_bytes or 0, progress.total_bytes or 0
    share = done / total if total else 0.0
    return ("█" * int(share * 24)).ljust(24, "░")


def _figures(progress: Progress) -> list[str]:
    """The same in numbers."""
    if progress.doing is not None:
        documents = [] if progress.documents is None else [f"{progress.documents:,} documents"]
        done, total = progress.done_bytes, progress.total_bytes
        size = [] if done is None or total is None else [f"{done / 1e6:,.1f}/{total / 1e6:,.1f} MB"]
        return [progress.doing, *size, *documents]
    figures = [f"{progress.step}/{progress.total_steps}"] if progress.total_steps else []
    if progress.loss is not None:
        figures.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_second is not None:
        figures.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.eta_seconds is not None:
        figures.append(f"{progress.eta_seconds // 60}:{progress.eta_seconds % 60:02d} left")
    return figures
