"""The tag of an image is a digest of what goes into it: equal content has equal tags, on every machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .catalog import Image

INSTALLER = "hack/images/install.py"
# Read by a build, but of no weight: the whole project file, and the tool that installs.
UNCOUNTED = ("pyproject.toml", "requirements/uv.txt")


def tag(image: Image, root: Path, base: str) -> str:
    """`<version>-<digest>` of the image that a build in `root` on top of `base` gives."""
    project = project_table(root)
    digest = hashlib.sha256()
    # Of the project file only this reaches the image; a changed lint rule must not rebuild anything.
    facts = {
        "base": base,
        "target": image.target,
        "version": project["version"],
        "scripts": {name: project["scripts"][name] for name in image.scripts},
    }
    _add(digest, "facts", json.dumps(facts, sort_keys=True).encode())
    for path in sources(image, root):
        _add(digest, path.relative_to(root).as_posix(), path.read_bytes())
    return f"{project['version']}-{digest.hexdigest()[:12]}"


def sources(image: Image, root: Path) -> Iterator[Path]:
    """The files that the image is built from, in one order everywhere."""
    yield root / image.dockerfile
    yield root / image.lock
    if not image.packages:
        return
    yield root / INSTALLER
    for package in image.packages:
        folder = root / package
        if not folder.is_dir():
            raise FileNotFoundError(f"{image.name} is made of {package}, which is not in {root}")
        yield from sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def snapshot(image: Image, root: Path, folder: Path) -> None:
    """Copy what the image is built from, so that an edit during the build can't part the tag from the content."""
    for path in (*sources(image, root), *(root / name for name in UNCOUNTED)):
        copy = folder / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        # With its time, which the builders' caches of layers look at.
        shutil.copy2(path, copy)


def project_table(root: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return table


def _add(digest: hashlib._Hash, name: str, content: bytes) -> None:
    # Lengths keep two neighbours from passing bytes to each other unseen.
    digest.update(f"{name}\0{len(content)}\0".encode())
    digest.update(content)
