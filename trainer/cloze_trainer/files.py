"""Files that are whole or absent, whatever happens while they are written, and digests that tell what happens later."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloze_api.manifest import file_sha256

COMPLETE = "COMPLETE"
"""Marker that is written last; a folder without it doesn't count. It may hold the digests of the files beside it."""


class Damaged(Exception):
    """What was published isn't what is there; the text says in which way."""


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make every file and folder below durable."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    sync_folder(folder)


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a file in one step. Raises OSError; the old content stays then."""
    # Not the process id: every pod's first process is number 1, and they share this folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def write_json(path: Path, document: Any, *, durable: bool = True) -> None:
    """Replace a JSON file in one step."""
    write_atomically(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode(), durable=durable)


def is_complete(folder: Path) -> bool:
    """Whether a published folder carries its marker."""
    return (folder / COMPLETE).is_file()


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder, keyed by name."""
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())}


def recorded(folder: Path) -> dict[str, str]:
    """The digests in a published folder's marker, keyed by name. Raises Damaged where there are none."""
    try:
        digests = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Damaged("it was not finished") from None
    except (OSError, ValueError):
        raise Damaged("its marker can't be read") from None
    if not isinstance(digests, dict):
        raise Damaged("its marker can't be read")
    return digests


def check(folder: Path, digests: Mapping[str, str], heard: Callable[[int], object] | None = None) -> None:
    """Raise Damaged when a folder lacks one of these files or has it with another content.

    heard: told of the bytes that are read, as they are.
    """
    for name, digest in digests.items():
        if not (folder / name).is_file():
            raise Damaged(f"{name} is missing")
        if file_sha256(folder / name, heard) != digest:
            raise Damaged(f"{name} is damaged")


@contextmanager
def publish(folder: Path, *, marker: bool = True, digests: bool = False) -> Iterator[Path]:
    """A temporary folder to fill; it becomes `folder` at the end: files synced, renamed, marker last.

    marker: false for a folder that lists its own content (an artifact's manifest) and may hold nothing else.
    digests: true where the marker is to hold the digests of the files, all of which are on the top level.
    Only one process may publish a given folder at a time. A leftover of a killed attempt is removed first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        sync_tree(staging)
        found = digests_of(staging) if digests else None
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
        sync_folder(folder.parent)
        if found is not None:
            write_json(folder / COMPLETE, found)
        elif marker:
            write_atomically(folder / COMPLETE, b"")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
