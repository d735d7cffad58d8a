"""Reads the files that a source URI names."""

import base64
import glob
import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cloze_api.manifest import file_sha256
from cloze_api.progress import ExitCode
from cloze_api.source import SourceKind, parse_source
from cloze_trainer.data.lines import compression
from cloze_trainer.errors import STORAGE_ERRORS, InputError, TrainerError
from cloze_trainer.files import sync_folder

_DOWNLOAD_TIMEOUT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The files behind one URI, in order of their names.

    digest: SHA-256 over the files' own digests and how their names say that they are compressed, as hex.
    stamps: size and time of change of each file, of before its digest was taken.
    """

    uri: str
    paths: tuple[Path, ...]
    digest: str
    stamps: tuple[tuple[int, int], ...] = ()

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


def redacted(uri: str) -> str:
    """The URI without what may be secret: a web address' user, password, query and fragment."""
    if parse_source(uri).kind is not SourceKind.HTTP:
        return uri
    parts = urllib.parse.urlsplit(uri)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def locate(uri: str, *, corpus_root: Path, downloads: Path) -> SourceFiles:
    """Find a source's files; `http` sources are fetched into `downloads` first.

    Raises InputError when nothing matches, TrainerError (retried) when a server doesn't answer.
    """
    source = parse_source(uri)
    if source.kind is SourceKind.HTTP:
        paths = [_download(uri, downloads)]
    else:
        base = Path("/") if source.kind is SourceKind.FILE else corpus_root / source.mount
        relative = PurePosixPath(source.path.lstrip("/"))
        if ".." in relative.parts:
            raise InputError("SourcePathInvalid", f"{uri} leaves its volume: remove '..' from the path")
        # Only `*` is a wildcard in a source; brackets and question marks are ordinary characters.
        pattern = f"{glob.escape(str(base).rstrip('/'))}/{glob.escape(str(relative)).replace('[*]', '*')}"
        paths = sorted(Path(match) for match in glob.glob(pattern, recursive=True) if Path(match).is_file())  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not paths:
            remedy = "check the pattern" if "*" in uri else "check the path"
            raise InputError("SourceNotFound", f"{uri} names no file ({base} was searched): {remedy}")
    stamps = tuple(_stamp(path) for path in paths)
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(file_sha256(path)))
        digest.update(compression(path).encode())
    return SourceFiles(uri, tuple(paths), digest.hexdigest(), stamps)


def _download(uri: str, downloads: Path) -> Path:
    downloads.mkdir(parents=True, exist_ok=True)
    target = downloads / hashlib.sha256(uri.encode()).hexdigest()
    if target.is_file():
        return target
    partial = target.with_suffix(".partial")
    shown = redacted(uri)

    def unavailable(why: str) -> TrainerError:
        return TrainerError("SourceUnavailable", f"{shown} {why}: check the server and start again", ExitCode.INTERNAL)

    try:
        # The schema admits http and https alone.
        with (
            urllib.request.urlopen(_request(uri), timeout=_DOWNLOAD_TIMEOUT_SECONDS) as reply,  # noqa: S310
            partial.open("wb") as stream,
        ):
            shutil.copyfileobj(reply, stream)
            stream.flush()
            os.fsync(stream.fileno())
            announced, received = reply.headers.get("Content-Length"), stream.tell()
    except urllib.error.HTTPError as error:
        if error.code in (400, 401, 403, 404, 410):
            raise InputError("SourceNotFound", f"{shown} answered {error.code}: check the address") from error
        raise unavailable(f"answered {error.code}") from error
    except http.client.InvalidURL as error:
        raise InputError("SourceInvalid", f"{shown} is no address: write blanks as %20") from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
            raise
        reason = getattr(error, "reason", error)
        raise unavailable(f"can't be fetched ({type(reason).__name__})") from error
    # A connection that breaks looks like the end of the body.
    if announced is not None and int(announced) != received:
        raise unavailable(f"ended after {received} of {announced} bytes")
    partial.replace(target)
    sync_folder(downloads)
    return target


def _request(uri: str) -> urllib.request.Request:
    """The request for an address; a user and a password in it become basic authentication (RFC 7617)."""
    parts = urllib.parse.urlsplit(uri)
    userinfo, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=host)))  # noqa: S310
    if at:
        credentials = base64.b64encode(urllib.parse.unquote(userinfo).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {credentials}")
    return request
