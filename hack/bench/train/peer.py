"""The peer's environment, and how scripts of either side are run."""

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from servers import CACHE, uv

PEERS = Path(__file__).parent / "peers"


def peer_python() -> str:
    """The interpreter of the peer's environment, made when it is missing: our torch and transformers, and more.

    Both sides run on the same kernels then.
    """
    pins = PEERS / "transformers.txt"
    folder = CACHE / f"transformers-{hashlib.sha256(pins.read_bytes()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing transformers into {folder}", file=sys.stderr, flush=True)
        subprocess.run([uv(), "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        install = [uv(), "pip", "install", "--quiet", "--no-deps", "--python", str(python), "-r", str(pins)]
        subprocess.run(install, check=True)
        (own,) = folder.glob("lib/python*/site-packages")
        (own / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        (folder / "complete").touch()
    return str(python)


def call(python: str, script: Path, plan: dict[str, Any], threads: int, **variables: str) -> dict[str, Any]:
    """Run one of the scripts, with more variables in its environment."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"} | variables
    with tempfile.TemporaryDirectory() as scratch:
        given, result = Path(scratch, "plan.json"), Path(scratch, "result.json")
        given.write_text(json.dumps({**plan, "scratch": f"{scratch}/scratch"}), encoding="utf-8")
        done = subprocess.run(
            [python, str(script), str(given), str(result)], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{script.name} failed:\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found
