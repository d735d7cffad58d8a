"""Graphs of one model in several precisions, held to fp32 on the same examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from cloze_api.entities import Scheme
from cloze_api.precision import Measured, Precision, Slice
from cloze_api.task import Problem, Task
from cloze_trainer.data.examples import Batch, Row
from cloze_trainer.data.labelled import IGNORED
from cloze_trainer.export import INPUTS
from cloze_trainer.quality import chance
from cloze_trainer.quality.scores import ROUNDING, Floats, Statistic, f1_of, macro_f1_of, ratio_of
from cloze_trainer.quality.spans import Window, best_span

Array = npt.NDArray[Any]

METRICS: Final = {
    Task.SEQUENCE_CLASSIFICATION: "accuracy",
    Task.TOKEN_CLASSIFICATION: "macro_f1",
    Task.FILL_MASK: "accuracy",
    Task.QUESTION_ANSWERING: "span_f1",
    Task.EMBEDDING: "cosine",
}
_PROBLEM_METRICS: Final = {Problem.MULTI_LABEL: "micro_f1", Problem.REGRESSION: "r2"}
"""What a precision is judged by. `micro_f1` is of the labels that texts have, or, where nobody says which, of those
that fp32 gives them. Against fp32 alone are `span_f1` of tokens in answers, `cosine` of vectors and `r2` of numbers."""

_ENTITIES: Final = "entity_f1"
"""Of words whose labels mark entities, as the evaluation has it."""

_CONFIDENCE: Final = 0.95
"""That a slice's loss isn't chance."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What graphs are tried on.

    inputs, output: the graphs'. labels: of a classifier. examples: 0 for made-up texts. slices: those that each
    precision is held to fp32 on. beside: more examples of these, which the metric of all isn't of.
    """

    task: Task
    inputs: Sequence[str]
    output: str
    labels: Sequence[str]
    batches: Sequence[Batch]
    examples: int
    problem: Problem = Problem.SINGLE_LABEL
    slices: Sequence[str] = ()
    beside: Sequence[Batch] = ()

    @property
    def metric(self) -> str:
        """What a precision is judged by."""
        if self.task is Task.TOKEN_CLASSIFICATION and Scheme(self.labels).joins:
            return _ENTITIES
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
    for batch in (*trial.batches, *trial.beside):
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
    statistics = {precision: _statistic(trial, said) for precision, said in answers.items()} if trial.examples else {}
    found = {}
    for precision in graphs.keys() - {Precision.FP32}:
        measured = Measured(difference=min(differences[precision] / largest, np.finfo(np.float32).max))
        if statistics:
            figures = _figures(trial, statistics[precision], statistics[Precision.FP32])
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
    """What the metric is of: a row of sums for each example, or for numbers a graph's and fp32's."""
    if trial.problem is Problem.MULTI_LABEL:
        return _marked(output >= 0, reference >= 0 if batch.truth is None else batch.truth == 1)
    if trial.problem is Problem.REGRESSION:
        return np.stack([output[:, 0], reference[:, 0]], axis=-1)
    match trial.task:
        case Task.EMBEDDING:
            lengths_B = np.linalg.norm(output, axis=-1) * np.linalg.norm(reference, axis=-1)
            return _counted((output * reference).sum(-1) / np.maximum(lengths_B, np.finfo(np.float32).tiny))
        case Task.QUESTION_ANSWERING:
            return _marked(_spans(output, batch), _spans(reference, batch))
        case _:
            assert batch.truth is not None, "the examples of this task have labels"
            counted, predicted = batch.truth != IGNORED, output.argmax(-1)
            hits = counted & (predicted == batch.truth)
            if trial.task is not Task.TOKEN_CLASSIFICATION:
                return np.stack([each.reshape(len(hits), -1).sum(-1) for each in (hits, counted)], axis=-1)
            if trial.metric == _ENTITIES:
                return _entities(predicted, batch.truth, counted, trial.labels)
            classes = len(trial.labels)
            parts = [(predicted, hits), (predicted, counted), (batch.truth, counted)]
            return np.concatenate([_by_class(each, chosen, classes) for each, chosen in parts], axis=-1)


def _counted(values_B: Array) -> Array:
    """Values, of which there is one for each example."""
    return np.stack([values_B, np.ones_like(values_B)], axis=-1)


def _marked(said: Array, right: Array) -> Array:
    """How many labels or tokens of each example are rightly said, said, and right.

    Nearly all of them are neither said nor right: agreement on these would hide that a graph says nothing.
    """
    counts_B3: Array = np.stack([said & right, said, right], axis=1).sum(-1)
    return counts_B3


def _spans(output: Array, batch: Batch) -> npt.NDArray[np.bool_]:
    """Which tokens are each row's answer (B, T): none where it has none."""
    chosen_BT = np.zeros(batch.ids_BT.shape, np.bool_)
    for chosen_T, logits_T2, segments_T, mask_T in zip(
        *(chosen_BT, output, batch.segments_BT, batch.mask_BT), strict=True
    ):
        # What ends the row isn't the context's.
        (context,) = np.nonzero(segments_T[: mask_T.sum() - 1])
        window = Window(0, logits_T2[context], (float(logits_T2[0, 0]), float(logits_T2[0, 1])))
        if (span := best_span([window], range(len(context)))) is not None:
            chosen_T[context[span[0] : span[1] + 1]] = True
    return chosen_BT


