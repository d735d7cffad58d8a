"""Reads the files that a source URI names."""

import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cloze_api.manifest import file_sha256
from cloze_api.source import Source, SourceKind, parse_source
from cloze_trainer.data.lines import COMPRESSIONS, compression
from cloze_trainer.data.remote import credentials, fetch, hidden
from cloze_trainer.errors import InputError


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The files behind one URI, in order of their names.

    digest: SHA-256 over the files' own digests and how their names say that they are compressed, as hex.
    stamps: size and time of change of each file, of before its digest was taken. names: path of each in the folder that
    the URI names. contents: SHA-256 of each file, keyed by its own URI without secrets.
    """

    uri: str
    paths: tuple[Path, ...]
    digest: str
    stamps: tuple[tuple[int, int], ...] = ()
    names: tuple[str, ...] = ()
    contents: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> str:
        """SHA-256 of the file that the URI names; `digest` where it names several."""
        return next(iter(self.contents.values())) if len(self.contents) == 1 else self.digest

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


def digest_of(files: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over files' digests and how they are compressed: see `compression`."""
    digest = hashlib.sha256()
    for content, packing in files:
        digest.update(bytes.fromhex(content))
        digest.update(packing.encode())
    return digest.hexdigest()


def former(content: str) -> frozenset[str]:
    """What was recorded of a single file with this SHA-256 before it was just that, however it is compressed."""
    return frozenset(digest_of([(content, packing)]) for packing in ("", *COMPRESSIONS))


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
        root = "" if source.kind is SourceKind.HTTP else f"{source.kind}://"
    else:
        base = Path("/") if source.kind is SourceKind.FILE else corpus_root / source.mount
        root = "file:///" if source.kind is SourceKind.FILE else f"{source.kind}://{source.container}/"
        relative = PurePosixPath(source.path.lstrip("/"))
        if ".." in relative.parts:
            raise InputError("SourcePathInvalid", f"{uri} leaves its volume: remove '..' from the path")
        # Only `*` is a wildcard in a source; brackets and question marks are ordinary characters.
        pattern = f"{glob.escape(str(base).rstrip('/'))}/{glob.escape(str(relative)).replace('[*]', '*')}"
        paths = sorted(Path(match) for match in glob.glob(pattern, recursive=True) if Path(match).is_file())  # noqa: PTH207 - Path.glob takes no absolute pattern
        if (folder := base / relative).is_dir():
            below = ((path, path.relative_to(folder).as_posix()) for path in folder.rglob("*"))
            paths = sorted(path for path, name in below if not hidden(name) and wanted(name) and path.is_file())
        found = {path: path.relative_to(base).as_posix() for path in paths}
        if not found:
            remedy = "check the pattern" if "*" in uri else "check the path"
            raise InputError("SourceNotFound", f"{uri} names no file ({base} was searched): {remedy}")
    stamps = tuple(_stamp(path) for path in found)
    if before is not None and (before.paths, before.stamps) == (tuple(found), stamps):
        return before
    contents = [file_sha256(path) for path in found]
    return SourceFiles(
        uri,
        tuple(found),
        digest_of(zip(contents, map(compression, found), strict=True)),
        stamps,
        names=tuple(_inner(source, place) for place in found.values()),
        contents={
            # Names of files may be any bytes.
            os.fsencode(root + place).decode("utf-8", "backslashreplace"): content
            for place, content in zip(found.values(), contents, strict=True)
        },
    )


def _inner(source: Source, place: str) -> str:
    """A file's path in the folder that the source names; its name where that is the file's. place: as in a Source."""
    parts = PurePosixPath(place).parts
    return "/".join(parts[len(PurePosixPath(source.path.lstrip("/")).parts) :]) or parts[-1]
