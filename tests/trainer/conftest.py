"""Real text of this machine, and a real MLflow server."""

import importlib
import json
import os
import pydoc
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "hack"), str(Path(__file__).parent)]
from cluster import object_store  # noqa: E402

from cloze_trainer.data import crew, passes  # noqa: E402
from cloze_trainer.data.crew import Crew  # noqa: E402

MODULES = ("argparse", "logging", "subprocess", "pathlib", "unittest", "datetime", "decimal")


@pytest.fixture(scope="module")
def crews() -> Iterator[list[Crew]]:
    """Of two and of three, which begin with the first block."""
    with pytest.MonkeyPatch.context() as patch, Crew(2) as two, Crew(3) as three:
        patch.setattr(crew, "_ALONE", 0)
        patch.setattr(passes, "_DOCUMENTS", 3)
        yield [two, three]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation of some of Python's modules: real English, some 400 kB."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    pages = (pydoc.render_doc(name, renderer=pydoc.plaintext) for name in MODULES)
    # Addresses of objects are others in each process.
    path.write_text(re.sub("0x[0-9a-f]+", "0x", "\n\n".join(pages)), encoding="utf-8")
    return path


def _start_mlflow(folder: Path) -> tuple[str, int]:
    """A real MLflow server's address, once it answers, and its process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("mlflow")),
        "server",
        "--host=127.0.0.1",
        f"--port={port}",
        "--workers=1",
        f"--backend-store-uri=sqlite:///{folder}/mlflow.db",
        f"--artifacts-destination={folder}/artifacts",
        "--serve-artifacts",
    ]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return f"http://127.0.0.1:{port}", process.pid
        except OSError:
            assert time.monotonic() < deadline, "MLflow didn't start"
            time.sleep(0.2)


@pytest.fixture(scope="session")
def mlflow(shared: Callable[[str], AbstractContextManager[Path]]) -> Iterator[str]:
    """Address of a real MLflow server, which the processes of a test run share: it takes half a minute to start.

    The first that needs it starts it, and it ends with the last. So each file of tests has names of models of its own.
    """
    with shared("mlflow") as folder:
        server, user = folder / "server.json", folder / f"user-{os.getpid()}"
        if not server.exists():
            server.write_text(json.dumps(_start_mlflow(folder)))
        address, pid = json.loads(server.read_text())
        user.touch()
    try:
        yield address
    finally:
        with shared("mlflow") as folder:
            user.unlink()
            if not list(folder.glob("user-*")):
                server.unlink()
                os.kill(pid, signal.SIGTERM)


@dataclass
class S3:
    """A real S3 server, which can be killed, frozen and started again with what it holds; its bucket is `runs`."""

    home: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    access: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        key, password = "cloze", "a-password-of-tests"
        listen = f"127.0.0.1:{self.port}"
        self.access = {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": password,
            "AWS_ENDPOINT_URL": f"http://{listen}",
        }
        command = object_store.command(object_store.program(Path.home() / ".cache" / "cloze"), listen, self.home)
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.home, env=object_store.environment(key, password), stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.client().list_buckets()
            except BotoCoreError:
                assert self.process.poll() is None, (self.home / "log").read_text()
                assert time.monotonic() < deadline, "the S3 server didn't start"
                time.sleep(0.05)
                continue
            break
        if not any(bucket["Name"] == "runs" for bucket in self.client().list_buckets()["Buckets"]):
            self.client().create_bucket(Bucket="runs")

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def signal(self, number: int) -> None:
        """Freeze it (SIGSTOP), or let it go on (SIGCONT)."""
        assert self.process is not None
        self.process.send_signal(number)

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.access["AWS_ENDPOINT_URL"],
            aws_access_key_id=self.access["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.access["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}),
        )

    def keys(self, prefix: str = "") -> list[str]:
        """Keys of what it holds below a prefix."""
        listed = self.client().list_objects_v2(Bucket="runs", Prefix=prefix)
        return [entry["Key"] for entry in listed.get("Contents", [])]


@pytest.fixture
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = S3(tmp_path_factory.mktemp("s3"), port)
    server.start()
    try:
        yield server
    finally:
        server.signal(signal.SIGCONT)
        server.kill()


@pytest.fixture(scope="session")
def tiny() -> Any:
    """The module of tiny models, whose import takes seconds."""
    return importlib.import_module("tiny")


@pytest.fixture
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a `Tuned` of a task and its lines, in a folder of its own."""
    tuning = importlib.import_module("tuning")
    return lambda *arguments, **options: tuning.Tuned(tmp_path_factory.mktemp("tuned"), *arguments, **options)


@pytest.fixture
def anyio_backend() -> str:
    """Servers run on asyncio."""
    return "asyncio"
