"""Reads the files that a source URI names."""

import glob
import hashlib
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cloze_api.manifest import file_sha256
from cloze_api.pretrain import Corpus, CorpusFormat
from cloze_api.progress import ExitCode
from cloze_api.source import SourceKind, parse_source
from cloze_trainer.errors import InputError, TrainerError

_DOWNLOAD_TIMEOUT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The files behind one URI, in order of their names.

    digest: SHA-256 over the files' own digests, as hex.
    """

    uri: str
    paths: tuple[Path, ...]
    digest: str


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
        pattern = f"{glob.escape(str(base))}/{relative}"
        # Only `*` is a wildcard in a source; brackets and question marks are ordinary characters.
        pattern = pattern.replace("[", "[[]") if base == Path("/") else pattern
        pattern = pattern.replace("?", "[?]")
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
    try:
        # The schema admits http and https alone.
        with (
            urllib.request.urlopen(uri, timeout=_DOWNLOAD_TIMEOUT_SECONDS) as reply,  # noqa: S310
            partial.open("wb") as stream,
        ):
            shutil.copyfileobj(reply, stream)
    except urllib.error.HTTPError as error:
        if error.code in (400, 401, 403, 404, 410):
            raise InputError("SourceNotFound", f"{uri} answered {error.code}: check the address") from error
        raise TrainerError("SourceUnavailable", f"{uri} answered {error.code}", ExitCode.INTERNAL) from error
    except (urllib.error.URLError, TimeoutError) as error:
        raise TrainerError("SourceUnavailable", f"{uri} can't be reached: {error}", ExitCode.INTERNAL) from error
    partial.replace(target)
    return target


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
