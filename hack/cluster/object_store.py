"""An S3 server of its own for tests: versitygw, whose objects are files of a folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from . import golang

PACKAGE, VERSION = "github.com/versity/versitygw/cmd/versitygw", "v1.8.0"


def program(cache: Path) -> Path:
    """The program, built once."""
    folder = cache / "tools" / f"versitygw-{VERSION}"
    if not (folder / "versitygw").exists():
        go = golang.find(cache) or golang.fetch(cache)
        environment = {**os.environ, "GOBIN": str(folder), "CGO_ENABLED": "0"}
        subprocess.run([str(go), "install", "-trimpath", f"{PACKAGE}@{VERSION}"], env=environment, cwd="/", check=True)
    return folder / "versitygw"


def command(program: Path, listen: str, home: Path) -> list[str]:
    """The program's command line; what it holds is below `home`, also for the one that is started there next."""
    for name in ("objects", "metadata"):
        (home / name).mkdir(parents=True, exist_ok=True)
    # Not every file system has extended attributes.
    return [str(program), "--port", listen, "posix", "--sidecar", str(home / "metadata"), str(home / "objects")]


def environment(key: str, password: str) -> dict[str, str]:
    """What it is started with: its only account."""
    return {**os.environ, "ROOT_ACCESS_KEY": key, "ROOT_SECRET_KEY": password}
