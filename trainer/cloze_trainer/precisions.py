"""Graphs in other precisions than fp32: made, measured, and kept where they are accurate enough."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from cloze_api.precision import Measured, Precision, graph_file
from cloze_api.progress import ExitCode
from cloze_trainer import latency, static_quantization
from cloze_trainer.console import log
from cloze_trainer.data.examples import Row
from cloze_trainer.errors import TrainerError
from cloze_trainer.half import halve
from cloze_trainer.latency import Timed
from cloze_trainer.quantization import quantize
from cloze_trainer.trial import Trial, measure

# Without examples: 16-bit floats have eleven bits.
_LARGEST_DIFFERENCE = 0.01


@dataclass(frozen=True, slots=True)
class Added:
    """What became of the precisions that were asked for. refused: why each that isn't there is not."""

    measured: dict[Precision, Measured]
    refused: dict[Precision, str]


def add(
    folder: Path,
    wanted: Collection[Precision],
    trial: Trial,
    max_accuracy_loss: float,
    calibration: Sequence[Row] = (),
) -> Added:
    """Write the graphs beside fp32's. One that loses more than that of the task's metric isn't kept: see `verdict`.

    calibration: training texts, by which int8 is made once more where it isn't accurate enough with a scale for each
    token. Raises TrainerError when ONNX Runtime can't run one.
    """
    reference = folder / graph_file(Precision.FP32)
    for precision in wanted:
        onnx.save(_convert(onnx.load(reference), precision), folder / graph_file(precision))
    found = _measured(folder, wanted, trial)
    refused = _refused(found, max_accuracy_loss)
    if calibration and Precision.INT8 in refused:
        log("precision measured anew", precision=Precision.INT8, why=refused[Precision.INT8], texts=len(calibration))
        static_quantization.quantize(reference, folder / graph_file(Precision.INT8), calibration, trial.inputs)
        found |= _measured(folder, [Precision.INT8], trial, calibration_examples=len(calibration))
        refused = _refused(found, max_accuracy_loss)
    for precision in refused:
        (folder / graph_file(precision)).unlink()
        log("precision left out", precision=precision, why=refused[precision])
    return Added({precision: found[precision] for precision in wanted if precision not in refused}, refused)


def _measured(
    folder: Path, wanted: Collection[Precision], trial: Trial, calibration_examples: int = 0
) -> dict[Precision, Measured]:
    graphs = {precision: folder / graph_file(precision) for precision in (Precision.FP32, *wanted)}
    threads = torch.get_num_threads()
    try:
        found = measure(trial, graphs, threads)
        timed = {precision: Timed(path, trial.inputs, trial.output) for precision, path in graphs.items()}
        times = latency.milliseconds(timed, trial.texts(latency.TEXTS), threads)
    except Exception as error:  # the library's exceptions share no base class
        message = f"ONNX Runtime can't run a graph in {' or '.join(wanted)}: {str(error)[:500]}"
        raise TrainerError("ExportMismatch", message, ExitCode.INTERNAL) from error
    for precision in wanted:
        beside = {"latency_ms": times[precision], "fp32_latency_ms": times[Precision.FP32]}
        if precision is Precision.INT8:
            beside["calibration_examples"] = calibration_examples
        found[precision] = found[precision].model_copy(update=beside)
        log("precision measured", precision=precision, **found[precision].model_dump(exclude_defaults=True))
    return found


def _refused(found: Mapping[Precision, Measured], max_accuracy_loss: float) -> dict[Precision, str]:
    return {precision: why for precision, each in found.items() if (why := verdict(precision, each, max_accuracy_loss))}


def verdict(precision: Precision, measured: Measured, max_accuracy_loss: float) -> str:
    """Why a precision isn't accurate enough; empty for one that is.

    It may lose so much over all examples, and in each slice so much, or what chance makes if that is more: of 30
    examples a single other answer is 3 points, which says nothing of the graph.
    """
    if measured.value is None or measured.fp32 is None:
        if measured.difference <= _LARGEST_DIFFERENCE:
            return ""
        return f"the outputs of {precision} differ from fp32's by {measured.difference:.2g} of their size"
    loss = measured.fp32 - measured.value
    if not loss <= max_accuracy_loss + 1e-9:
        return (
            f"{precision} has {measured.metric} {measured.value:.4f} where fp32 has {measured.fp32:.4f}, on "
            f"{measured.examples} examples: {100 * loss:.2f} points less, and {100 * max_accuracy_loss:g} are allowed"
        )
    worst = measured.worst_slice
    if worst is None or not worst.certain or worst.loss <= max_accuracy_loss + 1e-9:
        return ""
    return (
        f"{precision} has {measured.metric} {worst.value:.4f} where fp32 has {worst.fp32:.4f}, on the {worst.examples} "
        f"examples of the slice {worst.name}: {100 * worst.loss:.2f} points less, where chance makes up to "
        f"{100 * worst.chance:.2f}, and {100 * max_accuracy_loss:g} are allowed"
    )


def _convert(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    if precision is Precision.FP16:
        return halve(model)
    quantize(model)
    return model