def _by_class(classes_BT: Array, chosen_BT: Array, classes: int) -> Array:
    """How many of each example's chosen tokens are of each class."""
    flat = (np.arange(len(classes_BT))[:, None] * classes + classes_BT)[chosen_BT]
    return np.bincount(flat, minlength=len(classes_BT) * classes).reshape(-1, classes)


def _entities(predicted_BT: Array, truth_BT: Array, counted_BT: Array, labels: Sequence[str]) -> Array:
    """How many entities of each example are right, predicted, and there, (B, 3)."""
    named, scheme = np.array(labels, dtype=object), Scheme(labels)
    return np.array(
        [
            scheme.compare(named[predicted_T[counted_T]], named[truth_T[counted_T]])
            for predicted_T, truth_T, counted_T in zip(predicted_BT, truth_BT, counted_BT, strict=True)
        ]
    )


def _statistic(trial: Trial, answers: Sequence[Array]) -> Statistic:
    """The task's metric of what a graph said."""
    sums_EK = np.concatenate(answers).astype(np.float64)
    if trial.problem is Problem.REGRESSION:
        return _r2(sums_EK[:, 0], sums_EK[:, 1])
    values = {_ENTITIES: f1_of, "macro_f1": macro_f1_of, "micro_f1": _f1_of, "span_f1": _f1_of}
    return Statistic(sums_EK, values.get(trial.metric, ratio_of))


def _f1_of(sums: Floats) -> Floats:
    """1 where there is nothing and nothing is said: fp32 loses nothing there, and one that says something does."""
    return np.asarray(np.where(sums[..., 1] + sums[..., 2] > 0, f1_of(sums), 1.0))


def _r2(given_E: Floats, fp32_E: Floats) -> Statistic:
    """How much of the variance of fp32's numbers a graph's give: 1 where they are the same, 0 where they are no closer
    than the mean. In a slice, too, differences are held to the variance over all examples: its numbers may be alike.
    """
    # Of numbers that only rounding tells apart there is no less.
    spread = max(fp32_E.std(), ROUNDING * np.abs(fp32_E).max(), np.finfo(np.float32).tiny)
    return Statistic(_counted(1 - ((given_E - fp32_E) / spread) ** 2), lambda sums: np.maximum(ratio_of(sums), 0.0))


def _figures(trial: Trial, precision: Statistic, fp32: Statistic) -> dict[str, Any]:
    """The metric of the examples and of the slice that loses most."""
    slices = [own for batch in (*trial.batches, *trial.beside) for own in batch.slices]
    parts = [_slice(name, precision, fp32, np.array([name in own for own in slices])) for name in trial.slices]
    counted_E = np.arange(len(fp32.sums_EK)) < trial.examples
    return {
        "fp32": fp32.part(counted_E).figure,
        "value": precision.part(counted_E).figure,
        # What isn't a number is worst.
        "worst_slice": max(parts, key=lambda part: (part.certain, np.nan_to_num(part.loss, nan=np.inf)), default=None),
    }


def _slice(name: str, precision: Statistic, fp32: Statistic, chosen_E: npt.NDArray[np.bool_]) -> Slice:
    one, other = fp32.part(chosen_E), precision.part(chosen_E)
    return Slice(
        name=name,
        examples=int(chosen_E.sum()),
        fp32=one.figure,
        value=other.figure,
        chance=chance.difference(one, other, _CONFIDENCE),
    )
