"""How many CPUs and how much memory this pod may use: its affinity, and the limits of its control groups.

Control groups of version 2; with version 1, and where there are no groups, there are no limits to be seen.
"""

import math
import os
from pathlib import Path

_MEMBERSHIP, _ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cpus(membership: Path = _MEMBERSHIP, root: Path = _ROOT) -> int:
    """CPUs, rounded up, at least 1, for all processes of the pod together.

    membership: names the process's groups. root: where their file system is mounted.
    """
    shares = [share for each in _groups(membership, root) if (share := _share(each / "cpu.max"))]
    return max(1, min([len(os.sched_getaffinity(0)), *(math.ceil(share) for share in shares)]))


def memory(membership: Path = _MEMBERSHIP, root: Path = _ROOT) -> int | None:
    """Bytes for all processes of the pod together; None without a limit."""
    found = [_number(each / "memory.max") for each in _groups(membership, root)]
    return min((limit for limit in found if limit is not None), default=None)


def _groups(membership: Path, root: Path) -> list[Path]:
    """The process's group and those above it."""
    try:
        lines = membership.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if group is None:
        return []
    folder = root / group
    # A container sees its own group as the root.
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _share(file: Path) -> float | None:
    """Seconds of CPU in a second that a group allows."""
    try:
        quota, period = file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
