"""Stores that hold a few files, on this machine."""

import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

KEYS = {"AWS_ACCESS_KEY_ID": "ada", "AWS_SECRET_ACCESS_KEY": "s3cret", "AWS_REGION": "here"}


class Stores(http.server.BaseHTTPRequestHandler):
    """As much of S3 (bucket `books`) and of a hub (data set and model `o/books`) as reading asks for.

    files: what the bucket and the repository hold. seen: paths that were asked for, and by which authorization.
    """

    protocol_version = "HTTP/1.1"
    files: ClassVar[Mapping[str, bytes]] = {}
    seen: ClassVar[list[tuple[str, str]]] = []
    down: ClassVar[bool] = False

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def _answer(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        path = urllib.parse.unquote(parts.path)
        authorization = self.headers.get("Authorization", "")
        self.seen.append((path, authorization))
        if self.down:
            self._send(400 if "denied" in path else 503, b"")
        elif path.startswith("/books"):
            if "Credential=ada/" not in authorization:
                self._send(403, b"<Error><Code>AccessDenied</Code></Error>")
            elif "list-type" in query:
                self._list(query.get("prefix", ""), query.get("delimiter"))
            else:
                self._file(path.removeprefix("/books/"))
        elif match := re.fullmatch(r"/api/(?:datasets|models)/o/books(?:/revision/(\w+)|/tree/(\w+)/?(.*))?", path):
            self._hub(*match.groups())
        elif match := re.fullmatch(r"(?:/datasets)?/o/books/resolve/(\w+)/(.+)", path):
            self._file(match[2])
        else:
            self._send(404, b"")

    def _hub(self, revision: str | None, tree: str | None, folder: str | None) -> None:
        if self.headers.get("Authorization") != "Bearer t0ken":
            self._send(401, b"{}")
        elif (revision or tree) not in (None, "v2", "c0ffee", "c0ffee2"):
            self._send(404, b"{}", ("X-Error-Code", "RevisionNotFound"))
        elif tree:
            found = [
                {"type": "file", "path": name, "size": len(data), "oid": name}
                for name, data in self.files.items()
                if not folder or name.startswith(f"{folder}/")
            ]
            folders = {name.rpartition("/")[0] for name in self.files if not folder or name.startswith(f"{folder}/")}
            found += [{"type": "directory", "path": name, "oid": name} for name in folders - {folder}]
            self._send(200, json.dumps(found).encode(), ("Content-Type", "application/json"))
        else:
            self._send(
                200, json.dumps({"id": "o/books", "sha": f"c0ffee{'2' * (revision == 'v2')}", "siblings": []}).encode()
            )

    def _list(self, prefix: str, delimiter: str | None) -> None:
        names = sorted(name for name in self.files if name.startswith(prefix))
        folders = {prefix + name[len(prefix) :].partition("/")[0] for name in names if "/" in name[len(prefix) :]}
        if delimiter:
            names = [name for name in names if "/" not in name[len(prefix) :]]
        contents = "".join(
            f"<Contents><Key>{name}</Key><Size>{len(self.files[name])}</Size></Contents>" for name in names
        )
        common = "".join(f"<CommonPrefixes><Prefix>{name}/</Prefix></CommonPrefixes>" for name in sorted(folders))
        count = f"<KeyCount>{len(names) + len(folders)}</KeyCount>"
        body = f"<ListBucketResult>{count}{contents}{common if delimiter else ''}</ListBucketResult>"
        self._send(200, body.encode(), ("Content-Type", "application/xml"))

    def _file(self, name: str) -> None:
        if (data := self.files.get(name)) is None:
            self._send(404, b"")
        elif asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            begin, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
            self._send(206, data[begin:end], ("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}"))
        else:
            self._send(200, data)

    def _send(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Length", str(len(body))), ("ETag", '"x"'), ("X-Repo-Commit", "c"), *headers):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
        pass


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[str]:
    """The address of stores with these files."""
    Stores.files = files
    Stores.seen.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stores) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()
