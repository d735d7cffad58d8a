"""Fetches what other machines hold into a folder of the run's, by fsspec's file systems."""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from cloze_api.progress import ExitCode
from cloze_api.source import Source, SourceKind, parse_source
from cloze_trainer.data.lines import compression
from cloze_trainer.errors import STORAGE_ERRORS, InputError, TrainerError
from cloze_trainer.files import sync_folder, write_json

_TIMEOUT_SECONDS = 60
_CHUNK = 8 << 20
_LISTING = "files.json"
# Begins the path of a repository at a hub that isn't a model's.
_DATA_SETS = "datasets/"
# Of a repository at a hub, behind its name: a branch, tag or commit.
_REVISION = re.compile(r"^((datasets/)?[^/]+/[^/@]+)@[^/]*")
# What a server may call the packing of a file that is packed, by the end of its name.
_ENCODINGS = {".gz": ("gzip", "x-gzip"), ".zst": ("zstd",)}
# Answers that the same question would get again.
_FINAL_STATUS = {400, 401, 403, 404, 410}
_DENIED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|FORBIDDEN|UNAUTHENTICATED|HTTP status 403"
)

CREDENTIALS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "HF_TOKEN",
    "HF_ENDPOINT",
    "HTTP_USERNAME",
    "HTTP_PASSWORD",
    "HTTP_TOKEN",
)
"""Names of a Secret's keys, or outside a cluster of environment variables, that give access to sources."""


def credentials(folder: Path | None) -> dict[str, str]:
    """What gives access: the files of a mounted Secret, or without one the environment's variables.

    Of GOOGLE_APPLICATION_CREDENTIALS, which is a file itself, it is the path.
    """
    if folder is None or not folder.is_dir():
        # HTTP_… in the environment would be anyone's.
        return {name: os.environ[name] for name in CREDENTIALS if name in os.environ and not name.startswith("HTTP_")}
    found = {name: folder / name for name in CREDENTIALS if (folder / name).is_file()}
    return {
        name: str(path) if name == "GOOGLE_APPLICATION_CREDENTIALS" else path.read_text("utf-8").strip()
        for name, path in found.items()
    }


def redacted(uri: str) -> str:
    """The URI without what may be secret: a web address' user, password, query and fragment."""
    if parse_source(uri).kind is not SourceKind.HTTP:
        return uri
    parts = urllib.parse.urlsplit(uri)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def fetch(
    uri: str,
    access: Mapping[str, str],
    downloads: Path,
    revision: str | None = None,
    wanted: Callable[[str], bool] = lambda _: True,
) -> dict[Path, str]:
    """The files behind a URI in order of their names, fetched into `downloads`; what is there already stays.

    Each with its path in the store, as a Source has it, without secrets.

    access: as `credentials` has it. wanted: which files of a folder, by their path in it.
    Raises InputError where nothing matches or access is denied, TrainerError (retried)
    where nobody answers, OSError where the disk can't take it.
    """
    source = parse_source(uri)
    folder = downloads / hashlib.sha256(f"{uri} {revision}".encode() if revision else uri.encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    with _told(redacted(uri)):
        system = _system(source, uri, access)
        listing = folder / _LISTING
        if not listing.is_file():
            if source.kind is SourceKind.HF:
                revision = _commit(source, access, revision)
            names = _names(system, source, uri, revision, wanted)
            if not names:
                raise InputError("SourceNotFound", f"{redacted(uri)} names no file: check the path, or the pattern")
            write_json(listing, names)
        paths = {}
        for number, name in enumerate(json.loads(listing.read_text("utf-8"))):
            # The number keeps the order, the name tells how the file is packed.
            end = PurePosixPath(urllib.parse.urlsplit(name).path if source.kind is SourceKind.HTTP else name).name[
                -128:
            ]
            path = folder / f"{number:05d}-{end}"
            if not path.is_file():
                _download(system, source, name, path)
            paths[path] = redacted(name) if source.kind is SourceKind.HTTP else _REVISION.sub(r"\1", name)
    return paths


def _commit(source: Source, access: Mapping[str, str], revision: str | None) -> str | None:
    """What a branch or tag points to: all files are of one commit, also those that a later attempt fetches."""
    from huggingface_hub import HfApi  # noqa: PLC0415 - heavy, for few

    api = HfApi(token=access.get("HF_TOKEN"), endpoint=access.get("HF_ENDPOINT"))
    owner, name = source.path.removeprefix(_DATA_SETS).split("/")[:2]
    told = api.dataset_info if source.path.startswith(_DATA_SETS) else api.model_info
    return told(f"{owner}/{name}", revision=revision).sha


def _download(system: Any, source: Source, name: str, path: Path) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as stream:
        if source.kind is SourceKind.HTTP:
            system.get_file(name, stream)  # in one request: addresses may be signed for one method alone
        else:
            with system.open(name, "rb") as remote:
                shutil.copyfileobj(remote, stream, _CHUNK)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def _names(system: Any, source: Source, uri: str, revision: str | None, wanted: Callable[[str], bool]) -> list[str]:
    """What the URI names, in the file system's own words."""
    if source.kind is SourceKind.HTTP:
        parts = urllib.parse.urlsplit(uri)
        return [urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))]
    path = source.path
    if source.kind is SourceKind.HF:
        owner, name, *rest = path.removeprefix(_DATA_SETS).split("/", 2)
        at = f"@{urllib.parse.quote(revision, safe='')}" if revision else ""
        path = path[: -len(path.removeprefix(_DATA_SETS))] + "/".join((owner, name + at, *rest))
    path = path.rstrip("/")
    if "*" not in path:
        if system.isfile(path):
            return [path]
        below = ((name, name[len(path) :].lstrip("/")) for name in system.find(path))
        return sorted(name for name, inner in below if not hidden(inner) and wanted(inner))
    # Only `*` is a wildcard in a source, and it ends at a slash.
    pattern = re.compile("[^/]*".join(map(re.escape, path.split("*"))))
    begin = path.partition("*")[0].rpartition("/")[0]
    deep = path.count("/") - begin.count("/")
    return sorted(name for name in system.find(begin, maxdepth=deep) if pattern.fullmatch(name))


