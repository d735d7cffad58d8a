"""Verified artifacts on disk, one folder for each digest.

`<root>/sha256-<hex>/` is an artifact; it appears by a rename, whole or not at all. `<root>/versions/<name>/<version>`
holds the digest that the registry last gave for a version, for starts without a digest while MLflow is down. Several
servers may share a root: who writes holds `<root>/.lock`, so that one downloads and the others find what it got.
"""

import errno
import fcntl
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloze_server.files import sync
from cloze_server.reference import RegisteredVersion

_log = logging.getLogger(__name__)

_STAGING = ".staging-"
_LOCK = ".lock"
_POLL_SECONDS = 0.2
# A file system without locks, as some that are mounted from object stores.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class StoppedError(Exception):
    """The process is asked to end while it waits for the registry or for another server."""


class Cache:
    """A folder of artifacts. Methods raise OSError."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, digest: str) -> Path:
        """Where the artifact with this digest is or would be."""
        return self._root / digest.replace(":", "-")

    @contextmanager
    def writing(self, stop: threading.Event) -> Iterator[None]:
        """Be the only one that writes; what writers that died have left is swept away.

        Raises StoppedError when `stop` is set while another one writes.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / _LOCK).open("ab") as lock:
            waiting = False
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not waiting:
                        _log.info("another server writes to the model cache: waiting for it")
                        waiting = True
                    if stop.wait(_POLL_SECONDS):
                        raise StoppedError from None
                except OSError as error:
                    if error.errno not in _NO_LOCKS:
                        raise
                    # Then others may write too: nothing is swept, and who publishes second finds it done.
                    break
                else:
                    for left in self._root.glob(_STAGING + "*"):
                        shutil.rmtree(left, ignore_errors=True)
                    break
            yield

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder on the same file system, gone afterwards unless it was published."""
        folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self._root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, digest: str) -> Path:
        """Make a staged, verified artifact durable and visible under its digest, to servers of other users too."""
        for path in [*sorted(staged.rglob("*"), reverse=True), staged]:
            path.chmod(0o755 if path.is_dir() else 0o644)
            sync(path)
        target = self.folder(digest)
        try:
            staged.rename(target)
        except OSError:
            # Another server was first; equal digests are equal artifacts.
            if not target.is_dir():
                raise
        sync(self._root)
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
            sync(note)
            note.replace(path)

    def recall(self, version: RegisteredVersion) -> str | None:
        """The digest noted for a version."""
        try:
            return self._index(version).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None

    def _index(self, version: RegisteredVersion) -> Path:
        return self._root / "versions" / version.name / version.version
