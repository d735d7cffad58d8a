"""Sources: files by pattern, downloads that are whole or refused, and no secret in what is told."""

import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from cloze_api.progress import ExitCode
from cloze_trainer.data.remote import redacted
from cloze_trainer.data.source import SourceFiles, locate
from cloze_trainer.errors import InputError, TrainerError
from cloze_trainer.origin import digests

BODY = b"one\n\ntwo\n" * 1000


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path; remembers the credentials."""

    seen: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.seen.append(self.headers.get("Authorization"))
        if path.startswith("/status/"):
            self.send_error(int(path.rpartition("/")[2]))
        elif path == "/reset":
            self.connection.close()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY[: len(BODY) // 2] if path == "/cut" else BODY)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.seen.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()


def fetch(uri: str, folder: Path) -> SourceFiles:
    return locate(uri, corpus_root=folder / "mounts", downloads=folder / "downloads")


def test_download_is_whole_and_fetched_once(server: str, tmp_path: Path) -> None:
    """The file is the body, and a second start asks no server."""
    (path,) = fetch(f"http://{server}/whole", tmp_path).paths
    assert path.read_bytes() == BODY
    fetch(f"http://{server}/whole", tmp_path)
    assert len(Handler.seen) == 1


@pytest.mark.parametrize("path", ["cut", "reset", "status/503"])
def test_broken_download_is_retried_and_leaves_nothing(server: str, tmp_path: Path, path: str) -> None:
    """A body that ends early, a connection that breaks, a server that is down: nothing is taken for the source."""
    for _ in range(2):
        with pytest.raises(TrainerError) as failure:
            fetch(f"http://{server}/{path}?token=s3cret", tmp_path)
        assert failure.value.reason == "SourceUnavailable"
        assert failure.value.exit_code == ExitCode.INTERNAL
        assert "s3cret" not in failure.value.message


def test_unreachable_server_is_retried(tmp_path: Path) -> None:
    """A server that isn't there may come back."""
    with pytest.raises(TrainerError) as failure:
        fetch("http://127.0.0.1:1/x", tmp_path)
    assert (failure.value.reason, failure.value.exit_code) == ("SourceUnavailable", ExitCode.INTERNAL)


@pytest.mark.parametrize("code", [401, 404])
def test_missing_download_is_final(server: str, tmp_path: Path, code: int) -> None:
    """An address that names nothing, or not for us, is the job's mistake; its secrets are not told."""
    with pytest.raises(InputError, match=str(code)) as refusal:
        fetch(f"http://ada:pa55@{server}/status/{code}?signature=s3cret", tmp_path)
    assert "s3cret" not in refusal.value.message
    assert "pa55" not in refusal.value.message


def test_user_and_password_of_an_address_are_sent(server: str, tmp_path: Path) -> None:
    """`https://user:password@host/…` is basic authentication."""
    fetch(f"http://ada:pa%3A55@{server}/whole", tmp_path)
    assert Handler.seen == ["Basic YWRhOnBhOjU1"]


def test_full_volume_is_not_the_servers_fault(server: str, tmp_path: Path) -> None:
    """What the disk says stays what the disk says."""
    (path,) = fetch(f"http://{server}/whole", tmp_path).paths
    path.unlink()
    path.with_name(f"{path.name}.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space"):
        fetch(f"http://{server}/whole", tmp_path)
    assert not path.exists()


def test_blank_in_an_address_is_told(tmp_path: Path) -> None:
    """An address that no server can be asked for is the job's mistake."""
    with pytest.raises(InputError, match="%20") as refusal:
        fetch("http://127.0.0.1:1/a b?key=s3cret", tmp_path)
    assert "s3cret" not in refusal.value.message


def test_name_of_an_address_tells_how_it_is_packed(server: str, tmp_path: Path) -> None:
    """The path counts, not the query."""
    (path,) = fetch(f"http://{server}/a/whole.jsonl.gz?b=c.zst", tmp_path).paths
    assert path.suffix == ".gz"


