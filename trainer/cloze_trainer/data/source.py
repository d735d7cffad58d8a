"""Reads the files that a source URI names."""

import glob
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cloze_api.manifest import file_sha256
from cloze_api.source import SourceKind, parse_source
from cloze_trainer.data.lines import compression
from cloze_trainer.data.remote import credentials, fetch, hidden
from cloze_trainer.errors import InputError


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The files behind one URI, in order of their names.

    digest: SHA-256 over the files' own digests and how their names say that they are compressed, as hex.
    stamps: size and time of change of each file, of before its digest was taken. names: path of each in the folder that
    the URI names.
    """

    uri: str
    paths: tuple[Path, ...]
    digest: str
    stamps: tuple[tuple[int, int], ...] = ()
    names: tuple[str, ...] = ()

    def check_unchanged(self) -> None:
        """Raise InputError when a file isn't the one whose digest was taken: what was read of it may be anything."""
        for path, stamp in zip(self.paths, self.stamps, strict=True):
            try:
                same = _stamp(path) == stamp
            except FileNotFoundError:
                same = False
            if not same:
                raise InputError(
                    "SourceChanged", f"{path} changed while it was read: create a new job once nothing writes to it"
                )


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def locate(
    uri: str,
    *,
    corpus_root: Path,
    downloads: Path,
    revision: str | None = None,
    access: Mapping[str, str] | None = None,
    wanted: Callable[[str], bool] = lambda _: True,
    before: SourceFiles | None = None,
) -> SourceFiles:
    """Find a source's files; what isn't on this machine is fetched into `downloads` first.

    access: as `remote.credentials` has it; the environment's when absent. wanted: which files of a folder, by their
    path in it. before: what an earlier look found; no file is read again where all have the size and the time of change
    that they had.
    Raises InputError when nothing matches, TrainerError (retried) when a server doesn't answer.
    """
    source = parse_source(uri)
    if source.remote:
        found = fetch(uri, credentials(None) if access is None else access, downloads, revision, wanted)
    else:
        base = Path("/") if source.kind is SourceKind.FILE else corpus_root / source.mount
        relative = PurePosixPath(source.path.lstrip("/"))
        if ".." in relative.parts:
            raise InputError("SourcePathInvalid", f"{uri} leaves its volume: remove '..' from the path")
        # Only `*` is a wildcard in a source; brackets and question marks are ordinary characters.
        pattern = f"{glob.escape(str(base).rstrip('/'))}/{glob.escape(str(relative)).replace('[*]', '*')}"
        paths = sorted(Path(match) for match in glob.glob(pattern, recursive=True) if Path(match).is_file())  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = {path: path.name for path in paths}
        if (folder := base / relative).is_dir():
            below = ((path, path.relative_to(folder).as_posix()) for path in folder.rglob("*"))
            found = dict(
                sorted((path, name) for path, name in below if not hidden(name) and wanted(name) and path.is_file())
            )
        if not found:
            remedy = "check the pattern" if "*" in uri else "check the path"
            raise InputError("SourceNotFound", f"{uri} names no file ({base} was searched): {remedy}")
    stamps = tuple(_stamp(path) for path in found)
    if before is not None and (before.paths, before.stamps) == (tuple(found), stamps):
        return before
    digest = hashlib.sha256()
    for path in found:
        digest.update(bytes.fromhex(file_sha256(path)))
        digest.update(compression(path).encode())
    return SourceFiles(uri, tuple(found), digest.hexdigest(), stamps, tuple(found.values()))
