"""The model cache: shared by servers, swept of what died, and emptied only of what is damaged."""

import fcntl
import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest

from cloze_api.manifest import MANIFEST_FILE
from cloze_server import source
from cloze_server.cache import Cache, StoppedError
from cloze_server.exits import ExitCode, FatalError
from cloze_server.lifecycle import Lifecycle
from cloze_server.reference import RegisteredVersion
from cloze_server.source import fetch

DIGEST = "sha256:" + "a" * 64
VERSION = RegisteredVersion("mails", "1")


def staged(cache: Cache, content: bytes = b"x") -> Path:
    """Publish a folder with one file in a folder of its own."""
    with cache.staging() as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_bytes(content)
        return cache.publish(folder, DIGEST)


def test_what_is_published_can_be_read_by_other_users(tmp_path: Path) -> None:
    """A staging folder can be entered by its owner alone."""
    cache = Cache(tmp_path)
    mask = os.umask(0o077)
    try:
        with cache.writing(threading.Event()):
            folder = staged(cache)
    finally:
        os.umask(mask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    assert modes == {folder.name: 0o755, "inner": 0o755, "file": 0o644}


def test_what_another_server_published_first_stays(tmp_path: Path) -> None:
    """Equal digests are equal artifacts; the second finds the first's."""
    cache = Cache(tmp_path)
    with cache.writing(threading.Event()):
        first = staged(cache, b"first")
        assert staged(cache, b"second") == first
    assert (first / "inner" / "file").read_bytes() == b"first"
    assert not list(tmp_path.glob(".staging-*"))


def test_one_server_writes_at_a_time_and_a_waiting_one_can_be_stopped(tmp_path: Path) -> None:
    """Replicas that start together on one volume don't each download the model."""
    with (tmp_path / ".lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        stop = threading.Event()
        stop.set()
        with pytest.raises(StoppedError), Cache(tmp_path).writing(stop):
            raise AssertionError("two at once")
    with Cache(tmp_path).writing(stop):
        pass


def test_what_dead_writers_left_is_swept_by_the_next(tmp_path: Path) -> None:
    """Killed downloads must not fill the volume; artifacts and notes stay."""
    cache = Cache(tmp_path)
    with cache.writing(threading.Event()):
        folder = staged(cache)
        cache.remember(VERSION, DIGEST)
    (tmp_path / ".staging-dead" / "deep").mkdir(parents=True)
    (tmp_path / ".staging-dead" / "model.onnx").write_bytes(b"half")
    with cache.writing(threading.Event()):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", folder.name, "versions"]
    assert cache.recall(VERSION) == DIGEST


def test_a_file_system_without_locks_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But nothing is swept: it could be another's work."""

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".staging-other").mkdir()
    cache = Cache(tmp_path)
    with cache.writing(threading.Event()):
        assert staged(cache).is_dir()
    assert (tmp_path / ".staging-other").is_dir()


def test_an_artifact_that_cannot_be_read_is_not_discarded(tmp_path: Path) -> None:
    """Its digest is right, so a download would bring the same; a newer program may read it."""
    data = b'{"schema_version": 99}'
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    folder = Cache(tmp_path).folder(digest)
    folder.mkdir()
    (folder / MANIFEST_FILE).write_bytes(data)

    def connect() -> object:
        raise AssertionError("there is nothing to download")

    with pytest.raises(FatalError) as error:
        fetch(
            VERSION,
            digest,
            cache=Cache(tmp_path),
            connect=connect,  # type: ignore[arg-type]
            stop=threading.Event(),
            lifecycle=Lifecycle(),
        )
    assert error.value.reason == "SchemaVersionUnknown"
    assert folder.is_dir()


def test_what_another_server_has_mended_meanwhile_is_not_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two find the same damage; the second one, when its turn comes, finds the first one's download."""
    folder = Cache(tmp_path).folder(DIGEST)
    folder.mkdir()
    looks = []

    def look(path: Path, digest: str | None, trust: object) -> object:
        looks.append(path)
        if len(looks) == 1:
            raise FatalError(ExitCode.ARTIFACT_INVALID, "FileCorrupt", "damaged")
        return "mended"

    monkeypatch.setattr(source, "open_folder", look)
    found = fetch(
        VERSION,
        DIGEST,
        cache=Cache(tmp_path),
        connect=lambda: pytest.fail("nothing to download"),
        stop=threading.Event(),
        lifecycle=Lifecycle(),
    )
    assert found == "mended"
    assert folder.is_dir()
