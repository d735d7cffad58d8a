"""The cluster's control groups: its own daemons in `<root>/node`, its pods in `<root>/kubepods`.

A machine has either one cgroup v2 tree, or one v1 tree per controller; both are served.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from .console import ClusterError

_FOR_DAEMONS = frozenset({"memory", "pids", "cpu", "cpuacct"})


def create(name: str) -> list[Path]:
    """Make the groups and return the `cgroup.procs` files that a daemon joins."""
    joins = []
    for tree, controllers in _trees():
        root = tree / name
        node = root / "node"
        if controllers is None:
            _delegate(tree)
            root.mkdir(exist_ok=True)
            _delegate(root)
            node.mkdir(exist_ok=True)
            joins.append(node / "cgroup.procs")
            continue
        root.mkdir(exist_ok=True)
        if "cpuset" in controllers:
            # A v1 cpuset group starts empty, and nothing may run in it until it is filled.
            for key in ("cpuset.cpus", "cpuset.mems"):
                (root / key).write_text((tree / key).read_text())
        if controllers & _FOR_DAEMONS:
            node.mkdir(exist_ok=True)
            joins.append(node / "cgroup.procs")
    return joins


def remove(name: str) -> None:
    """Remove the groups; their processes have ended, but the kernel may take a moment to notice."""
    deadline = time.monotonic() + 10
    while left := [group for tree in _mounted() for group in _deepest_first(tree / name)]:
        for group in left:
            with contextlib.suppress(OSError):
                group.rmdir()
        if time.monotonic() > deadline:
            raise ClusterError(f"control group {left[0]} still holds processes: see its cgroup.procs")
        time.sleep(0.05)


def exists(name: str) -> bool:
    return any((tree / name).is_dir() for tree in _mounted())


def occupied(name: str, patience: float = 10) -> bool:
    """Whether processes are in the groups, and still are after `patience` seconds: the kernel ends a node in steps."""
    deadline = time.monotonic() + patience
    while any(_processes(group) for tree in _mounted() for group in _deepest_first(tree / name)):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.05)
    return False


def memory(name: str) -> int | None:
    """Bytes that the cluster's own daemons use, without page cache where the kernel tells them apart."""
    for tree, controllers in _trees():
        if controllers is None or "memory" in controllers:
            with contextlib.suppress(FileNotFoundError):
                stat = dict(line.split() for line in (tree / name / "node/memory.stat").read_text().splitlines())
                return int(stat.get("anon") or stat.get("total_rss") or 0)
    return None


def _trees() -> list[tuple[Path, frozenset[str] | None]]:
    """Each tree that the kubelet wants the group in, with its options; None stands for cgroup v2's single tree."""
    v1 = [(path, options) for path, kind, options in _mounts() if kind == "cgroup"]
    if not v1:
        return [(path, None) for path, kind, _ in _mounts() if kind == "cgroup2"]
    return [(path, frozenset(options)) for path, options in v1]


def _mounted() -> list[Path]:
    # runc also makes groups in the v2 tree that a v1 machine may have beside.
    return [path for path, _, _ in _mounts()]


def _mounts() -> list[tuple[Path, str, list[str]]]:
    rows = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return [(Path(row[1]), row[2], row[3].split(",")) for row in rows if row[2] in {"cgroup", "cgroup2"}]


def _processes(group: Path) -> str:
    with contextlib.suppress(OSError):  # the group may go while we look
        return (group / "cgroup.procs").read_text()
    return ""


def _delegate(group: Path) -> None:
    available = (group / "cgroup.controllers").read_text().split()
    for controller in available:
        with contextlib.suppress(OSError):
            (group / "cgroup.subtree_control").write_text(f"+{controller}")


def _deepest_first(group: Path) -> list[Path]:
    # A walk passes over groups that go meanwhile, and has nothing where there is no group.
    return [Path(folder) for folder, _, _ in os.walk(group, topdown=False)]
