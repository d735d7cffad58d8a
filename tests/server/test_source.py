"""Artifacts from a real MLflow server, the cache, and what happens without either."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloze_api.manifest import MANIFEST_FILE, ONNX_FILE, verify, write_manifest
from cloze_api.task import Task
from cloze_server.cache import Cache, StoppedError
from cloze_server.exits import ExitCode, FatalError
from cloze_server.lifecycle import Lifecycle, Stage
from cloze_server.reference import RegisteredVersion
from cloze_server.registry import Registry
from cloze_server.source import RegistryUnreachableError, backoff_seconds, fetch, open_folder

V1 = RegisteredVersion("mails", "1")
DEAD = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Mlflow:
    """A running MLflow, and a function that registers a folder as the next version."""

    uri: str
    register: Callable[[Path], str]


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory, artifacts: Any) -> Iterator[Mlflow]:
    """An MLflow server on loopback that holds the classification artifact as version 1 of `mails`."""
    root = tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", f"sqlite:///{root}/mlflow.db", "--artifacts-destination", str(root / "store")),
                *("--serve-artifacts", "--workers", "1"),
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                httpx.get(uri + "/health").raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None, (root / "log").read_text()
                assert time.monotonic() < deadline, (root / "log").read_text()
                time.sleep(0.1)
        registered = Mlflow(uri, lambda folder: register(uri, folder))
        assert registered.register(artifacts(Task.SEQUENCE_CLASSIFICATION).folder) == "1"
        yield registered
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def register(uri: str, folder: Path) -> str:
    """Log a folder as an MLflow 3 model and register it as the next version of `mails`."""
    import mlflow  # noqa: PLC0415 - takes seconds, and most tests do without
    from mlflow import MlflowClient  # noqa: PLC0415
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    # Explicit: a server that ran within this process leaves its own registry behind.
    client = MlflowClient(uri, registry_uri=uri)
    try:
        client.create_registered_model("mails")
    except MlflowException as error:
        assert error.error_code == "RESOURCE_ALREADY_EXISTS"  # noqa: PT017 - any other error must fail the test
    model = client.create_logged_model("0", name="mails")
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    version = client.create_model_version("mails", f"models:/{model.model_id}", model_id=model.model_id)
    return str(version.version)


def get(cache: Path, uri: str, version: RegisteredVersion = V1, digest: str | None = None, **options: Any) -> Any:
    """`fetch` with a cache folder and an address."""
    return fetch(
        version,
        digest,
        cache=Cache(cache),
        connect=lambda: Registry(uri),
        stop=options.pop("stop", threading.Event()),
        lifecycle=options.pop("lifecycle", Lifecycle()),
        backoff=options.pop("backoff", lambda _: 0.01),
    )


def stopping_after(tries: int) -> tuple[threading.Event, Callable[[int], float]]:
    """A stop event, and a backoff that sets it at the given try."""
    stop = threading.Event()

    def backoff(attempt: int) -> float:
        if attempt >= tries:
            stop.set()
        return 0.0

    return stop, backoff


def test_a_version_is_downloaded_verified_and_cached_by_digest(mlflow: Mlflow, artifacts: Any, tmp_path: Path) -> None:
    """With the digest that the operator decided on; no staging is left."""
    expected = artifacts(Task.SEQUENCE_CLASSIFICATION)
    found = get(tmp_path, mlflow.uri, digest=expected.digest)
    assert found.digest == expected.digest
    assert found.folder == tmp_path / expected.digest.replace(":", "-")
    assert (found.folder / ONNX_FILE).read_bytes() == (expected.folder / ONNX_FILE).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", found.folder.name, "versions"]


def test_a_cached_version_is_used_while_the_registry_is_down(mlflow: Mlflow, tmp_path: Path) -> None:
    """Known by its digest, or by the note of an earlier start."""
    first = get(tmp_path, mlflow.uri)
    assert get(tmp_path, DEAD, digest=first.digest) == first
    assert get(tmp_path, DEAD) == first


def test_a_damaged_cache_is_replaced(mlflow: Mlflow, tmp_path: Path) -> None:
    """A flipped byte costs a download, not an outage; and nothing unverified is loaded."""
    first = get(tmp_path, mlflow.uri)
    with (first.folder / ONNX_FILE).open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\0\0\0\0")
    again = get(tmp_path, mlflow.uri, digest=first.digest)
    assert again == first
    open_folder(again.folder, first.digest)


def test_another_digest_than_the_expected_is_refused(mlflow: Mlflow, tmp_path: Path) -> None:
    """Before anything but the manifest is downloaded."""
    with pytest.raises(FatalError) as error:
        get(tmp_path, mlflow.uri, digest="sha256:" + "a" * 64)
    assert (error.value.code, error.value.reason) == (ExitCode.ARTIFACT_INVALID, "DigestMismatch")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_damaged_file_in_the_registry_is_refused(mlflow: Mlflow, artifacts: Any, tmp_path: Path) -> None:
    """The manifest's digest is right, a listed file is not."""
    source = artifacts(Task.SEQUENCE_CLASSIFICATION)
    damaged = tmp_path / "damaged"
    shutil.copytree(source.folder, damaged)
    with (damaged / ONNX_FILE).open("ab") as stream:
        stream.write(b"x")
    version = RegisteredVersion("mails", mlflow.register(damaged))
    with pytest.raises(FatalError) as error:
        get(tmp_path / "cache", mlflow.uri, version, source.digest)
    assert (error.value.code, error.value.reason) == (ExitCode.ARTIFACT_INVALID, "FileCorrupt")
    (damaged / ONNX_FILE).unlink()
    version = RegisteredVersion("mails", mlflow.register(damaged))
    with pytest.raises(FatalError) as missing:
        get(tmp_path / "cache", mlflow.uri, version, source.digest)
    assert missing.value.reason == "FileMissing"


