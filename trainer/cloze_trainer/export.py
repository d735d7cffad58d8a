"""The ONNX graph of a trained model, held to torch's own outputs."""

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from cloze_api.progress import ExitCode
from cloze_api.task import Task
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.errors import TrainerError

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "logits"
OPSET = 18
TOLERANCE = 1e-4
"""Largest difference, as a share of the largest output or of 1."""
# Bounds of the check's memory: the graph holds a row's attention scores, length × length a head, and its logits.
_LONGEST_CHECK = 512
_CHECK_LOGITS = 1 << 26
_CHECK_ROWS = 3
# Ids below may be special; the check's texts are of ordinary tokens.
_FIRST_CHECKED_ID = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """What a graph takes and gives.

    inputs: names in the order of the module's arguments, each int64 (batch, length). per_token: whether its output has
    a row for each token, (batch, length, …), or one for the sequence, (batch, …). pad: id of the padding token.
    """

    inputs: tuple[str, ...]
    output: str
    per_token: bool
    vocab_size: int
    max_length: int
    pad: int


def export(model: nn.Module, task: Task, config: EncoderConfig, path: Path) -> None:
    """Write the graph of one of our own models: see `export_graph`."""
    export_graph(model, own_graph(task, config), path)


def own_graph(task: Task, config: EncoderConfig) -> Graph:
    """What the graph of one of our own models takes and gives."""
    return Graph(
        inputs=config.inputs,
        output=OUTPUT,
        per_token=task not in (Task.SEQUENCE_CLASSIFICATION, Task.EMBEDDING),
        vocab_size=config.vocab_size,
        max_length=config.max_length,
        pad=config.special_tokens.pad,
    )


def export_graph(model: nn.Module, graph: Graph, path: Path) -> None:
    """Write the graph as `write_graph` does.

    Raises TrainerError when ONNX Runtime's outputs differ from torch's by more than the tolerance.
    """
    write_graph(model, graph, path)
    difference = apart(model, graph, path)
    if not difference <= TOLERANCE:
        raise TrainerError(
            "ExportMismatch",
            f"the ONNX graph's outputs differ from the model's by {difference:.2g} of their size (at most "
            f"{TOLERANCE} is allowed): the artifact is not published",
            ExitCode.INTERNAL,
        )


def write_graph(model: nn.Module, graph: Graph, path: Path) -> None:
    """Write the graph: int64 inputs (batch, length), a float32 output; both dimensions are free. Nothing is checked."""
    model.eval().cpu()
    length = min(16, graph.max_length)
    example = tuple(torch.ones(2, length, dtype=torch.int64) for _ in graph.inputs)
    axes = {name: {0: "batch", 1: "length"} for name in graph.inputs}
    axes[graph.output] = {0: "batch", 1: "length"} if graph.per_token else {0: "batch"}
    with warnings.catch_warnings(), torch.no_grad():
        # The tracing exporter is on its way out upstream, but takes one second where its successor takes twenty and
        # half a gigabyte more; the graphs run equally fast.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            example,
            str(path),
            input_names=list(graph.inputs),
            output_names=[graph.output],
            opset_version=OPSET,
            dynamic_axes=axes,
            dynamo=False,
        )


def check_length(vocab_size: int, max_length: int) -> int:
    """Length of the sequences that the graph is checked on: the longest one that leaves the memory in bounds."""
    affordable = _CHECK_LOGITS // (_CHECK_ROWS * vocab_size)
    return min(max_length, _LONGEST_CHECK, max(16, affordable))


def apart(model: nn.Module, graph: Graph, path: Path) -> float:
    """How far the graph's outputs are from the model's, as a share of the largest or of 1: on batches of other shapes
    than the traced one, with and without padding, and on pairs of texts where the model tells them apart.
    """
    model.eval()
    found = 0.0
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(torch.get_num_threads(), os.cpu_count() or 1)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    random = np.random.Generator(np.random.PCG64(0))
    longest = check_length(graph.vocab_size, graph.max_length)
    for batch, length in ((1, min(7, graph.max_length)), (_CHECK_ROWS, longest)):
        ids_BT = random.integers(_FIRST_CHECKED_ID, graph.vocab_size, size=(batch, length))
        mask_BT = np.ones_like(ids_BT)
        mask_BT[-1, length // 2 + 1 :] = 0
        ids_BT = np.where(mask_BT == 1, ids_BT, graph.pad)
        # Each row's second text begins elsewhere.
        starts_B1 = length * (np.arange(batch)[:, None] + 1) // (batch + 1)
        types_BT = mask_BT * (np.arange(length) >= starts_B1)
        available = dict(zip(INPUTS, (ids_BT, mask_BT, types_BT), strict=True))
        feeds = {name: available[name] for name in graph.inputs}
        with torch.inference_mode():
            expected = model(*(torch.from_numpy(feeds[name]) for name in graph.inputs)).numpy()
        (actual,) = session.run([graph.output], feeds)
        if graph.per_token:
            expected, actual = expected[mask_BT == 1], actual[mask_BT == 1]
        difference = float(np.abs(expected - actual).max() / max(1.0, np.abs(expected).max()))
        # A NaN is as far as can be.
        found = max(found, math.inf if math.isnan(difference) else difference)
    return found
