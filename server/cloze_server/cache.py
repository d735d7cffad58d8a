"""Verified artifacts on disk, one folder for each digest.

`<root>/sha256-<hex>/` is an artifact; it appears by a rename, whole or not at all. `<root>/versions/<name>/<version>`
holds the digest that the registry last gave for a version, for starts without a digest while MLflow is down.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloze_server.reference import RegisteredVersion


class Cache:
    """A folder of artifacts. Several servers may share it. Methods raise OSError."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, digest: str) -> Path:
        """Where the artifact with this digest is or would be."""
        return self._root / digest.replace(":", "-")

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder on the same file system, gone afterwards unless it was published."""
        self._root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".staging-", dir=self._root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, digest: str) -> Path:
        """Make a staged, verified artifact durable and visible under its digest."""
        for path in sorted(staged.rglob("*"), reverse=True):
            _sync(path)
        _sync(staged)
        target = self.folder(digest)
        try:
            staged.rename(target)
        except OSError:
            # Another server was first; equal digests are equal artifacts.
            if not target.is_dir():
                raise
        _sync(self._root)
        return target

    def discard(self, digest: str) -> None:
        """Remove an artifact that turned out to be damaged; out of sight first."""
        with self.staging() as grave:
            self.folder(digest).rename(grave / "damaged")

    def remember(self, version: RegisteredVersion, digest: str) -> None:
        """Note which digest the registry gave for a version."""
        path = self._index(version)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.staging() as folder:
            note = folder / "digest"
            note.write_text(digest + "\n", encoding="ascii")
            _sync(note)
            note.replace(path)

    def recall(self, version: RegisteredVersion) -> str | None:
        """The digest noted for a version."""
        try:
            return self._index(version).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None

    def _index(self, version: RegisteredVersion) -> Path:
        return self._root / "versions" / version.name / version.version


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