def test_files_that_the_manifest_does_not_list_stay_in_the_registry(
    mlflow: Mlflow, artifacts: Any, tmp_path: Path
) -> None:
    """Registries add files of their own."""
    source = artifacts(Task.SEQUENCE_CLASSIFICATION)
    folder = tmp_path / "more"
    shutil.copytree(source.folder, folder)
    (folder / "MLmodel").write_text("flavors: {}\n")
    version = RegisteredVersion("mails", mlflow.register(folder))
    found = get(tmp_path / "cache", mlflow.uri, version, source.digest)
    assert not (found.folder / "MLmodel").exists()


def test_a_version_that_does_not_exist_is_final(mlflow: Mlflow, tmp_path: Path) -> None:
    """The registry answered: waiting won't help."""
    for version in (RegisteredVersion("mails", "999"), RegisteredVersion("nobody", "1")):
        with pytest.raises(FatalError) as error:
            get(tmp_path, mlflow.uri, version)
        assert (error.value.code, error.value.reason) == (ExitCode.MODEL_NOT_FOUND, "ModelNotFound")


def test_a_version_without_a_manifest_is_no_artifact(mlflow: Mlflow, tmp_path: Path) -> None:
    """Somebody else's model under our name."""
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "model.pkl").write_bytes(b"x")
    version = RegisteredVersion("mails", mlflow.register(folder))
    with pytest.raises(FatalError) as error:
        get(tmp_path / "cache", mlflow.uri, version)
    assert (error.value.code, error.value.reason) == (ExitCode.ARTIFACT_INVALID, "ManifestMissing")


def test_an_unreachable_registry_is_asked_again_and_logged_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Until the process is asked to end."""
    stop, backoff = stopping_after(3)
    with pytest.raises(StoppedError):
        get(tmp_path, DEAD, stop=stop, backoff=backoff)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3


def test_what_is_in_the_way_is_reported(tmp_path: Path) -> None:
    """For the probe and the operator: the registry's address without its credentials, and how often it was tried."""
    lifecycle = Lifecycle()
    stop, backoff = stopping_after(2)
    with pytest.raises(StoppedError):
        get(tmp_path, "http://me:secret@127.0.0.1:9", stop=stop, backoff=backoff, lifecycle=lifecycle)
    assert (lifecycle.progress.stage, lifecycle.progress.reason) == (Stage.FETCHING, "RegistryUnavailable")
    assert "http://127.0.0.1:9" in lifecycle.progress.message
    assert "2 times" in lifecycle.progress.message
    assert "secret" not in lifecycle.progress.message


