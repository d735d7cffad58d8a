"""What a person sees: one line for each step on stderr, so that references keep stdout to themselves."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_began = time.monotonic()
_HEARTBEAT_SECONDS = 20
_TAIL_LINES = 40


class ImageError(Exception):
    """Something a person can act on; its message is printed without a traceback."""


def say(message: str) -> None:
    print(f"[{time.monotonic() - _began:6.1f}s] {message}", file=sys.stderr, flush=True)


def size(count: float) -> str:
    """Bytes as a person writes them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def output(*argv: str) -> str:
    """Run a command to its end and return what it printed; a failure carries its messages."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"`{' '.join(argv)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def succeeds(*argv: str) -> bool:
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def work(doing: str, argv: Sequence[str], log: Path) -> float:
    """Run a long command with its output in `log`, say now and then where it is, and return its seconds."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("w") as out:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        try:
            while True:
                try:
                    status = child.wait(_HEARTBEAT_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    say(f"  {doing}: {time.monotonic() - began:.0f} s, {_last_line(log)}")
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    if status:
        print("\n".join(_lines(log)[-_TAIL_LINES:]), file=sys.stderr)
        raise ImageError(f"{doing} failed; all of its output is in {log}")
    return time.monotonic() - began


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()


def _last_line(log: Path) -> str:
    lines = [line for line in _lines(log) if line.strip()]
    return lines[-1].strip()[:100] if lines else "no output yet"
