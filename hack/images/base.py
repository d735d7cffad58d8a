"""The base image where no registry of images is in reach: Debian's minimal system, unpacked by debootstrap."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path

from .console import ImageError, say, work

SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "ca-certificates")
# Manuals and translations, which no pod reads (copyright files stay), and devices, which only root could unpack.
_EMPTIED = (
    "dev",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
)
_RECIPE = f"{SUITE} {PACKAGES} {_EMPTIED}"


def key() -> str:
    """Which base a build stands on, as far as content goes: Debian's point releases share one key."""
    return f"{SUITE}-{hashlib.sha256(_RECIPE.encode()).hexdigest()[:12]}"


def unpack(folder: Path, log: Path) -> None:
    """Fill `folder` with the minimal system."""
    # python3-venv recommends nothing that compiles, and minbase has no compiler either.
    seconds = work(
        "unpacking the base image",
        ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(folder)],
        log,
    )
    for name in _EMPTIED:
        _empty(folder / name)
    # debootstrap copies what this machine resolves names with.
    (folder / "etc/resolv.conf").write_text("")
    (folder / "etc/hostname").unlink(missing_ok=True)
    documents = folder / "usr/share/doc"
    for path in sorted(documents.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        elif path.name != "copyright":
            path.unlink()
    if not (folder / "usr/bin/python3").exists():
        raise ImageError(f"debootstrap left no python3 in the base image, see {log}")
    say(f"  the base image took {seconds:.0f} s")


def _empty(folder: Path) -> None:
    """Delete what is in a folder and keep the folder, which programs expect."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
