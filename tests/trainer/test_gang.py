"""Two pods of a gang as two launchers on this machine: whoever is killed, the weights are the same."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cloze_api.manifest import verify
from cloze_api.progress import FINAL_EXIT_CODES

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


def job(corpus: Path) -> dict[str, Any]:
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": "gang", "namespace": "tests", "uid": "77777777-2222-3333-4444-555555555555"},
        "spec": {
            "corpus": [{"uri": f"file://{corpus}"}],
            "tokenizer": {"vocabSize": 500},
            "model": {"layers": 2, "hiddenSize": 32, "heads": 2, "intermediateSize": 64, "maxLength": 32},
            "optimization": {"steps": 200, "batchSequences": 8},
            "topology": {"nodes": 2},
            "checkpoint": {"everySteps": 5},
            "registry": {"name": "gang"},
        },
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Gang:
    """Two launchers that share a workspace, started again as Kubernetes would when they end for a passing reason."""

    folder: Path
    job: dict[str, Any]
    port: int = field(default_factory=free_port)
    processes: dict[int, subprocess.Popen[str]] = field(default_factory=dict)
    codes: dict[int, list[int]] = field(default_factory=lambda: {0: [], 1: []})

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    def start(self, index: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "job.json"
        file.write_text(json.dumps(self.job), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("cloze-train")), "run", str(file)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | {
            "CLOZE_WORKSPACE": str(self.workspace),
            "MLFLOW_TRACKING_URI": "",
            "CLOZE_RENDEZVOUS": f"127.0.0.1:{self.port}",
            "CLOZE_RENDEZVOUS_TIMEOUT_SECONDS": "60",
            "CLOZE_TERMINATION_LOG": str(self.folder / f"termination-{index}"),
            "JOB_COMPLETION_INDEX": str(index),
        }
        with (self.folder / f"log-{index}").open("a") as log:
            self.processes[index] = subprocess.Popen(
                [*command, "--progress-port", str(free_port())],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def log(self, index: int) -> str:
        return (self.folder / f"log-{index}").read_text(encoding="utf-8")

    def members(self, index: int) -> list[int]:
        """Processes of one pod, the launcher and its ranks, told by their environment."""
        marks = (f"CLOZE_WORKSPACE={self.workspace}\0".encode(), f"JOB_COMPLETION_INDEX={index}\0".encode())
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue  # it ended meanwhile, or isn't ours to look at
            if all(mark in environment for mark in marks):
                found.append(int(entry.name))
        return found

    def kill(self, index: int, *, launcher: bool = True) -> None:
        """Kill a pod, or its rank alone."""
        for number in self.members(index):
            if launcher or number != self.processes[index].pid:
                os.kill(number, signal.SIGKILL)

    def newest(self) -> int:
        markers = (self.workspace / "checkpoints").glob("step-*/COMPLETE")
        return max((int(path.parent.name[5:]) for path in markers), default=0)

    def wait_for(self, step: int) -> None:
        deadline = time.monotonic() + 240
        while self.newest() < step:
            assert all(process.poll() is None for process in self.processes.values()), self.log(0) + self.log(1)
            assert time.monotonic() < deadline, self.log(0) + self.log(1)
            time.sleep(0.02)

    def finish(self) -> None:
        """Wait for both pods' success, starting again what ended for a passing reason."""
        deadline = time.monotonic() + 400
        while any(0 not in codes for codes in self.codes.values()):
            assert time.monotonic() < deadline, self.log(0) + self.log(1)
            for index, process in list(self.processes.items()):
                code = process.poll()
                if code is None or 0 in self.codes[index]:
                    continue
                self.codes[index].append(code)
                assert code not in FINAL_EXIT_CODES, self.log(index)
                if code:
                    self.kill(index)
                    self.start(index)
            time.sleep(0.1)

    def run(self) -> None:
        for index in (0, 1):
            self.start(index)

    def stop(self) -> None:
        for index in (0, 1):
            self.kill(index)

    @property
    def weights(self) -> str:
        return verify(self.workspace / "artifact").files["model.safetensors"]


@pytest.fixture(scope="module")
def steady(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of the gang that nothing happened to."""
    gang = Gang(tmp_path_factory.mktemp("steady"), job(corpus))
    try:
        gang.run()
        gang.finish()
        assert gang.codes == {0: [0], 1: [0]}
        return gang.weights
    finally:
        gang.stop()


@pytest.mark.parametrize(("victim", "launcher"), [(1, False), (1, True), (0, True)], ids=["rank", "agent", "host"])
def test_a_killed_member_costs_time_and_no_bit(
    corpus: Path, steady: str, tmp_path: Path, victim: int, launcher: bool
) -> None:
    """A rank, a whole pod, or the pod that hosts the rendezvous, killed in the middle of the training."""
    gang = Gang(tmp_path, job(corpus))
    try:
        gang.run()
        gang.wait_for(20)
        gang.kill(victim, launcher=launcher)
        gang.finish()
    finally:
        gang.stop()
    assert gang.codes[victim][0] != 0
    assert '"event": "resumed"' in gang.log(0)
    assert gang.weights == steady