@pytest.mark.parametrize("status", [401, 404, 418, 500])
def test_credentials_of_the_registry_are_sent_and_never_told(status: int) -> None:
    """Neither for an answer nor for the lack of one."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["authorization"])
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Not to standard error."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        registry = Registry(f"http://me:secret@127.0.0.1:{server.server_port}/mlflow/?token=secret")
        with pytest.raises((FatalError, RegistryUnreachableError)) as error:
            registry.artifact_root(V1)
        server.shutdown()
    assert seen == ["Basic bWU6c2VjcmV0"]
    assert "secret" not in str(error.value)
    assert f"http://127.0.0.1:{server.server_port}/mlflow" in str(error.value)


@pytest.mark.parametrize("address", ["", "me:secret@mlflow", "ftp://me:secret@mlflow", "http://me:secret@mlflow:x"])
def test_an_address_that_is_wrong_is_not_told_either(address: str) -> None:
    """It may hold a password all the same."""
    with pytest.raises(FatalError) as error:
        Registry(address)
    assert (error.value.code, error.value.reason) == (ExitCode.CONFIGURATION, "RegistryInvalid")
    assert "secret" not in str(error.value)


def test_an_address_that_is_not_http_is_a_configuration_error(tmp_path: Path) -> None:
    """Also when it is missing."""
    with pytest.raises(FatalError) as error:
        get(tmp_path, "")
    assert error.value.code is ExitCode.CONFIGURATION


def test_a_cache_that_cannot_be_written_is_a_storage_error(mlflow: Mlflow, tmp_path: Path) -> None:
    """With a message about the volume."""
    (tmp_path / "file").touch()
    with pytest.raises(FatalError) as error:
        get(tmp_path / "file", mlflow.uri)
    assert (error.value.code, error.value.reason) == (ExitCode.STORAGE, "CacheUnusable")


def test_a_manifest_that_leads_out_of_its_folder_is_refused(mlflow: Mlflow, artifacts: Any, tmp_path: Path) -> None:
    """No file is written outside of the cache."""
    folder = tmp_path / "evil"
    shutil.copytree(artifacts(Task.SEQUENCE_CLASSIFICATION).folder, folder)
    manifest = verify(folder)
    write_manifest(folder, manifest.model_copy(update={"files": {**manifest.files, "../escape": "0" * 64}}))
    version = RegisteredVersion("mails", mlflow.register(folder))
    with pytest.raises(FatalError) as error:
        get(tmp_path / "cache", mlflow.uri, version)
    assert error.value.reason == "ManifestInvalid"


def test_backoff_grows_to_half_a_minute() -> None:
    """With jitter."""
    assert backoff_seconds(1) <= 0.5
    assert 15 <= backoff_seconds(20) <= 30


def test_the_server_process_loads_from_the_registry(
    mlflow: Mlflow, artifacts: Any, tmp_path: Path, start_server: Any
) -> None:
    """End to end: environment as the operator sets it, name and version in the reply."""
    digest = artifacts(Task.SEQUENCE_CLASSIFICATION).digest
    server = start_server(
        environment={
            "CLOZE_MODEL_URI": "models:/mails/1",
            "CLOZE_MODEL_DIGEST": digest,
            "CLOZE_MODEL_CACHE": str(tmp_path),
            "MLFLOW_TRACKING_URI": mlflow.uri,
        }
    )
    server.wait_for_event("ready")
    reply = httpx.post(server.url + "/v1/classify", json={"inputs": "my card was charged twice"})
    assert (reply.json()["model"], reply.json()["version"], reply.json()["digest"]) == ("mails", "1", digest)
    assert (reply.headers["x-cloze-model"], reply.headers["x-cloze-version"]) == ("mails", "1")
    server.process.send_signal(signal.SIGTERM)
    log = server.log_path.read_text()
    assert "charged" not in log


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--digest", "sha256:" + "a" * 64], ExitCode.ARTIFACT_INVALID, "DigestMismatch"),
        (["--threads", "none"], ExitCode.CONFIGURATION, "ConfigurationInvalid"),
    ],
)
def test_a_fatal_error_leaves_its_reason_for_the_operator(
    artifacts: Any, start_server: Any, arguments: list[str], code: ExitCode, reason: str
) -> None:
    """Exit code and one line of JSON in the termination log."""
    server = start_server("--model", str(artifacts(Task.SEQUENCE_CLASSIFICATION).folder), *arguments)
    assert server.process.wait(30) == code
    left = json.loads(server.termination_log.read_text())
    assert (left["reason"], left["exit_code"]) == (reason, int(code))
    assert left["message"]


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    """The same check for artifacts that nobody downloaded."""
    (tmp_path / "x").touch()
    with pytest.raises(FatalError, match=MANIFEST_FILE):
        open_folder(tmp_path, None)


def test_a_folder_that_was_never_imported_says_how_to(tmp_path: Path) -> None:
    """Instead of that a file of ours is missing."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FatalError, match=f"cloze-train import {tmp_path} --task") as error:
        open_folder(tmp_path, None)
    assert (error.value.code, error.value.reason) == (ExitCode.ARTIFACT_INVALID, "NotImported")
