"""A PostgreSQL and an S3 store as processes of this machine, at an address that the cluster's pods reach."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import live
import psycopg2
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "hack"))
from cluster import object_store  # noqa: E402

CACHE = Path.home() / ".cache" / "cloze"
# Mark of tests whose pods reach what runs here.
within_reach = pytest.mark.skipif(
    bool(os.environ.get("CLOZE_KUBECONFIG")), reason="the pods of another cluster don't reach this machine"
)


@dataclass(frozen=True, kw_only=True)
class Database:
    """An empty database. The password has signs that a URI must not hold as they are."""

    host: str
    port: int
    name: str = "mlflow"
    user: str = "mlflow"
    password: str = field(default_factory=lambda: f"/@%{secrets.token_hex(8)}")

    def secret(self) -> dict[str, str]:
        """What a URI needs, by the names that it is written with."""
        return {"DATABASE_USER": self.user, "DATABASE_PASSWORD": quote(self.password, safe="")}

    def uri(self) -> str:
        """With the secret's keys in place of their values."""
        return f"postgresql://$(DATABASE_USER):$(DATABASE_PASSWORD)@{self.host}:{self.port}/{self.name}"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query finds."""
        with contextlib.closing(self._connect()) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())

    def answers(self) -> bool:
        """Whether it can be connected to."""
        try:
            self._connect().close()
        except psycopg2.OperationalError:
            return False
        return True

    def _connect(self) -> Any:
        return psycopg2.connect(
            host=self.host, port=self.port, dbname=self.name, user=self.user, password=self.password
        )


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """An empty bucket."""

    endpoint: str
    name: str = "models"
    key: str = "cloze"
    password: str = field(default_factory=lambda: secrets.token_hex(16))

    def secret(self) -> dict[str, str]:
        """The variables that boto3 reads."""
        return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.password}

    def objects(self) -> list[str]:
        """Keys of what it holds."""
        return [entry["Key"] for entry in self._client().list_objects_v2(Bucket=self.name).get("Contents", [])]

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        self._client().put_object(Bucket=self.name, Key=key, Body=content)

    def create(self) -> bool:
        """Whether the store answers, and so has it now."""
        try:
            self._client().create_bucket(Bucket=self.name)
        except BotoCoreError:
            return False
        return True

    def _client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.password,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 1}),
        )


def address() -> str:
    """This machine's address on the way to the cluster's node."""
    (node,) = live.items("default", "nodes")
    (found,) = [each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        route.connect((found, 9))
        return str(route.getsockname()[0])


@contextlib.contextmanager
def postgres() -> Iterator[Database]:
    """A PostgreSQL of its own while the block runs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        pytest.fail("PostgreSQL isn't installed: apt-get install --no-install-recommends postgresql")
    programs, host = found[-1], address()
    database = Database(host=host, port=_free_port(host))
    with tempfile.TemporaryDirectory(prefix="cloze-postgres-") as folder:
        home = Path(folder)
        (home / "password").write_text(database.password)
        # It refuses to run as root.
        for path in (home, home / "password"):
            shutil.chown(path, "postgres", "postgres")
        data, as_its_user = home / "data", {"user": "postgres", "group": "postgres", "cwd": home}
        initialise = [programs / "initdb", "--pgdata", data, "--username", database.user, "--auth=scram-sha-256"]
        initialise += ["--no-sync", "--pwfile", home / "password"]
        subprocess.run(initialise, check=True, stdout=subprocess.DEVNULL, **as_its_user)  # type: ignore[call-overload]
        rules = data / "pg_hba.conf"
        rules.write_text(f"local all all trust\n{rules.read_text()}\nhost all all all scram-sha-256\n")
        serve = [programs / "postgres", "-D", data, "-h", host, "-p", str(database.port), "-k", home]
        with _running(serve, home / "log", **as_its_user):
            create = [programs / "createdb", "--host", home, "--port", str(database.port)]
            create += ["--username", database.user, database.name]
            live.until(
                lambda: subprocess.run(create, capture_output=True, text=True, check=False),
                lambda done: not done.returncode or "already exists" in done.stderr,
                60,
                "PostgreSQL answers",
            )
            assert database.answers()
            yield database


@contextlib.contextmanager
def s3() -> Iterator[Bucket]:
    """An S3 store of its own while the block runs."""
    program, host = object_store.program(CACHE), address()
    listen = f"{host}:{_free_port(host)}"
    bucket = Bucket(endpoint=f"http://{listen}")
    with tempfile.TemporaryDirectory(prefix="cloze-s3-") as folder:
        home = Path(folder)
        account = object_store.environment(bucket.key, bucket.password)
        with _running(object_store.command(program, listen, home), home / "log", cwd=home, env=account):
            live.until(bucket.create, bool, 60, "the S3 store answers")
            yield bucket


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(command: list[Any], log: Path, **options: Any) -> Iterator[None]:
    """A process while the block runs."""
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, **options) as process:
        try:
            yield
        finally:
            # SIGINT is PostgreSQL's fast shutdown; it would wait for its clients otherwise.
            process.send_signal(2)
            process.wait(timeout=30)
