"""What a student's figures are held against: its teacher's on the same examples, sizes, and time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from cloze_api.manifest import ONNX_FILE
from cloze_api.task import Task
from cloze_trainer import latency, tasks
from cloze_trainer.data.examples import Row
from cloze_trainer.latency import Timed
from cloze_trainer.tasks.kind import Scored

TEACHER: Final = "teacher_"
_SIZE: Final = "parameters"
_SHARE: Final = f"{TEACHER}share"


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

    student, teacher: folders of artifacts. asked: inputs of each folder's graph, and last its output.
    """
    graphs = {folder: Timed(folder / ONNX_FILE, asked[folder][:-1], asked[folder][-1]) for folder in (student, teacher)}
    found = latency.milliseconds(graphs, rows, torch.get_num_threads())
    ours, theirs = found[student], found[teacher]
    return {"latency_ms": ours, f"{TEACHER}latency_ms": theirs, f"{TEACHER}speedup": theirs / max(ours, 1e-9)}
