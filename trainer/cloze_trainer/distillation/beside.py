"""What a student's figures are held against: its teacher's on the same examples, sizes, and time."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import onnxruntime
import torch

from cloze_api.manifest import ONNX_FILE
from cloze_api.task import Task
from cloze_trainer import tasks
from cloze_trainer.data.examples import Row
from cloze_trainer.export import INPUTS
from cloze_trainer.tasks.kind import Scored

TEACHER: Final = "teacher_"
_SIZE: Final = "parameters"
_SHARE: Final = f"{TEACHER}share"
_ROUNDS = 3


def figure_names(task: Task, labels: Sequence[str]) -> list[str]:
    """The figures of `figures`, which gates may be on."""
    told, _ = tasks.of(task).figure_names(labels)
    return [*(f"{TEACHER}{name}" for name in told), _SHARE, _SIZE, f"{TEACHER}{_SIZE}"]


def figures(
    student: Scored, teacher: Scored, labels: Sequence[str], *, task: Task, sizes: tuple[int, int]
) -> dict[str, float]:
    """`teacher_accuracy` and so on; `teacher_share`, how much of the teacher's main figure the student reaches.

    sizes: numbers of the student's and the teacher's weights.
    """
    kind = tasks.of(task)
    ours, theirs = (kind.statistics(scores, labels) for scores in (student, teacher))
    main = kind.main_of(theirs)
    found = {f"{TEACHER}{name}": each.figure for name, each in theirs.items()}
    found[_SHARE] = ours[main].figure / max(theirs[main].figure, 1e-9)
    return found | {_SIZE: float(sizes[0]), f"{TEACHER}{_SIZE}": float(sizes[1])}


def latencies(
    student: Path, teacher: Path, rows: Sequence[Row], asked: Mapping[Path, Sequence[str]]
) -> dict[str, float]:
    """Milliseconds that the fp32 graphs take for one text, median over texts, on as many threads as torch has.

    student, teacher: folders of artifacts. asked: inputs of each folder's graph, and last its output. Both take turns,
    so that a machine that slows down does so for both.
    """
    sessions = {folder: _session(folder) for folder in (student, teacher)}
    seconds: dict[Path, list[float]] = {folder: [] for folder in sessions}
    for turn in range(_ROUNDS + 1):
        for row in rows:
            ids_1T = row.ids[None]
            given = dict(zip(INPUTS, (ids_1T, np.ones_like(ids_1T), np.zeros_like(ids_1T)), strict=True))
            for folder, session in sessions.items():
                *inputs, output = asked[folder]
                feed = {name: given[name] for name in inputs}
                began = time.perf_counter()
                session.run([output], feed)
                # The first turn has the runtime find its memory.
                if turn:
                    seconds[folder].append(time.perf_counter() - began)
    ours, theirs = (1000 * median(seconds[folder]) for folder in (student, teacher))
    return {"latency_ms": ours, f"{TEACHER}latency_ms": theirs, f"{TEACHER}speedup": theirs / max(ours, 1e-9)}


def _session(folder: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(folder / ONNX_FILE), options, providers=["CPUExecutionProvider"])
