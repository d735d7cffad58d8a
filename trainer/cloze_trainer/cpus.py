"""How many CPUs this pod may use: its affinity, and the limits of its control groups."""

import math
import os
from pathlib import Path


def available(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs, rounded up, at least 1, for all processes of the pod together.

    membership: names the process's groups. root: where their file system is mounted. Of version 2; with version 1, and
    where there are no groups, the affinity alone counts.
    """
    limits = [math.ceil(share) for share in _shares(membership, root)]
    return max(1, min([len(os.sched_getaffinity(0)), *limits]))


def _shares(membership: Path, root: Path) -> list[float]:
    """Seconds of CPU in a second that the group allows, and each group above it."""
    try:
        lines = membership.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if group is None:
        return []
    folder = root / group
    # A container sees its own group as the root.
    folders = [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]
    return [share for each in folders if (share := _share(each / "cpu.max"))]


def _share(file: Path) -> float | None:
    try:
        quota, period = file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)
