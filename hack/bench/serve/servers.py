"""Who is measured: ours and each peer, how it is started, asked and understood."""

import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workload import MAX_LENGTH, ROOT

PEERS = Path(__file__).parent / "peers"
CACHE = Path(os.environ.get("CLOZE_BENCH_CACHE", Path.home() / ".cache" / "cloze" / "bench"))
PORT = 18_300

Command = Callable[[Path, Path], list[str]]
"""From the artifact and a folder for scratch files to what is started."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server. answer: a reply's likeliest label and its probability. packages: what has to be installed for it.
    python: the interpreter that has them.
    """

    name: str
    packages: tuple[str, ...]
    python: Callable[[], str] = lambda: sys.executable
    command: Command
    path: str
    body: Callable[[str], dict[str, Any]]
    answer: Callable[[Any], tuple[str, float]]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/"
    prepare: Command | None = None


def uv() -> str:
    """The installer: of `make`, else of the PATH."""
    return os.environ.get("UV", "uv")


def interpreter(peer: str, python: str = sys.executable) -> str:
    """Python of a peer's environment, which is made from its pins when it is missing.

    python: the interpreter, or which versions will do.
    """
    pins = PEERS / f"{peer}.txt"
    folder = CACHE / f"{peer}-{hashlib.sha256(pins.read_bytes() + python.encode()).hexdigest()[:12]}"
    if not (folder / "complete").exists():
        print(f"installing {peer} into {folder}", file=sys.stderr, flush=True)
        subprocess.run([uv(), "venv", "--quiet", "--clear", "--python", python, str(folder)], check=True)
        install = [uv(), "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), "-r", str(pins)]
        subprocess.run(install, check=True)
        (folder / "complete").touch()
    return str(folder / "bin" / "python")


def ours(
    graph_threads: int = 2, *, parallel: int = 1, name: str = "", model: str = "", flags: tuple[str, ...] = ()
) -> Server:
    """Cloze's server, from this checkout. model: another one than the artifact."""
    return Server(
        packages=("cloze-mlops[serve]",),
        name=name or (f"cloze, {parallel} batches at the same time" if parallel > 1 else "cloze"),
        command=lambda artifact, _: [
            *(sys.executable, "-m", "cloze_server.main", "--model", model or str(artifact), "--host", "127.0.0.1"),
            *("--port", str(PORT), "--threads", str(graph_threads), "--parallel-batches", str(parallel)),
            *("--lame-duck-seconds", "0", *flags),
        ],
        path="/v1/classify",
        body=lambda text: {"inputs": text, "top_k": 1},
        answer=lambda reply: (
            reply["results"][0]["predictions"][0]["label"],
            reply["results"][0]["predictions"][0]["score"],
        ),
        environment={"CLOZE_TERMINATION_LOG": os.devnull, "CLOZE_LOG_LEVEL": "warning"},
        ready="/readyz",
    )


def _plain(reply: Any) -> tuple[str, float]:
    answer = reply[0] if isinstance(reply, list) else reply
    return str(answer["label"]), float(answer["score"])


def starlette() -> Server:
    """An echo that does nothing else."""
    return Server(
        name="bare Starlette echo",
        packages=("starlette", "uvicorn"),
        command=lambda *_: [
            *(sys.executable, "-m", "uvicorn", "--app-dir", str(PEERS), "--port", str(PORT)),
            *("--log-level", "error", "--no-access-log", "starlette_app:app"),
        ],
        path="/echo",
        body=lambda text: {"inputs": text},
        answer=lambda _: ("", 0.0),
    )


def fastapi(_: int = 0) -> Server:
    """A transformers pipeline in FastAPI."""
    return Server(
        name="fastapi+pipeline",
        packages=("fastapi", "uvicorn", "torch", "transformers"),
        command=lambda *_: [
            *(sys.executable, "-m", "uvicorn", "--app-dir", str(PEERS), "--port", str(PORT)),
            *("--log-level", "error", "fastapi_app:app"),
        ],
        path="/predict",
        body=lambda text: {"text": text},
        answer=_plain,
        ready="/openapi.json",
    )


def litserve(batch: int = 32) -> Server:
    """LitServe. batch: 0 stands for two workers of one thread, each with one text at a time."""
    workers = {"BENCH_WORKERS": "2", "BENCH_THREADS": "1"} if batch == 0 else {}
    return Server(
        name=f"litserve batch {batch}" if batch else "litserve batch 1, 2 workers",
        packages=("litserve", "onnxruntime", "tokenizers"),
        python=lambda: interpreter("litserve"),
        command=lambda *_: [interpreter("litserve"), str(PEERS / "litserve_app.py"), str(PORT)],
        path="/predict",
        body=lambda text: {"text": text},
        answer=_plain,
        environment={"BENCH_BATCH": str(batch or 1), **workers},
        ready="/health",
    )


def bentoml(batch: int = 100) -> Server:
    """BentoML."""
    return Server(
        name=f"bentoml batch {batch}",
        packages=("bentoml", "onnxruntime", "tokenizers"),
        python=lambda: interpreter("bentoml"),
        command=lambda *_: [
            *(interpreter("bentoml"), "-m", "bentoml", "serve", "bentoml_app:Service", "--port", str(PORT)),
            *("--host", "127.0.0.1", "--working-dir", str(PEERS)),
        ],
        path="/predict",
        body=lambda text: {"texts": [text]},
        answer=_plain,
        environment={"BENCH_BATCH": str(batch), "BENTOML_DO_NOT_TRACK": "1"},
        ready="/readyz",
    )


def pytriton(batch: int = 32) -> Server:
    """Triton Inference Server through nvidia-pytriton."""

    def answer(reply: Any) -> tuple[str, float]:
        return _plain(json.loads(reply["outputs"][0]["data"][0]))

    # Its stub brings the interpreter of a 3.11 that is older than what newer standard libraries need.
    python = ">=3.11,<3.11.5"
    return Server(
        name=f"triton batch {batch}",
        packages=("nvidia-pytriton", "onnxruntime", "tokenizers"),
        python=lambda: interpreter("pytriton", python),
        command=lambda *_: [interpreter("pytriton", python), str(PEERS / "pytriton_app.py"), str(PORT)],
        path="/v2/models/classify/infer",
        body=lambda text: {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [text]}]},
        answer=answer,
        environment={"BENCH_BATCH": str(batch)},
        ready="/v2/models/classify/ready",
    )


