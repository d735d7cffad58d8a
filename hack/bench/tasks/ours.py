"""One fine-tuning of ours, as a job's only rank runs it, without a registry: `ours.py PLAN RESULT`.

The plan: `folder` with `job.json`; `teacher`, an artifact. With `graphs`, artifacts' graphs are timed instead.
"""

import json
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "18399"}
os.environ["MLFLOW_TRACKING_URI"] = ""

import numpy as np
import onnxruntime
import torch

from cloze_api.finetune import FineTuneJobSpec
from cloze_api.manifest import verify
from cloze_api.pretrained import PretrainedVersion
from cloze_trainer import tasks, worker
from cloze_trainer.data import labelled, tokenizer
from cloze_trainer.distillation import teacher
from cloze_trainer.distillation.teacher import Teacher, open_teacher
from cloze_trainer.export import INPUTS
from cloze_trainer.gang import Gang
from cloze_trainer.progress import ProgressFile
from cloze_trainer.run import Run, open_run
from cloze_trainer.stopping import StopSignal


class Recorder(ProgressFile):
    """Keeps when each step ended."""

    def __init__(self) -> None:
        super().__init__(None)
        self.steps: list[float] = []

    def step(self, step: int, total_steps: int, *, loss: float | None, tokens: int) -> None:  # noqa: ARG002
        self.steps.append(time.perf_counter())


def main(plan: dict[str, Any]) -> dict[str, Any]:
    """The figures of the artifact, and the seconds from the first step's begin to the last one's end."""
    if graphs := plan.get("graphs"):
        return timed([Path(graph) for graph in graphs], Path(plan["test"]), plan["threads"])
    folder = Path(plan["folder"])
    (folder / "workspace").mkdir()
    os.environ["CLOZE_WORKSPACE"] = str(folder / "workspace")
    run = open_run(folder / "job.json")
    spec = run.job.spec
    assert isinstance(spec, FineTuneJobSpec)

    # A job gets it from the registry, which has no part in what is measured.
    def taught(run: Run, asked: PretrainedVersion) -> Teacher:  # noqa: ARG001 - as it is called
        return open_teacher(Path(plan["teacher"]), "teacher/1", None)

    teacher.find = taught
    gang = Gang(spec.topology.threads_per_process, spec.failure_policy.stuck_seconds)
    progress = Recorder()
    worker.produce(run, gang, StopSignal(), progress, _fail)
    gang.leave()
    return {"figures": verify(run.artifact).evaluation, "seconds": progress.steps[-1] - progress.steps[0]}


def _fail(error: BaseException) -> None:
    sys.exit(str(error))


def timed(graphs: list[Path], test: Path, threads: int) -> dict[str, Any]:
    """Seconds that each graph takes for the test texts, one at a time, all in turn."""
    folder = graphs[0].parent
    manifest = verify(folder)
    read = labelled.tokenize(
        tasks.of(manifest.task, manifest.problem).read([test])[:200],
        manifest.labels,
        tokenizer.read(folder),
        task=manifest.task,
        max_length=manifest.limits.max_length,
        special=manifest.special_tokens,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = [onnxruntime.InferenceSession(str(graph), options) for graph in graphs]
    seconds: list[list[float]] = [[] for _ in graphs]
    for ids in read.ids:
        given = dict(zip(INPUTS, (ids[None], np.ones_like(ids)[None], np.zeros_like(ids)[None]), strict=True))
        for session, spent in zip(sessions, seconds, strict=True):
            feed = {each.name: given[each.name] for each in session.get_inputs()}
            session.run(None, feed)
            began = time.perf_counter()
            session.run(None, feed)
            spent.append(time.perf_counter() - began)
    return {"milliseconds": [1000 * median(each) for each in seconds]}


if __name__ == "__main__":
    torch.set_num_interop_threads(1)
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))), encoding="utf-8")
