"""The node's first process: mounts what is private to the node, then starts, restarts and reaps its daemons.

It runs as process 1 of new mount, network, process and host-name namespaces, so when it ends, by whatever cause, the
kernel ends every process inside and takes every mount, link and firewall rule along. This file is run by itself with
`python3 -I node.py <plan>`; a running node therefore doesn't depend on the package it was started from.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICK_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
PODS_GRACE_SECONDS = 6.0
DAEMONS_GRACE_SECONDS = 4.0
LONGEST_LOG_BYTES = 50 * 1024**2
TRIM_SECONDS = 10.0


@dataclass
class Unit:
    """One daemon: how it is started, and what has become of it."""

    name: str
    argv: list[str]
    after: str
    log: str
    env: dict[str, str]
    pid: int = 0
    started: float = 0.0
    starts: int = 0
    pause: float = 0.5
    not_before: float = 0.0
    may_start: bool = False

    def start(self) -> None:
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.started = time.monotonic()
        self.starts += 1
        self.pid = os.posix_spawn(
            self.argv[0],
            self.argv,
            self.env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, self.log, append, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigdef=[signal.SIGTERM, signal.SIGPIPE],
        )

    def ended(self, how: str) -> None:
        """Plan the restart: soon at first, later and later for a daemon that keeps falling over."""
        lived = time.monotonic() - self.started
        self.pause = 0.5 if lived > STEADY_SECONDS else min(self.pause * 2, LONGEST_PAUSE_SECONDS)
        self.not_before = time.monotonic() + self.pause
        self.pid = 0
        with contextlib.suppress(OSError), Path(self.log).open("a") as log:
            log.write(f"--- {self.name} {how} after {lived:.1f} s; restart in {self.pause:.1f} s\n")


class Node:
    """The loop over all daemons."""

    def __init__(self, plan: dict[str, Any]) -> None:
        env = {"PATH": plan["path"], "HOME": "/run/cloze", "TMPDIR": "/run/cloze/tmp", "LANG": "C.UTF-8", **plan["env"]}
        self.units = [Unit(log=f"/var/log/{unit['name']}.log", env=env, **unit) for unit in plan["units"]]
        self.report = Path(plan["report"])
        self.leaving = False
        self.reported = ""
        self.next_trim = 0.0

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._leave)
        while not self.leaving:
            self._reap()
            self._start_due()
            self._write_report()
            self._trim_logs()
            time.sleep(TICK_SECONDS)
        self._stop()

    def _leave(self, *_: object) -> None:
        self.leaving = True

    def _start_due(self) -> None:
        answers: dict[str, bool] = {}
        for unit in self.units:
            if unit.pid or time.monotonic() < unit.not_before:
                continue
            # A condition is for the first start: a daemon that was up once copes with a peer's absence.
            if not unit.may_start:
                if unit.after not in answers:
                    answers[unit.after] = not unit.after or reachable(unit.after)
                unit.may_start = answers[unit.after]
            if unit.may_start:
                try:
                    unit.start()
                except OSError as error:
                    unit.ended(f"could not start: {error}")

    def _reap(self) -> None:
        """Collect ended daemons, and orphans of the container runtime, whose last parent is process 1."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                for unit in self.units:
                    if unit.pid == pid:
                        unit.ended(f"ended with {os.waitstatus_to_exitcode(status)}")

    def _write_report(self) -> None:
        states = [{"name": unit.name, "running": bool(unit.pid), "starts": unit.starts} for unit in self.units]
        text = json.dumps(states)
        # A full disk must not end the node: its first process is all that keeps it.
        with contextlib.suppress(OSError):
            if text == self.reported:
                return
            written = self.report.with_suffix(".new")
            written.write_text(text + "\n")
            written.rename(self.report)
            self.reported = text

    def _trim_logs(self) -> None:
        if time.monotonic() < self.next_trim:
            return
        self.next_trim = time.monotonic() + TRIM_SECONDS
        for unit in self.units:
            trim(unit.log, LONGEST_LOG_BYTES)

    def _stop(self) -> None:
        """Pods first, while their runtime still works; the kubelet before them, or it would restart them."""
        daemons = {unit.name: unit.pid for unit in self.units if unit.pid}
        self._end([daemons.pop("kubelet", 0)], DAEMONS_GRACE_SECONDS)
        self._end(pod_processes(), PODS_GRACE_SECONDS)
        store = daemons.pop("etcd", 0)
        self._end(list(daemons.values()), DAEMONS_GRACE_SECONDS)
        self._end([store], DAEMONS_GRACE_SECONDS)

    def _end(self, pids: list[int], grace: float) -> None:
        left = [pid for pid in pids if pid]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + grace
            while left and time.monotonic() < deadline:
                self._reap()
                left = [pid for pid in left if Path(f"/proc/{pid}").exists()]
                time.sleep(TICK_SECONDS)


def trim(log: str, longest: int) -> None:
    """Move a long log's content aside; its daemon appends to the same file, which begins again."""
    with contextlib.suppress(OSError):
        if Path(log).stat().st_size <= longest:
            return
        # A full disk can't take the copy, and needs the space all the more.
        with contextlib.suppress(OSError):
            shutil.copyfile(log, f"{log}.1")
        os.truncate(log, 0)


def pod_processes() -> list[int]:
    found = []
    for group in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            if "/kubepods" in group.read_text():
                found.append(int(group.parent.name))
    return found


def reachable(probe: str) -> bool:
    """Whether a URL answers 200, or a socket path accepts."""
    try:
        if probe.startswith("/"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(probe)
            return True
        # Only asks whether it is up; everything that matters is asked later with certificates checked.
        unverified = ssl.create_default_context()
        unverified.check_hostname = False
        unverified.verify_mode = ssl.CERT_NONE
        # All that is asked is on this machine, so no proxy of the environment has a say.
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unverified)
        )
        with direct.open(probe, timeout=1) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def inherited_overlays(mounts: str) -> list[str]:
    """Other engines' containers: a copy of their mounts held here would keep them from being deleted there."""
    rows = [line.split() for line in mounts.splitlines()]
    return [row[1] for row in rows if row[2] == "overlay" and row[1] != "/"]


def mount_private(plan: dict[str, Any]) -> None:
    """Give the node its own /run, /var/lib and /var/log; all else is this machine's file system as it is."""
    mount = plan["mount"]
    for path in inherited_overlays(Path("/proc/self/mounts").read_text()):
        subprocess.run([plan["umount"], "--lazy", path], check=False)
    # Shared among the node's pods; this machine's mounts come in, and none go out.
    subprocess.run([mount, "--make-rshared", "/"], check=True)
    subprocess.run([mount, "-t", "tmpfs", "-o", "mode=755", "node", "/run"], check=True)
    for source, target in plan["binds"]:
        Path(target).mkdir(parents=True, exist_ok=True)
        subprocess.run([mount, "--bind", source, target], check=True)
    Path("/run/cloze/tmp").mkdir(parents=True)
    for daemon_folder in plan["folders"]:
        Path(daemon_folder).mkdir(parents=True, exist_ok=True)


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    # Until its daemons run there is nothing to stop in order; without a handler, process 1 ignores the signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    socket.sethostname(plan["hostname"])
    mount_private(plan)
    # The network is laid from outside; end of file instead of a word means that the caller gave up.
    if sys.stdin.readline().strip() != "go":
        sys.exit("nobody connected the node")
    Node(plan).run()


if __name__ == "__main__":
    main()