def _linked(artifact: Path, folder: Path) -> Path:
    """An artifact laid out as Optimum expects it, which writes into its files."""
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "model.onnx").symlink_to(artifact / "model.onnx")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(artifact / name, folder)
    return folder


def infinity(batch: int = 32) -> Server:
    """Infinity, on onnxruntime through Optimum."""
    return Server(
        name=f"infinity batch {batch}",
        packages=("infinity-emb[server,optimum]",),
        python=lambda: interpreter("infinity"),
        command=lambda artifact, folder: [
            *(str(Path(interpreter("infinity")).with_name("infinity_emb")), "v2", "--engine", "optimum"),
            *(
                "--device",
                "cpu",
                "--model-id",
                str(_linked(artifact, folder / "model")),
                "--served-model-name",
                "bench",
            ),
            *("--batch-size", str(batch), "--host", "127.0.0.1", "--port", str(PORT), "--log-level", "error"),
            *("--no-model-warmup", "--no-bettertransformer"),
        ],
        path="/classify",
        body=lambda text: {"model": "bench", "input": [text]},
        answer=lambda reply: _plain(max(reply["data"][0], key=lambda each: each["score"])),
        environment={"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"},
        ready="/health",
    )


def mlflow(_: int = 0) -> Server:
    """`mlflow models serve`."""
    return Server(
        name="mlflow serve",
        packages=("mlflow", "onnxruntime", "tokenizers"),
        command=lambda _, folder: [
            *(sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--port", str(PORT)),
            *("--model-uri", str(folder / "model")),
        ],
        prepare=lambda _, folder: [sys.executable, str(PEERS / "mlflow_app.py"), str(folder / "model")],
        path="/invocations",
        body=lambda text: {"inputs": [text]},
        answer=lambda reply: _plain(reply["predictions"][0]),
        ready="/ping",
    )


PEER_SERVERS: dict[str, Callable[[int], Server]] = {
    "fastapi": fastapi,
    "litserve": litserve,
    "bentoml": bentoml,
    "triton": pytriton,
    "infinity": infinity,
    "mlflow": mlflow,
}
#: What each gets without a choice of ours: its dynamic batching as it comes.
DEFAULT_BATCH = {"fastapi": 0, "litserve": 32, "bentoml": 100, "triton": 32, "infinity": 32, "mlflow": 0}
#: Settings tried for the best of each.
SWEEP = {
    "fastapi": (0,),
    "litserve": (0, 1, 4, 32),
    "bentoml": (1, 4, 100),
    "triton": (1, 4, 32),
    "infinity": (1, 4, 32),
    "mlflow": (0,),
}


@contextmanager
def running(server: Server, artifact: Path, threads: int) -> Iterator[int]:
    """A server that answers; yields its process id. It is ended, with all that it started, afterwards."""
    # Triton's Python stub can't take a long path.
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as scratch:
        folder = Path(scratch)
        environment = os.environ | {
            "BENCH_ARTIFACT": str(artifact),
            "BENCH_THREADS": str(threads),
            "BENCH_MAX_LENGTH": str(MAX_LENGTH),
            "BENCH_SHORT_FOLDER": str(folder / "t"),
            "TOKENIZERS_PARALLELISM": "false",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            **server.environment,
        }
        if server.prepare:
            subprocess.run(server.prepare(artifact, folder), check=True, env=environment, capture_output=True)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                server.command(artifact, folder),
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            _await(process, server, folder / "log")
            yield process.pid
        finally:
            # Triton leads a group of its own, outlives what started it, and keeps its port.
            started = family(process.pid)[1:]
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for survivor in started:
                with suppress(ProcessLookupError):
                    os.kill(survivor, signal.SIGKILL)
            _await_free()


def family(process: int) -> list[int]:
    """A process and all that it started and that still run."""
    found, pending = [], [process]
    while pending:
        found.append(number := pending.pop())
        with suppress(OSError):
            for task in Path(f"/proc/{number}/task").iterdir():
                pending += [int(child) for child in (task / "children").read_text(encoding="ascii").split()]
    return found


def _await(process: "subprocess.Popen[bytes]", server: Server, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}{server.ready}", timeout=2).close()
            return
        time.sleep(0.05)
    raise SystemExit(f"{server.name} didn't start:\n{log.read_text(errors='replace')[-3000:]}")


def _await_free() -> None:
    """Until nobody listens any more; Triton does on three ports."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not any(_listens(port) for port in range(PORT, PORT + 3)):
            return
        time.sleep(0.1)
    raise SystemExit(f"port {PORT} is still in use")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def plan(server: Server, texts: list[str], tokens: list[int], **load: Any) -> dict[str, Any]:
    """What the generator is told."""
    return {
        "address": f"127.0.0.1:{PORT}",
        "path": server.path,
        "headers": {"content-type": "application/json"},
        "bodies": [base64.b64encode(json.dumps(server.body(text)).encode()).decode() for text in texts],
        "tokens": tokens,
        "warm_up_seconds": 2,
        **load,
    }
