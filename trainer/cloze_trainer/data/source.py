"""Reads the files that a source URI names."""

import base64
import glob
import hashlib
import http.client
import json
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cloze_api.manifest import file_sha256
from cloze_api.pretrain import Corpus, CorpusFormat
from cloze_api.progress import ExitCode
from cloze_api.source import SourceKind, parse_source
from cloze_trainer.errors import STORAGE_ERRORS, InputError, TrainerError
from cloze_trainer.files import sync_folder

_DOWNLOAD_TIMEOUT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The files behind one URI, in order of their names.

    digest: SHA-256 over the files' own digests, as hex.
    """

    uri: str
    paths: tuple[Path, ...]
    digest: str


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
        pattern = f"{glob.escape(str(base))}/{glob.escape(str(relative)).replace('[*]', '*')}"
        paths = sorted(Path(match) for match in glob.glob(pattern, recursive=True) if Path(match).is_file())  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not paths:
            remedy = "check the pattern" if "*" in uri else "check the path"
            raise InputError("SourceNotFound", f"{uri} names no file ({base} was searched): {remedy}")
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(file_sha256(path)))
    return SourceFiles(uri, tuple(paths), digest.hexdigest())


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


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, without their ends. Raises InputError with the line for other bytes."""
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if b"\x00" in raw:
                raise InputError("SourceBinary", f"{path}:{number} holds a zero byte: the file isn't text")
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    "SourceNotUTF8", f"{path}:{number} isn't UTF-8 at byte {error.start + 1}: convert the file"
                ) from error
            yield number, text.rstrip("\r\n")


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered objects of a JSON-lines file; blank lines are passed over. Raises InputError with the line."""
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                "SourceNotJSON", f"{path}:{number} isn't JSON at column {error.colno}: one object a line is expected"
            ) from error
        if not isinstance(value, dict):
            raise InputError("SourceNotJSON", f"{path}:{number} isn't a JSON object")
        yield number, value


def documents(corpus: Corpus, paths: Sequence[Path]) -> Iterator[str]:
    """Documents of one corpus source, file after file. Raises InputError with file and line."""
    for path in paths:
        if corpus.format is CorpusFormat.JSONL:
            for number, row in objects(path):
                text = row.get(corpus.text_field)
                if not isinstance(text, str):
                    raise InputError(
                        "TextFieldMissing",
                        f"{path}:{number} has no text in field {corpus.text_field!r}: set corpus.textField "
                        "to the field that holds it",
                    )
                yield text
        elif corpus.format is CorpusFormat.LINES:
            yield from (line for _, line in lines(path) if line.strip())
        else:
            paragraph: list[str] = []
            for _, line in lines(path):
                if line.strip():
                    paragraph.append(line)
                elif paragraph:
                    yield "\n".join(paragraph)
                    paragraph = []
            if paragraph:
                yield "\n".join(paragraph)
