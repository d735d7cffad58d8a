"""Whole runs of `cloze-train` as processes, and small jobs for them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import warm

from cloze_api.manifest import verify

COMMAND = Path(sys.executable).with_name("cloze-train")


def command(folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    """The exit code of `cloze-train` with these words, and what it said."""
    own = os.environ | {"CLOZE_TERMINATION_LOG": str(folder / "termination"), "MLFLOW_TRACKING_URI": ""} | environment
    with (folder / "log").open("w") as log:
        code = warm.start([str(COMMAND), *words], own, log).wait(240)
    return code, (folder / "log").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Trainer:
    """Runs `cloze-train` on a job, in a folder of its own."""

    folder: Path
    environment: dict[str, str]
    cold: bool = False
    """Whether the command is started as it is anywhere, rather than as a fork of what has imported it."""

    def start(self, job: dict[str, Any]) -> warm.Process | subprocess.Popen[bytes]:
        """The process, which leads a session of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        words = [str(COMMAND), "run", str(file)]
        environment = (
            # Another test's MLflow client leaves its server's address in this process's environment.
            {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
            # No registry, where a test asks for none.
            | {"CLOZE_WORKSPACE": str(self.folder / "workspace"), "PYTHONWARNINGS": "ignore", "MLFLOW_TRACKING_URI": ""}
            | self.environment
            | {"CLOZE_TERMINATION_LOG": str(self.folder / "termination")}
        )
        with (self.folder / "log").open("a") as log:
            if not self.cold:
                return warm.start(words, environment, log)
            return subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)

    def run(self, job: dict[str, Any]) -> int:
        """The exit code of a whole run."""
        process = self.start(job)
        try:
            return process.wait(timeout=240)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill every process of the run, and those that they start meanwhile."""
        while self._signal(signal.SIGKILL, lambda _: True):
            pass

    def signal_rank(self, rank: int, number: signal.Signals) -> None:
        """Send a rank of the run a signal."""
        (_,) = self._signal(number, lambda name: name == f"cloze-rank-{rank}")

    def _signal(self, number: signal.Signals, chosen: Callable[[str], bool]) -> list[int]:
        """Send a signal to processes of the run by their names, and tell which they were.

        The ranks lead sessions of their own: all that write to the run's log are of the run.
        """
        log, signalled = (self.folder / "log").resolve(), []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if (entry / "fd" / "2").readlink() == log and chosen((entry / "comm").read_text().strip()):
                    os.kill(int(entry.name), number)
                    signalled.append(int(entry.name))
            except OSError:
                continue  # it ended meanwhile, or isn't ours to look at
        return signalled

    @property
    def artifact(self) -> Path:
        return self.folder / "workspace" / "artifact"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    def _events(self, name: str) -> list[dict[str, Any]]:
        """What the log has of an event, but for the line that is being written."""
        try:
            lines = self.log.splitlines(keepends=True)
        except FileNotFoundError:
            return []
        events = [json.loads(line) for line in lines if line.startswith('{"time"') and line.endswith("}\n")]
        return [event for event in events if event["event"] == name]

    def resumed(self) -> int:
        """Step from which the newest start went on; 0 when none did."""
        return max((event["step"] for event in self._events("resumed")), default=0)

    @property
    def stages(self) -> list[str]:
        """What rank 0 was at, as often as it told."""
        return [event["stage"] for event in self._events("progress")]

    @property
    def outcome(self) -> dict[str, Any]:
        """The termination message."""
        outcome: dict[str, Any] = json.loads((self.folder / "termination").read_text(encoding="utf-8"))
        return outcome


def kill_after(
    trainer: Trainer,
    job: dict[str, Any],
    step: int,
    *,
    saving: bool = False,
    seconds: float = 0.0,
    where: str = "checkpoints",
) -> bool:
    """Start a run and kill all its processes once a checkpoint of at least this step is complete.

    saving: while the next one is being written. Whether it was. seconds: so much later, whatever happens then. where:
    the checkpoints' folder in the workspace.
    """
    folder = trainer.folder / "workspace" / where

    def reached() -> bool:
        newest = max((int(path.parent.name[5:]) for path in folder.glob("step-*/COMPLETE")), default=0)
        return newest >= step

    process = _until(trainer, job, reached)
    while saving and not list(folder.glob(".step-*.staging")):
        assert process.poll() is None, trainer.log
    _kill(trainer, process, seconds)
    return bool(list(folder.glob(".step-*.staging")))


def kill_in(trainer: Trainer, job: dict[str, Any], stage: str, *, seconds: float = 0.0) -> None:
    """Start a run and kill all its processes so long after a stage has begun; in its midst."""
    before = len(trainer.stages)
    process = _until(trainer, job, lambda: stage in trainer.stages[before:])
    _kill(trainer, process, seconds)
    assert trainer.stages[-1] == stage, trainer.log


def kill_once(trainer: Trainer, job: dict[str, Any], happened: Callable[[], bool]) -> None:
    """Start a run and kill all its processes once something has happened in it."""
    _kill(trainer, _until(trainer, job, happened), 0.0)


def _until(
    trainer: Trainer, job: dict[str, Any], happened: Callable[[], bool]
) -> warm.Process | subprocess.Popen[bytes]:
    """Start a run, and come back once something has happened in it."""
    process = trainer.start(job)
    deadline = time.monotonic() + 240
    while not happened():
        assert process.poll() is None, trainer.log
        assert time.monotonic() < deadline, trainer.log
        time.sleep(0.02)
    return process


def _kill(trainer: Trainer, process: warm.Process | subprocess.Popen[bytes], seconds: float) -> None:
    # No condition: the point is that nothing in particular has happened.
    time.sleep(seconds)
    trainer.kill()
    process.wait()


def pretrain(corpus: Path, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": "small", "namespace": "tests", "uid": "11111111-2222-3333-4444-555555555555"},
        "spec": {
            "corpus": [{"uri": f"file://{corpus}"}],
            "tokenizer": {"vocabSize": 800},
            "model": {"layers": 2, "hiddenSize": 32, "heads": 2, "intermediateSize": 64, "maxLength": 32},
            "optimization": {
                "steps": 60,
                "batchSequences": 8,
                "batchWarmup": {"fromSequences": 4, "steps": 20},
                "warmupSteps": 5,
                "learningRate": 2e-3,
            },
            "topology": {"processesPerNode": 2},
            "checkpoint": {"everySteps": 7},
            "evaluation": {"heldOutFraction": 0.1},
            "registry": {"name": "small"},
            **spec,
        },
    }


def weights(trainer: Trainer) -> str:
    """SHA-256 of the artifact's weights."""
    return verify(trainer.artifact).files["model.safetensors"]


def versions(mlflow: str, name: str) -> list[dict[str, Any]]:
    reply = httpx.get(f"{mlflow}/api/2.0/mlflow/model-versions/search", params={"filter": f"name='{name}'"})
    found: list[dict[str, Any]] = reply.json().get("model_versions", [])
    return found


SPAM = [("win a free prize now", "spam"), ("cheap offer click here", "spam")]
HAM = [("the report is attached", "ham"), ("lunch at noon", "ham")]


def finetune(folder: Path, **spec: Any) -> dict[str, Any]:
    rows = [{"text": text, "label": label} for text, label in SPAM + HAM]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 8), encoding="utf-8")
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "filter", "namespace": "tests", "uid": "99999999-2222-3333-4444-555555555555"},
        "spec": {
            "base": {"model": {"name": "base", "version": "1"}},
            "task": "sequence-classification",
            "dataset": {"train": f"file://{folder}/train.jsonl", "test": f"file://{folder}/test.jsonl"},
            "optimization": {"epochs": 6, "batchSequences": 4, "learningRate": 5e-3},
            "registry": {"name": "filter"},
            **spec,
        },
    }
