"""What graphs take for one text on this machine."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeVar

import numpy as np
import onnxruntime

from cloze_trainer.data.examples import Row
from cloze_trainer.export import INPUTS

TEXTS: Final = 32
"""On how many texts times are taken."""
_ROUNDS = 3

Name = TypeVar("Name")


@dataclass(frozen=True, slots=True)
class Timed:
    """A graph, and what it takes and gives."""

    path: Path
    inputs: Sequence[str]
    output: str


def milliseconds(graphs: Mapping[Name, Timed], rows: Sequence[Row], threads: int) -> dict[Name, float]:
    """Of each graph for one text alone, median over texts. The graphs take turns, so that a machine that slows down
    does so for all.
    """
    sessions = {name: _session(each.path, threads) for name, each in graphs.items()}
    seconds: dict[Name, list[float]] = {name: [] for name in graphs}
    for turn in range(_ROUNDS + 1):
        for row in rows:
            ids_1T = row.ids[None]
            given = dict(zip(INPUTS, (ids_1T, np.ones_like(ids_1T), row.segments[None]), strict=True))
            for name, session in sessions.items():
                feed = {each: given[each] for each in graphs[name].inputs}
                began = time.perf_counter()
                session.run([graphs[name].output], feed)
                # The first turn has the runtime find its memory.
                if turn:
                    seconds[name].append(time.perf_counter() - began)
    return {name: 1000 * median(own) for name, own in seconds.items()}


def _session(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # It warns of what it does itself.
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