def hidden(path: str) -> bool:
    """Whether a file within a folder is no part of its content: a marker or a temporary one, by its name."""
    return any(part.startswith((".", "_")) for part in path.split("/"))


def _system(source: Source, uri: str, access: Mapping[str, str]) -> Any:
    """The file system that a source is on."""
    if source.kind is SourceKind.HTTP:
        return _web(uri, access)
    if source.kind is SourceKind.HF:
        from huggingface_hub import HfFileSystem  # noqa: PLC0415 - heavy, for few

        return HfFileSystem(token=access.get("HF_TOKEN"), endpoint=access.get("HF_ENDPOINT"))
    from fsspec.implementations.arrow import ArrowFSWrapper  # noqa: PLC0415 - likewise
    from pyarrow import fs  # noqa: PLC0415

    if source.kind is SourceKind.GS:
        if "GOOGLE_APPLICATION_CREDENTIALS" in access:
            # Google's library takes it from nowhere else.
            os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = access["GOOGLE_APPLICATION_CREDENTIALS"]
        return ArrowFSWrapper(fs.GcsFileSystem())
    endpoint = urllib.parse.urlsplit(access.get("AWS_ENDPOINT_URL", ""))
    options = {
        "access_key": access.get("AWS_ACCESS_KEY_ID"),
        "secret_key": access.get("AWS_SECRET_ACCESS_KEY"),
        "session_token": access.get("AWS_SESSION_TOKEN"),
        "region": access.get("AWS_REGION"),
        "scheme": endpoint.scheme or None,
        "endpoint_override": endpoint.netloc + endpoint.path.rstrip("/") or None,
    }
    return ArrowFSWrapper(
        fs.S3FileSystem(
            connect_timeout=_TIMEOUT_SECONDS,
            request_timeout=_TIMEOUT_SECONDS,
            **{name: value for name, value in options.items() if value},
        )
    )


def _web(uri: str, access: Mapping[str, str]) -> Any:
    import aiohttp  # noqa: PLC0415 - half a second, for few
    from fsspec.implementations.http import HTTPFileSystem  # noqa: PLC0415

    if re.search(r"[\s\x00-\x1f\x7f]", uri):
        raise InputError("SourceInvalid", f"{redacted(uri)} is no address: write blanks as %20")
    # RFC 7617. A client leaves it away when it is led to another server.
    userinfo, at, _ = urllib.parse.urlsplit(uri).netloc.rpartition("@")
    user = urllib.parse.unquote(userinfo) if at else ""
    if not at and "HTTP_USERNAME" in access:
        user = f"{access['HTTP_USERNAME']}:{access.get('HTTP_PASSWORD', '')}"
    # Files are kept as they lie there: packed ones are told by their names.
    headers = {"Accept-Encoding": "identity"}
    if user:
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    elif "HTTP_TOKEN" in access:
        headers["Authorization"] = f"Bearer {access['HTTP_TOKEN']}"
    named = _ENCODINGS.get(compression(Path(urllib.parse.urlsplit(uri).path)), ())

    async def plain(answer: aiohttp.ClientResponse) -> None:
        packed = answer.headers.get("Content-Encoding", "identity").lower()
        if answer.ok and packed not in ("identity", *named):
            raise InputError(
                "SourceCompressed",
                f"{redacted(uri)} was sent packed (Content-Encoding: {packed}), which nobody asked for and its name "
                f"doesn't tell: have the server send the file as it is, or name it {' or '.join(_ENCODINGS)}",
            )

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT_SECONDS, sock_read=_TIMEOUT_SECONDS)
    return HTTPFileSystem(
        encoded=uri.isascii(),
        client_kwargs={
            "timeout": timeout,
            "trust_env": True,
            "auto_decompress": False,
            "raise_for_status": plain,
        },
        headers=headers,
        skip_instance_cache=True,
    )


@contextlib.contextmanager
def _told(shown: str) -> Iterator[None]:
    """What a file system says, as what the run says of it; no secret of an address or of an answer is in it."""
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in STORAGE_ERRORS and type(error).__module__ == "builtins":
            raise
        status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, FileNotFoundError):
            status = status or 404
        if isinstance(error, PermissionError) or _DENIED.search(str(error)):
            status = status or 403
        if status in (401, 403):
            what = f"{shown} answered {status}: check that it exists and that the credentials of the source may read it"
            raise InputError("SourceNotFound", what) from error
        if status in _FINAL_STATUS:
            raise InputError("SourceNotFound", f"{shown} answered {status}: check the address") from error
        if isinstance(error, ValueError):
            raise InputError("SourceInvalid", f"{shown} is no address: correct it") from error
        why = f"answered {status}" if status else f"can't be fetched ({type(error).__name__})"
        raise TrainerError(
            "SourceUnavailable", f"{shown} {why}: check the server and start again", ExitCode.INTERNAL
        ) from error
