"""The Debian packages that a build without Docker needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .console import ImageError, say

_PROBES = {
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "ca-certificates": "update-ca-certificates",
}


def require() -> None:
    """Install what is missing, visibly; only root can."""
    missing = [package for package, program in _PROBES.items() if not _present(program)]
    if os.geteuid() != 0:
        raise ImageError(
            "building images without Docker needs root (buildah and debootstrap unpack a system): "
            "run as root, or start a Docker engine and set CLOZE_BUILDER=docker"
        )
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise ImageError(f"install {', '.join(missing)} first: only Debian's apt-get is known here")
    say(f"installing Debian packages: {' '.join(missing)} (half a minute)")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for argv in (
        ["apt-get", "update", "-q"],
        ["apt-get", "install", "-q", "-y", "--no-install-recommends", "--no-remove", *missing],
    ):
        if subprocess.run(argv, env=env, stdout=2, stdin=subprocess.DEVNULL, check=False).returncode:
            raise ImageError(f"`{' '.join(argv)}` failed, see its messages above")


def _present(program: str) -> bool:
    return shutil.which(program) is not None or Path("/usr/sbin", program).exists()
