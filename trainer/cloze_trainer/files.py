"""Files that are whole or absent, whatever happens while they are written."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMPLETE = "COMPLETE"
"""Marker that is written last; a folder without it doesn't count."""


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


@contextmanager
def publish(folder: Path, *, marker: bool = True) -> Iterator[Path]:
    """A temporary folder to fill; it becomes `folder` at the end: files synced, renamed, marker last.

    marker: false for a folder that lists its own content (an artifact's manifest) and may hold nothing else.
    Only one process may publish a given folder at a time. A leftover of a killed attempt is removed first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        sync_tree(staging)
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
        sync_folder(folder.parent)
        if marker:
            write_atomically(folder / COMPLETE, b"")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
