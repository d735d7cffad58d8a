"""The ONNX graph of a trained model, held to torch's own outputs."""

import os
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from cloze_api.progress import ExitCode
from cloze_api.task import Task
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.errors import TrainerError
from cloze_trainer.model import EncoderConfig

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "logits"
OPSET = 18
TOLERANCE = 1e-4
"""Largest difference, as a share of the largest output or of 1."""
# Bounds of the check's memory: the graph holds a row's attention scores, length × length a head, and its logits.
_LONGEST_CHECK = 512
_CHECK_LOGITS = 1 << 26
_CHECK_ROWS = 3


def export(model: nn.Module, task: Task, config: EncoderConfig, path: Path) -> None:
    """Write the graph: int64 inputs (batch, length), float32 logits; both dimensions are free.

    Raises TrainerError when ONNX Runtime's outputs differ from torch's by more than the tolerance.
    """
    model.eval().cpu()
    length = min(16, config.max_length)
    example = tuple(torch.ones(2, length, dtype=torch.int64) for _ in INPUTS)
    axes = {name: {0: "batch", 1: "length"} for name in INPUTS}
    axes[OUTPUT] = {0: "batch"} if task is Task.SEQUENCE_CLASSIFICATION else {0: "batch", 1: "length"}
    with warnings.catch_warnings(), torch.no_grad():
        # The tracing exporter is on its way out upstream, but takes one second where its successor takes twenty and
        # half a gigabyte more; the graphs run equally fast.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            example,
            str(path),
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamic_axes=axes,
            dynamo=False,
        )
    _compare(model, config, path)


def check_length(config: EncoderConfig) -> int:
    """Length of the sequences that the graph is checked on: the longest one that leaves the memory in bounds."""
    affordable = _CHECK_LOGITS // (_CHECK_ROWS * config.vocab_size)
    return min(config.max_length, _LONGEST_CHECK, max(16, affordable))


def _compare(model: nn.Module, config: EncoderConfig, path: Path) -> None:
    """Check the graph on batches of other shapes than the traced one, with and without padding."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(torch.get_num_threads(), os.cpu_count() or 1)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    random = np.random.Generator(np.random.PCG64(0))
    for batch, length in ((1, min(7, config.max_length)), (_CHECK_ROWS, check_length(config))):
        ids_BT = random.integers(5, config.vocab_size, size=(batch, length))
        mask_BT = np.ones_like(ids_BT)
        mask_BT[-1, length // 2 + 1 :] = 0
        ids_BT = np.where(mask_BT == 1, ids_BT, SPECIAL_IDS.pad)
        feeds = dict(zip(INPUTS, (ids_BT, mask_BT, np.zeros_like(ids_BT)), strict=True))
        with torch.inference_mode():
            expected = model(*(torch.from_numpy(feeds[name]) for name in INPUTS)).numpy()
        (actual,) = session.run([OUTPUT], feeds)
        if expected.ndim == 3:
            expected, actual = expected[mask_BT == 1], actual[mask_BT == 1]
        difference = float(np.abs(expected - actual).max() / max(1.0, np.abs(expected).max()))
        if not difference <= TOLERANCE:
            raise TrainerError(
                "ExportMismatch",
                f"the ONNX graph's outputs differ from the model's by {difference:.2g} of their size (at most "
                f"{TOLERANCE} is allowed): the artifact is not published",
                ExitCode.INTERNAL,
            )
