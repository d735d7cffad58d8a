"""Graphs of one model in several precisions, held to fp32 on the same examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from cloze_api.precision import Measured, Precision
from cloze_api.task import Problem, Task
from cloze_trainer.data.examples import Batch, Row
from cloze_trainer.data.labelled import IGNORED
from cloze_trainer.export import INPUTS
from cloze_trainer.quality.scores import correlation, macro_f1

Array = npt.NDArray[Any]

METRICS: Final = {
    Task.SEQUENCE_CLASSIFICATION: "accuracy",
    Task.TOKEN_CLASSIFICATION: "macro_f1",
    Task.FILL_MASK: "accuracy",
    Task.QUESTION_ANSWERING: "agreement",
    Task.EMBEDDING: "cosine",
}
_PROBLEM_METRICS: Final = {Problem.MULTI_LABEL: "agreement", Problem.REGRESSION: "correlation"}
"""What a precision is judged by. Against fp32 alone: `agreement` on where answers begin and end, or which of several
labels a text has, `cosine` between vectors, `correlation` between numbers."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What graphs are tried on. inputs, output: the graphs'. labels: of a classifier. examples: 0 for made-up texts."""

    task: Task
    inputs: Sequence[str]
    output: str
    labels: Sequence[str]
    batches: Sequence[Batch]
    examples: int
    problem: Problem = Problem.SINGLE_LABEL

    @property
    def metric(self) -> str:
        """What a precision is judged by."""
        return _PROBLEM_METRICS.get(self.problem, METRICS[self.task])

    def texts(self, most: int) -> list[Row]:
        """At most so many of them, each without padding, from all over their lengths."""
        rows = [
            Row(ids_T[mask_T == 1], segments_T[mask_T == 1])
            for batch in self.batches
            for ids_T, mask_T, segments_T in zip(batch.ids_BT, batch.mask_BT, batch.segments_BT, strict=True)
        ]
        return rows[:: -(-len(rows) // most)]


def measure(trial: Trial, graphs: Mapping[Precision, Path], threads: int) -> dict[Precision, Measured]:
    """Run all graphs, of which one is fp32; the others' figures. Raises what ONNX Runtime raises."""
    sessions = {precision: _session(path, threads) for precision, path in graphs.items()}
    largest = 1.0
    differences = dict.fromkeys(graphs, 0.0)
    answers: dict[Precision, list[Array]] = {precision: [] for precision in graphs}
    for batch in trial.batches:
        given = dict(zip(INPUTS, (batch.ids_BT, batch.mask_BT, batch.segments_BT), strict=True))
        feed = {name: given[name] for name in trial.inputs}
        outputs = {precision: session.run([trial.output], feed)[0] for precision, session in sessions.items()}
        reference = _seen(trial.task, outputs[Precision.FP32], batch)
        largest = max(largest, float(np.abs(reference).max()))
        for precision, output in outputs.items():
            difference = float(np.abs(_seen(trial.task, output, batch) - reference).max())
            # What isn't a number differs most.
            differences[precision] = max(differences[precision], difference if difference >= 0 else np.inf)
            if trial.examples:
                answers[precision].append(_answers(trial, output, batch, outputs[Precision.FP32]))
    found = {}
    for precision in graphs.keys() - {Precision.FP32}:
        measured = Measured(difference=min(differences[precision] / largest, np.finfo(np.float32).max))
        if trial.examples:
            figures = {
                "fp32": _metric(trial, answers[Precision.FP32], answers[Precision.FP32]),
                "value": _metric(trial, answers[precision], answers[Precision.FP32]),
            }
            measured = measured.model_copy(update={"metric": trial.metric, "examples": trial.examples, **figures})
        found[precision] = measured
    return found


def _session(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False
    # Each graph has threads, of which only one graph's have work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # It warns of what it does itself.
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _seen(task: Task, output: Array, batch: Batch) -> Array:
    """What isn't padding."""
    return output if task in (Task.SEQUENCE_CLASSIFICATION, Task.EMBEDDING) else output[batch.mask_BT == 1]


def _answers(trial: Trial, output: Array, batch: Batch, reference: Array) -> Array:
    """What a graph says of each example or place that counts."""
    if trial.problem is Problem.MULTI_LABEL:
        return np.asarray(((output >= 0) == (reference >= 0)).mean(-1))
    if trial.problem is Problem.REGRESSION:
        return np.stack([output[:, 0], reference[:, 0]])
    match trial.task:
        case Task.EMBEDDING:
            lengths_B = np.linalg.norm(output, axis=-1) * np.linalg.norm(reference, axis=-1)
            cosines_B: Array = (output * reference).sum(-1) / np.maximum(lengths_B, np.finfo(np.float32).tiny)
            return cosines_B
        case Task.QUESTION_ANSWERING:
            visible_BT2 = np.where(batch.mask_BT[:, :, None] == 1, output, -np.inf)
            places: Array = visible_BT2.argmax(1).reshape(-1)
            return places
        case _:
            assert batch.truth is not None, "the examples of this task have labels"
            counted = batch.truth != IGNORED
            return np.stack([output.argmax(-1)[counted], batch.truth[counted]])


def _metric(trial: Trial, answers: Sequence[Array], reference: Sequence[Array]) -> float:
    """The task's metric of what a graph said."""
    joined = np.concatenate(answers, axis=-1)
    if trial.problem is Problem.MULTI_LABEL:
        return float(joined.mean())
    if trial.problem is Problem.REGRESSION:
        return correlation(*joined.astype(np.float64)).figure
    match trial.task:
        case Task.EMBEDDING:
            return float(joined.mean())
        case Task.QUESTION_ANSWERING:
            return float((joined == np.concatenate(reference)).mean())
        case Task.TOKEN_CLASSIFICATION:
            return macro_f1(joined[1], joined[0], len(trial.labels))
        case _:
            return float((joined[0] == joined[1]).mean())
