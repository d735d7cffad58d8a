"""Stores: what a URI names is fetched, in order and whole, with the credentials of its Secret and of no other."""

import gzip
import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pyarrow import fs
from remote_stores import KEYS, Stores, serving

from cloze_api.pretrain import Corpus
from cloze_api.progress import ExitCode
from cloze_trainer.data.documents import documents
from cloze_trainer.data.remote import credentials, fetch
from cloze_trainer.data.source import locate
from cloze_trainer.errors import InputError, TrainerError

FILES = {
    "texts/b.txt": b"two\n" * 100_000,
    "texts/a.txt.gz": gzip.compress(b"one\n"),
    "texts/deep/c.txt": b"three\n",
    "texts/_SUCCESS": b"marker\n",
    "other/d.txt": b"four\n",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Stores, "down", False)
    with serving(FILES) as address:
        yield address


def texts(paths: Iterable[Path]) -> list[str]:
    corpus = Corpus.model_validate({"uri": "file:///x", "format": "lines"})
    return list(dict.fromkeys(documents(corpus, list(paths))))


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("texts/b.txt", ["two"]),
        ("texts/*.txt", ["two"]),
        ("texts/*", ["marker", "one", "two"]),
        ("texts", ["one", "two", "three"]),
        ("texts/", ["one", "two", "three"]),
        ("*/d.txt", ["four"]),
    ],
)
@pytest.mark.parametrize("store", ["s3://books", "gs://books", "hf://datasets/o/books"])
def test_stores_are_read_by_file_pattern_and_folder(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, path: str, found: list[str]
) -> None:
    """Any size, packed or not; a second start asks no server. For `gs` there is none here: a folder stands for it."""
    local = tmp_path / "store"
    for name, data in FILES.items():
        (file := local / "books" / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    monkeypatch.setattr(fs, "GcsFileSystem", lambda: fs.SubTreeFileSystem(str(local), fs.LocalFileSystem()))
    access = KEYS | {"AWS_ENDPOINT_URL": server, "HF_TOKEN": "t0ken", "HF_ENDPOINT": server}
    paths = fetch(f"{store}/{path}", access, tmp_path)
    assert texts(paths) == found
    Stores.seen.clear()
    assert fetch(f"{store}/{path}", access, tmp_path) == paths
    assert not [seen for seen in Stores.seen if "resolve" in seen[0] or seen[0].endswith(".txt")]


@pytest.mark.parametrize("store", ["s3://books", "hf://datasets/o/books"])
def test_each_file_of_a_store_has_its_own_uri(server: str, tmp_path: Path, store: str) -> None:
    """As a job could name it, without the commit that was read, and with its content's digest."""
    access = KEYS | {"AWS_ENDPOINT_URL": server, "HF_TOKEN": "t0ken", "HF_ENDPOINT": server}
    for uri in (f"{store}/texts/deep/c.txt", f"{store}/texts/*/c.txt", f"{store}/texts/deep"):
        source = locate(uri, corpus_root=tmp_path, downloads=tmp_path, access=access)
        digest = hashlib.sha256(FILES["texts/deep/c.txt"]).hexdigest()
        assert source.contents == {f"{store}/texts/deep/c.txt": digest}
        assert source.names == ("c.txt",)


def test_revision_is_what_is_read(server: str, tmp_path: Path) -> None:
    """Of a data set that has it, by the commit that it points to when the job starts; another one is told."""
    access = {"HF_TOKEN": "t0ken", "HF_ENDPOINT": server}
    fetch("hf://datasets/o/books/texts", access, tmp_path, revision="v2")
    assert "/datasets/o/books/resolve/c0ffee2/texts/b.txt" in [path for path, _ in Stores.seen]
    with pytest.raises(InputError, match="404"):
        fetch("hf://datasets/o/books/texts", access, tmp_path, revision="v3")


def test_a_hub_is_asked_also_after_a_model_was_read(server: str, tmp_path: Path) -> None:
    """A base in a folder, and a corpus at a hub: what reads the one doesn't keep the process from the other."""
    program = f"""
import pathlib, cloze_trainer.conversion, cloze_trainer.data.remote as remote
access = {{"HF_TOKEN": "t0ken", "HF_ENDPOINT": {server!r}}}
print(*(path.name for path in remote.fetch("hf://datasets/o/books/other", access, pathlib.Path({str(tmp_path)!r}))))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("00000-d.txt\n", 0), done.stderr


@pytest.mark.parametrize("store", ["s3://books", "hf://o/books"])
def test_of_a_folder_what_is_wanted_is_fetched(server: str, tmp_path: Path, store: str) -> None:
    """Also of a model's repository at a hub, at its commit; what else lies there stays there."""
    access = KEYS | {"AWS_ENDPOINT_URL": server, "HF_TOKEN": "t0ken", "HF_ENDPOINT": server}
    revision = "v2" if store.startswith("hf") else None
    (path,) = fetch(f"{store}/texts", access, tmp_path, revision, lambda name: name == "deep/c.txt")
    assert path.read_bytes() == FILES["texts/deep/c.txt"]
    assert {seen for seen, _ in Stores.seen if seen.endswith((".txt", ".gz"))} == {
        "/o/books/resolve/c0ffee2/texts/deep/c.txt" if revision else "/books/texts/deep/c.txt"
    }


@pytest.mark.parametrize(
    ("uri", "access"),
    [
        ("s3://books/texts/b.txt", {**KEYS, "AWS_ACCESS_KEY_ID": "eve"}),
        ("s3://books/texts/nothing.txt", KEYS),
        ("s3://books/texts/*.md", KEYS),
        ("hf://datasets/o/books/texts/b.txt", {"HF_TOKEN": "wr0ng"}),
        ("hf://datasets/o/books/nothing", {"HF_TOKEN": "t0ken"}),
    ],
)
def test_what_is_not_there_or_not_for_us_is_final(
    server: str, tmp_path: Path, uri: str, access: dict[str, str]
) -> None:
    """The job's mistake, told with the URI and without a secret."""
    with pytest.raises(InputError, match=re.escape(uri)) as refusal:
        fetch(uri, access | {"AWS_ENDPOINT_URL": server, "HF_ENDPOINT": server}, tmp_path)
    assert refusal.value.reason == "SourceNotFound"
    assert not any(secret in refusal.value.message for secret in ("s3cret", "t0ken", "wr0ng"))


def test_fetching_goes_on_where_it_was_broken_off(server: str, tmp_path: Path) -> None:
    """Files that are there aren't fetched again, and the list of them is the first one's."""
    access = KEYS | {"AWS_ENDPOINT_URL": server}
    paths = fetch("s3://books/texts", access, tmp_path)
    list(paths)[-1].unlink()
    Stores.seen.clear()
    assert fetch("s3://books/texts", access, tmp_path) == paths
    assert {path for path, _ in Stores.seen} == {"/books/texts/deep/c.txt"}


def test_credentials_come_from_the_secret_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never from both: what one source lacks must not be another's."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("HTTP_TOKEN", "anyone's")
    assert credentials(None)["AWS_ACCESS_KEY_ID"] == "mine"
    assert "HTTP_TOKEN" not in credentials(None)
    (tmp_path / "HF_TOKEN").write_text("t0ken\n")
    (tmp_path / "LD_PRELOAD").write_text("x")
    (tmp_path / "GOOGLE_APPLICATION_CREDENTIALS").write_text("{}")
    key = str(tmp_path / "GOOGLE_APPLICATION_CREDENTIALS")
    assert credentials(tmp_path) == {"HF_TOKEN": "t0ken", "GOOGLE_APPLICATION_CREDENTIALS": key}


@pytest.mark.parametrize(
    ("access", "sent"),
    [
        ({"HTTP_TOKEN": "t0ken"}, "Bearer t0ken"),
        ({"HTTP_USERNAME": "ada", "HTTP_PASSWORD": "pa:55"}, "Basic YWRhOnBhOjU1"),
        ({}, ""),
    ],
)
def test_web_servers_get_the_secret(server: str, tmp_path: Path, access: dict[str, Any], sent: str) -> None:
    """A token, or a user and a password."""
    with pytest.raises(InputError):
        fetch(f"{server}/nothing", access, tmp_path)
    assert Stores.seen == [("/nothing", sent)]


@pytest.fixture
def compressing() -> Iterator[Callable[..., str]]:
    """The address of a server that packs all that it sends, or where somebody accepts that."""

    class Compressing(BaseHTTPRequestHandler):
        always: ClassVar[bool] = True

        def do_GET(self) -> None:
            accepted = "gzip" in self.headers.get("Accept-Encoding", "") or self.always
            body = gzip.compress(b"plain\n") if accepted else b"plain\n"
            self.send_response(404 if "nothing" in self.path else 200)
            if accepted:
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Compressing) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()

        def address(*, always: bool) -> str:
            Compressing.always = always
            return f"http://127.0.0.1:{listening.server_address[1]}"

        yield address
        listening.shutdown()


