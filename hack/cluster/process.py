"""Which processes are ours: a pid alone is reused, a pid with its start time and boot is not."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from . import state
from .console import ClusterError, say


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, told apart from every other that ever had its pid."""

    pid: int
    started: int
    boot: str

    def alive(self) -> bool:
        return identify(self.pid) == self


def identify(pid: int) -> Identity | None:
    """Who has this pid now; None when nobody, or only a zombie, has it."""
    try:
        # The command's name is in parentheses and may hold anything, so fields count from its end.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in "ZX":
        return None
    return Identity(pid, int(fields[19]), boot())


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def ancestors(pid: int) -> list[int]:
    """The process that started this one, the one that started that, and so on."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while pid > 1:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            found.append(pid)
    return found


def remember(path: Path, identity: Identity) -> None:
    state.write(path, json.dumps(asdict(identity)) + "\n")


def recorded(path: Path) -> Identity | None:
    """The recorded process, whether it runs or not; a record that can't be read names nobody."""
    try:
        found = state.read(path)
        return Identity(**found) if found is not None else None
    except (ValueError, TypeError):
        return None


def recall(path: Path) -> Identity | None:
    """The recorded process if it still runs, else None."""
    identity = recorded(path)
    return identity if identity and identity.alive() else None


def terminate(identity: Identity, grace: float) -> bool:
    """Ask a process to leave, and insist after `grace` seconds; whether it left when asked."""
    _signal(identity, signal.SIGTERM)
    if gone(identity, grace):
        return True
    _signal(identity, signal.SIGKILL)
    if not gone(identity, 10):
        raise ClusterError(f"process {identity.pid} did not end after SIGKILL; is its disk stuck?")
    return False


def gone(identity: Identity, within: float) -> bool:
    deadline = time.monotonic() + within
    while identity.alive():
        if time.monotonic() > deadline:
            return False
        # A daemon may still be our own child, and a zombie is only gone for others once it is reaped.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(identity.pid, os.WNOHANG)
        time.sleep(0.05)
    return True


def run(*argv: str, stdin: str | None = None) -> str:
    """Run a command to its end and return its output; a failure carries what it printed."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`{' '.join(argv)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold the lock for commands that change something; a second one waits and says so."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another cluster command is running, waiting for it")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _signal(identity: Identity, number: signal.Signals) -> None:
    if identity.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(identity.pid, number)


def boot() -> str:
    """Differs after every start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