def test_folder_names_all_files_below(tmp_path: Path) -> None:
    """Markers and temporary files aside, in order of their paths."""
    for name in ("b.txt", "a/c.txt", "_SUCCESS", ".tmp/d.txt", "a/_e"):
        (file := tmp_path / "mounts" / "pvc" / "texts" / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    found = fetch("pvc://texts/set/", tmp_path)
    assert [path.name for path in found.paths] == ["c.txt", "b.txt"]


def test_only_the_asterisk_is_a_wildcard(tmp_path: Path) -> None:
    """Brackets and question marks in a claim's paths are ordinary characters; files come in order of their names."""
    folder = tmp_path / "mounts" / "pvc" / "texts" / "set[1]?"
    folder.mkdir(parents=True)
    for name in ("b.txt", "a.txt", "c.md"):
        (folder / name).write_text(name)
    found = fetch("pvc://texts/set[1]?/*.txt", tmp_path)
    assert [path.name for path in found.paths] == ["a.txt", "b.txt"]
    assert [path.name for path in fetch(f"file://{folder}/*.md", tmp_path).paths] == ["c.md"]
    with pytest.raises(InputError, match="check the path"):
        fetch("pvc://texts/set1x/a.txt", tmp_path)


def test_each_file_is_known_by_its_content_and_its_own_uri(server: str, tmp_path: Path) -> None:
    """As `sha256sum` has it, packed or not; several files of a folder or a pattern have a digest of their own, too."""
    folder = tmp_path / "mounts" / "pvc" / "texts" / "set"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.txt.gz"):
        (folder / name).write_text(name)
    expected = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a.txt", "deep/b.txt.gz")}
    one = fetch("pvc://texts/set/a.txt", tmp_path)
    assert (one.content, one.contents) == (expected["a.txt"], {"pvc://texts/set/a.txt": expected["a.txt"]})
    packed = fetch(f"file://{folder}/deep/b.txt.gz", tmp_path)
    assert packed.contents == {f"file://{folder}/deep/b.txt.gz": expected["deep/b.txt.gz"]}
    both = {f"pvc://texts/set/{name}": digest for name, digest in expected.items()}
    folded = fetch("pvc://texts/set/", tmp_path)
    assert folded.contents == both
    assert folded.content == folded.digest not in expected.values()
    assert folded.names == ("a.txt", "deep/b.txt.gz")
    assert fetch("pvc://texts/*/*.txt", tmp_path).contents == {"pvc://texts/set/a.txt": expected["a.txt"]}
    page = fetch(f"http://ada:pa55@{server}/whole?key=s3cret", tmp_path)
    assert page.contents == {f"http://{server}/whole": hashlib.sha256(BODY).hexdigest()}


def test_names_of_files_may_be_any_bytes(tmp_path: Path) -> None:
    """They are recorded as text that JSON takes, each as another."""
    folder = tmp_path / "mounts" / "pvc" / "texts"
    folder.mkdir(parents=True)
    for name in (b"a@\xff", b"a@\xfe", "ä\nb".encode()):
        (folder / os.fsdecode(name)).write_bytes(name)
    recorded = digests([fetch("pvc://texts/*", tmp_path)])
    assert set(recorded) == {"pvc://texts/*", "pvc://texts/a@\\xfe", "pvc://texts/a@\\xff", "pvc://texts/ä\nb"}
    json.dumps(recorded, ensure_ascii=False).encode()


def test_digest_follows_the_content(tmp_path: Path) -> None:
    """The same bytes have the same digest, others another."""
    file = tmp_path / "a.txt"
    file.write_text("one")
    before = fetch(f"file://{file}", tmp_path).digest
    assert fetch(f"file://{file}", tmp_path).digest == before
    file.write_text("two")
    assert fetch(f"file://{file}", tmp_path).digest != before


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (
            "https://ada:pa55@host.example:8443/a%20b.txt?X-Amz-Signature=s3cret#part",
            "https://host.example:8443/a%20b.txt",
        ),
        ("https://host.example/a.txt", "https://host.example/a.txt"),
        ("pvc://texts/a?b.txt", "pvc://texts/a?b.txt"),
    ],
)
def test_secrets_of_an_address_are_left_out(uri: str, shown: str) -> None:
    """User, password, signature and fragment go; the rest tells the source."""
    assert redacted(uri) == shown
