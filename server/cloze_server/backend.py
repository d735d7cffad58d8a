"""What runs a batch: ONNX Runtime, or a stand-in without weights."""

import hashlib
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cloze_server.exits import ExitCode, FatalError

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]

_SHRINK_EVERY = 64


class Backend(Protocol):
    """Runs batches; several threads may call at once."""

    def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:  # noqa: N803 - B batch, L length
        """Logits of a padded batch, (batch, length, classes) or (batch, classes).

        ids_BL: token ids, padded. mask_BL: 1 for tokens, 0 for padding. segments_BL: 1 for tokens of the second text
        of a pair; None for a batch without pairs.
        """
        ...


class OnnxBackend:
    """An ONNX graph on the CPU."""

    def __init__(self, path: Path, *, inputs: list[str], output: str, threads: int) -> None:
        """Load the graph. Raises FatalError (ARTIFACT_INVALID) for one that can't be run or has other inputs."""
        import onnxruntime  # noqa: PLC0415 - a third of a second that the dummy and `--help` don't need

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Patterns are remembered for each shape, and here nearly every batch has its own.
        options.enable_mem_pattern = False
        # Waiting threads must not burn the CPU share of the event loop and the tokenizers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's exceptions share no base class
            raise FatalError(ExitCode.ARTIFACT_INVALID, "GraphInvalid", f"{path.name} can't be run: {error}") from error
        present = {node.name for node in self._session.get_inputs()}
        known = {"input_ids", "attention_mask", "token_type_ids"}
        if set(inputs) != present or not present <= known or "input_ids" not in present:
            message = (
                f"{path.name} has the inputs {sorted(present)}, the manifest says {sorted(inputs)}; "
                f"this server can fill {sorted(known)}"
            )
            raise FatalError(ExitCode.ARTIFACT_INVALID, "GraphInvalid", message)
        if output not in {node.name for node in self._session.get_outputs()}:
            raise FatalError(ExitCode.ARTIFACT_INVALID, "GraphInvalid", f"{path.name} has no output {output!r}")
        self._inputs = inputs
        self._output = output
        # The arena keeps the largest it ever needed for each shape; giving memory back after every run would cost
        # page faults each time, so it is done now and then.
        self._shrink = onnxruntime.RunOptions()
        self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._runs = 0

    def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:  # noqa: N803 - as in Backend
        """Run the graph."""
        if segments_BL is None:
            segments_BL = np.zeros_like(ids_BL)  # noqa: N806
        available = {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": segments_BL}
        feed = {name: available[name] for name in self._inputs}
        self._runs += 1
        options = self._shrink if self._runs % _SHRINK_EVERY == 0 else None
        logits: Logits = self._session.run([self._output], feed, options)[0]
        return logits


class DummyBackend:
    """Logits that are a hash of each sequence: any mix-up of answers is visible, and no weights are needed.

    classes: width of the last axis. per_token: whether there is one row for each token. seconds: time of a batch.
    """

    def __init__(self, *, classes: int, per_token: bool, seconds: float = 0.0) -> None:
        self._classes = classes
        self._per_token = per_token
        self._seconds = seconds

    def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:  # noqa: ARG002, N803 - as in Backend
        """Logits between 0 and 1; padding doesn't change them."""
        if self._seconds:
            time.sleep(self._seconds)
        batch, length = ids_BL.shape
        shape = (batch, length, self._classes) if self._per_token else (batch, self._classes)
        logits = np.zeros(shape, np.float32)
        for row in range(batch):
            real = ids_BL[row][mask_BL[row] == 1]
            if self._per_token:
                for position in range(len(real)):
                    logits[row, position] = self.hashed(real, position)
            else:
                logits[row] = self.hashed(real, 0)
        return logits

    def hashed(self, ids: Ids, position: int) -> Logits:
        """The logits of one position: a function of the whole sequence and the position."""
        seed = hashlib.sha256(ids.astype("<i8").tobytes() + position.to_bytes(4, "little")).digest()
        stream = (seed * (self._classes // len(seed) + 1))[: self._classes]
        return np.frombuffer(stream, np.uint8).astype(np.float32) / np.float32(255)
