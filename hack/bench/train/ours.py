"""Our loop, as a job's only rank runs it: `ours.py PLAN RESULT`. Prepares data, too, and scores weights."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "18399"}
os.environ["MLFLOW_TRACKING_URI"] = ""

import torch
from safetensors.torch import load_file
from work import write_documents

from cloze_api.pretrain import PretrainJobSpec
from cloze_trainer.attendance import Attendance
from cloze_trainer.checkpoint import Checkpoints
from cloze_trainer.encoders.names import theirs
from cloze_trainer.gang import Gang
from cloze_trainer.loop import Surroundings, train
from cloze_trainer.origin import find_all
from cloze_trainer.pretrain import Pretraining
from cloze_trainer.profiling import Profiler
from cloze_trainer.progress import ProgressFile
from cloze_trainer.run import open_run
from cloze_trainer.stopping import StopSignal
from cloze_trainer.tracking import Silent
from cloze_trainer.worker import initial_model, open_workload


class Recorder(ProgressFile):
    """Keeps when each step ended, and the real tokens until then."""

    def __init__(self) -> None:
        super().__init__(None)
        self.steps: list[tuple[float, int]] = []

    def step(self, step: int, total_steps: int, *, loss: float | None, tokens: int) -> None:  # noqa: ARG002
        self.steps.append((time.perf_counter(), tokens))


def main(plan: dict[str, Any]) -> dict[str, Any]:
    """Train, or score the weights in `weights`."""
    folder = Path(plan["folder"])
    os.environ["CLOZE_WORKSPACE"] = str(folder / "workspace")
    run = open_run(folder / "job.json")
    spec = run.job.spec
    assert isinstance(spec, PretrainJobSpec)
    gang = Gang(spec.topology.threads_per_process, spec.failure_policy.stuck_seconds)
    progress = Recorder()
    workload, _ = open_workload(run, gang, progress)
    assert isinstance(workload, Pretraining)
    workload.attention = gang.attention(
        spec.optimization.arithmetic, workload.config.hidden_size // workload.config.heads
    )
    model = initial_model(workload, spec.optimization.seed)
    result: dict[str, Any] = {"tokenizer": str(workload.tokenizer_folder), "vocab": workload.config.vocab_size}
    if plan.get("documents"):
        write_documents(folder / "documents.jsonl", spec, find_all(run))
    if weights := plan.get("weights"):
        known = load_file(weights)
        renamed = {name: theirs(name, workload.config.architecture, workload.task) for name in model.state_dict()}
        model.load_state_dict({name: known[other] for name, other in renamed.items()})
    elif plan.get("train"):
        around = Surroundings(
            gang=gang,
            checkpoints=Checkpoints(Path(plan["scratch"]), 1, workload.origin),
            progress=progress,
            tracker=Silent(),
            stop=StopSignal(),
            attendance=Attendance(gang, spec.failure_policy.stuck_seconds, _fail),
            profiler=Profiler(spec.profile, folder / "profile", Silent()),
        )
        train(model, workload, spec.optimization, spec.checkpoint.every_steps, around)
        result["steps"], result["flops_per_token"] = progress.steps, workload.flops_per_token
        result["peak_flops"] = gang.peak_flops(spec.optimization.arithmetic)
        result["memory_bytes"] = gang.memory_bytes()
        result["attention"] = str(workload.attention)
    if plan.get("evaluate"):
        result["evaluation"] = workload.evaluate(model, gang)
    gang.leave()
    return result


def _fail(error: BaseException) -> None:
    sys.exit(str(error))


if __name__ == "__main__":
    torch.set_num_interop_threads(1)
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))), encoding="utf-8")
