"""Real text of this machine, and a real MLflow server."""

import importlib.util
import os
import pydoc
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MODULES = ("argparse", "logging", "subprocess", "pathlib", "unittest", "datetime", "decimal")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation of some of Python's modules: real English, some 400 kB."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    pages = (pydoc.render_doc(name, renderer=pydoc.plaintext) for name in MODULES)
    # Addresses of objects are others in each process.
    path.write_text(re.sub("0x[0-9a-f]+", "0x", "\n\n".join(pages)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real MLflow server."""
    folder = tmp_path_factory.mktemp("mlflow")
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
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert time.monotonic() < deadline, "MLflow didn't start"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="session")
def tiny() -> Any:
    """The module of tiny models; tests can't import a file beside them."""
    specification = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # Its dataclasses look themselves up there.
    sys.modules["tiny"] = module
    specification.loader.exec_module(module)
    return module