def test_nothing_is_packed_on_its_way(compressing: Callable[..., str], tmp_path: Path) -> None:
    """A server that packs for whoever accepts it sends the file as it is."""
    (path,) = fetch(f"{compressing(always=False)}/a.txt", {}, tmp_path)
    assert path.read_bytes() == b"plain\n"


def test_what_is_packed_nevertheless_is_refused(compressing: Callable[..., str], tmp_path: Path) -> None:
    """By what was done to it, not as a text that holds zero bytes; a name may tell of it, and an error is its own."""
    address = compressing(always=True)
    for name in ("a.txt", "a.zst"):
        with pytest.raises(InputError, match=rf"{name} was sent packed \(Content-Encoding: gzip\)") as refusal:
            fetch(f"{address}/{name}?key=s3cret", {}, tmp_path)
        assert refusal.value.reason == "SourceCompressed"
        assert "s3cret" not in refusal.value.message
    assert texts(fetch(f"{address}/a.gz", {}, tmp_path)) == ["plain"]
    with pytest.raises(InputError, match="answered 404"):
        fetch(f"{address}/nothing", {}, tmp_path)


def test_store_that_is_down_is_tried_again(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next start of the pod; the sentence tells no secret."""
    monkeypatch.setattr(Stores, "down", True)
    with pytest.raises(TrainerError) as failure:
        fetch(f"{server}/a", {"HTTP_TOKEN": "t0ken"}, tmp_path)
    assert (failure.value.reason, failure.value.exit_code) == ("SourceUnavailable", ExitCode.INTERNAL)
