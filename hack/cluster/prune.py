"""`prune`: delete what no running cluster uses, and say how much that freed."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from . import lifecycle, settings, tools
from .console import say, size


def stale(cache: Path, *, running: Collection[str], wanted_builds: Collection[str], state: bool) -> list[Path]:
    """The folders to delete: all of them can be made or pulled again, unless `state` is asked for.

    Builds that nothing uses, and the pulled images of clusters that are down; with no cluster up nobody pulls from the
    registry either, and its images go too. `state` adds what clusters that are down have kept: everything.
    """
    in_use = {*wanted_builds}
    for name in running:
        in_use |= set(lifecycle.builds_of(cache / "clusters" / name))
    found = [build for build in sorted((cache / "tools").glob("*")) if build.name not in in_use]
    for name in stopped(cache, running):
        home = cache / "clusters" / name
        found += [path for path in [home if state else home / "lib" / "containerd"] if path.exists()]
    if not running and (cache / "registry").exists():
        found.append(cache / "registry")
    return found


def stopped(cache: Path, running: Collection[str]) -> list[str]:
    """The clusters that have a folder and are down."""
    folders = sorted(path for path in (cache / "clusters").glob("*") if path.is_dir())
    return [folder.name for folder in folders if folder.name not in running]


def prune(cache: Path, *, state: bool) -> None:
    running = lifecycle.any_running(cache)
    # A node that was killed has left its link, rules and groups; without its folder nobody would know of them.
    for name in stopped(cache, running):
        lifecycle.sweep(settings.leftover(cache, name))
    lifecycle.settle(cache)
    freed = 0
    for folder in stale(cache, running=running, wanted_builds=tools.present(cache).names, state=state):
        held = occupied(folder)
        shutil.rmtree(folder)
        freed += held
        say(f"deleted {folder.relative_to(cache)} ({_content(cache, folder)}): {size(held)}")
    kept = f", kept for running clusters: {', '.join(running)}" if running else ""
    say(f"freed {size(freed)}{kept}")
    if not state and (left := stopped(cache, running)):
        say(f"the state of {', '.join(left)} stays: `prune --state` or `reset` deletes it")


def occupied(folder: Path) -> int:
    """Bytes on disk below a folder; files with several names count once."""
    seen: dict[tuple[int, int], int] = {}
    for path in (folder, *folder.rglob("*")):
        info = path.lstat()
        seen[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(seen.values())


def _content(cache: Path, folder: Path) -> str:
    if folder.parent == cache / "clusters":
        return "objects, volumes, pulled images, keys, logs"
    return {"tools": "a build", "registry": "pushed images"}.get(folder.relative_to(cache).parts[0], "pulled images")
