"""What a person sees: one line for each step, with the seconds since the command began."""

from __future__ import annotations

import sys
import time

_began = time.monotonic()


class ClusterError(Exception):
    """Something a person can act on; its message is printed without a traceback."""


def say(message: str) -> None:
    """Print a step to stderr, so that `env` and `status` keep stdout to themselves."""
    print(f"[{time.monotonic() - _began:6.1f}s] {message}", file=sys.stderr, flush=True)


def size(count: float) -> str:
    """Bytes as a person writes them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds as `3:07`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
