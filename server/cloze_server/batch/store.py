"""Objects that appear whole or not at all: files on this machine, or whatever fsspec reaches."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import fsspec

from cloze_server.exits import ExitCode, FatalError
from cloze_server.files import sync


class Store:
    """Where a URI leads. Methods raise OSError."""

    def __init__(self, uri: str) -> None:
        """Raises FatalError (CONFIGURATION) for a scheme that nothing here can reach."""
        try:
            self._system, self.path = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError) as error:
            scheme = uri.partition("://")[0]
            message = f"{scheme}:// can't be reached: {error} (s3:// needs the package s3fs, gs:// gcsfs)"
            raise FatalError(ExitCode.CONFIGURATION, "StoreUnsupported", message) from error
        self.uri = uri
        self._local = "file" in self._protocols()

    def beside(self, suffix: str) -> "Store":
        """The object whose name goes on like that."""
        return Store(self.uri + suffix)

    def exists(self) -> bool:
        """Whether there is an object."""
        return bool(self._system.exists(self.path))

    def open(self) -> IO[bytes]:
        """The object, to be read at any place."""
        return cast(IO[bytes], self._system.open(self.path, "rb"))

    def read(self) -> bytes:
        """The whole object."""
        return cast(bytes, self._system.cat_file(self.path))

    def state(self) -> dict[str, Any]:
        """What changes with the object: its size, and what the store tells of its content or its time."""
        self._system.invalidate_cache()
        info = self._system.info(self.path)
        if info["type"] != "file":
            raise IsADirectoryError(f"{self.uri} is no file")
        told = next((info[key] for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified") if key in info), None)
        return {"size": int(info["size"]), "modified": None if told is None else str(told)}

    def write(self, data: bytes) -> None:
        """Make the object hold this."""
        with self.writing() as stream:
            stream.write(data)

    @contextlib.contextmanager
    def writing(self) -> Iterator[IO[bytes]]:
        """A stream whose content is the object's once the block is left without an error."""
        if not self._local:
            # An object store shows what was uploaded only when all of it is there.
            stream = self._system.open(self.path, "wb", autocommit=False)
            try:
                yield stream
                stream.close()
            except BaseException:
                stream.discard()
                raise
            stream.commit()
            return
        target = Path(self.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(target.name + ".tmp")
        with staged.open("wb") as local:
            yield local
            local.flush()
            os.fsync(local.fileno())
        staged.replace(target)
        sync(target.parent)

    def remove(self, *, folder: bool = False) -> None:
        """Take the object away, or a folder with all that is in it; it may be gone already."""
        with contextlib.suppress(FileNotFoundError):
            self._system.rm(self.path, recursive=folder)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only process on this machine that writes here. Raises FatalError (CONFIGURATION).

        Object stores have no locks: there it is up to whoever starts the runs.
        """
        if not self._local:
            yield
            return
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"another process is writing into {Path(self.path).parent}: let it finish"
                raise FatalError(ExitCode.CONFIGURATION, "OutputBusy", message) from None
            yield

    def _protocols(self) -> tuple[str, ...]:
        protocol = self._system.protocol
        return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def read_json(store: Store) -> dict[str, Any] | None:
    """The object as JSON; None when there is none."""
    try:
        return cast(dict[str, Any], json.loads(store.read()))
    except FileNotFoundError:
        return None
