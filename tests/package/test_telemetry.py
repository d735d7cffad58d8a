"""Nothing that we import tells anybody of its use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("module", ["cloze_server.backend", "cloze_trainer.export"])
def test_importing_what_runs_models_leaves_nothing_at_home(module: str, tmp_path: Path) -> None:
    """ONNX Runtime's telemetry keeps a database there, and a thread that sends."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    # The server's imports it when it is needed.
    subprocess.run(
        [sys.executable, "-c", f"import {module}, onnxruntime"], env=environment | {"HOME": str(tmp_path)}, check=True
    )
    assert list(tmp_path.iterdir()) == []
