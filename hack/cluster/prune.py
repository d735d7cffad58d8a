"""`prune`: delete what no running cluster uses, and say how much that freed."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from . import lifecycle, registry, sysctl, tools
from .console import say, size


def stale(cache: Path, *, running: Collection[str], wanted_build: str | None) -> list[Path]:
    """The folders to delete: builds that nothing uses, and the state of clusters that are down.

    With no cluster up nobody pulls from the registry either, and its images go too.
    """
    clusters = sorted(path for path in (cache / "clusters").glob("*") if path.is_dir())
    in_use = {wanted_build} | {
        record.read_text().strip() for name in running if (record := cache / "clusters" / name / "binaries").exists()
    }
    found = [build for build in sorted((cache / "tools").glob("*")) if build.name not in in_use]
    found += [cluster for cluster in clusters if cluster.name not in running]
    if not running and (cache / "registry").exists():
        found.append(cache / "registry")
    return found


def prune(cache: Path) -> None:
    running = lifecycle.any_running(cache)
    if not running:
        registry.stop(cache)
        sysctl.restore(cache / "sysctl.json")
    wanted = tools.built(cache)
    freed = 0
    for folder in stale(cache, running=running, wanted_build=wanted.name if wanted else None):
        held = occupied(folder)
        shutil.rmtree(folder)
        freed += held
        say(f"deleted {folder.relative_to(cache)}: {size(held)}")
    kept = f", kept for running clusters: {', '.join(running)}" if running else ""
    say(f"freed {size(freed)}{kept}")


def occupied(folder: Path) -> int:
    """Bytes on disk below a folder; files with several names count once."""
    seen: dict[tuple[int, int], int] = {}
    for path in (folder, *folder.rglob("*")):
        info = path.lstat()
        seen[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(seen.values())
