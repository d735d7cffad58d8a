"""What runs a batch: ONNX Runtime, or a stand-in without weights."""

import contextlib
import hashlib
import io
import logging
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cloze_server import providers
from cloze_server.exits import ExitCode, FatalError
from cloze_server.logs import fields
from cloze_server.providers import ANYWHERE, AUTO, Placement, Provider

_log = logging.getLogger(__name__)

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]

_SHRINK_EVERY = 64
_KNOWN_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


class InferenceError(Exception):
    """The model failed on this request's input, or on the batch that it was in."""


class OutOfMemoryError(InferenceError):
    """There is not enough memory for this batch."""


class Backend(Protocol):
    """Runs batches; several threads may call at once."""

    def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:  # noqa: N803 - B batch, L length
        """Logits of a padded batch, (batch, length, classes) or (batch, classes).

        ids_BL: token ids, padded. mask_BL: 1 for tokens, 0 for padding. segments_BL: 1 for tokens of the second text
        of a pair; None for a batch without pairs. Raises OutOfMemoryError when a smaller batch may do, and anything
        else when the model fails.
        """
        ...


class OnnxBackend:
    """An ONNX graph on the CPU or on a GPU. provider: where it runs."""

    def __init__(
        self, path: Path, *, inputs: list[str], output: str, threads: int, placement: Placement = ANYWHERE
    ) -> None:
        """Load the graph.

        Raises FatalError: ARTIFACT_INVALID for one that can't be run or has other inputs, CONFIGURATION when it can't
        run where it is asked to.
        """
        import onnxruntime  # noqa: PLC0415 - a third of a second that the dummy and `--help` don't need

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Patterns are remembered for each shape, and here nearly every batch has its own.
        options.enable_mem_pattern = False
        # Threads meet hundreds of times in a run, and to be woken takes longer than most of what they wait for. Between
        # runs they must not burn the CPU share of the event loop and the tokenizers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session, self.provider = _session(path, options, placement)
        except FatalError:
            raise
        except Exception as error:  # the library's exceptions share no base class
            raise FatalError(ExitCode.ARTIFACT_INVALID, "GraphInvalid", f"{path.name} can't be run: {error}") from error
        present = {node.name for node in self._session.get_inputs()}
        check_names(path, inputs, present, output, [node.name for node in self._session.get_outputs()])
        self._inputs = inputs
        self._output = output
        # The arena keeps the largest it ever needed for each shape; giving memory back after every run would cost
        # page faults each time, so it is done now and then.
        self._shrink = onnxruntime.RunOptions()
        self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", providers.shrinkable(self.provider))
        # Also in the first run, so that it fails while the model is loaded if it fails.
        self._until_shrink = 0

    def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:  # noqa: N803 - as in Backend
        """Run the graph. Raises OutOfMemoryError."""
        if segments_BL is None:
            segments_BL = np.zeros_like(ids_BL)  # noqa: N806
        available = {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": segments_BL}
        feed = {name: available[name] for name in self._inputs}
        options = None if self._until_shrink else self._shrink
        self._until_shrink = (self._until_shrink or _SHRINK_EVERY) - 1
        try:
            logits: Logits = self._session.run([self._output], feed, options)[0]
        except Exception as error:  # the library's exceptions share no base class
            if not (isinstance(error, MemoryError) or providers.blames_memory(str(error))):
                raise
            # What the arena has got so far may be in pieces that fit nothing.
            self._until_shrink = 0
            raise OutOfMemoryError(f"not enough memory for {ids_BL.size} tokens") from error
        return logits


def check_names(
    path: Path, inputs: Collection[str], present: Collection[str], output: str, outputs: Collection[str]
) -> None:
    """Whether a graph has the inputs and the output that the manifest says. Raises FatalError (ARTIFACT_INVALID)."""
    if set(inputs) != set(present) or not set(present) <= _KNOWN_INPUTS or "input_ids" not in present:
        message = (
            f"{path.name} has the inputs {sorted(present)}, the manifest says {sorted(inputs)}; "
            f"this server can fill {sorted(_KNOWN_INPUTS)}"
        )
        raise FatalError(ExitCode.ARTIFACT_INVALID, "GraphInvalid", message)
    if output not in outputs:
        raise FatalError(ExitCode.ARTIFACT_INVALID, "GraphInvalid", f"{path.name} has no output {output!r}")


def _session(path: Path, options: Any, placement: Placement) -> tuple[Any, Provider]:
    """A session, and where it runs. Raises FatalError (CONFIGURATION), and the library's errors about the graph."""
    import onnxruntime  # noqa: PLC0415 - as above

    def load(provider: Provider) -> Any:
        # The library's own way to the CPU would be a silent one, also while requests are answered.
        chain = providers.arguments(provider, placement.memory_bytes)
        return onnxruntime.InferenceSession(path, options, providers=chain, enable_fallback=0)

    offered, device = onnxruntime.get_available_providers(), providers.has_device()
    provider = providers.choose(placement.asked, offered, device=device)
    if provider is Provider.CPU:
        return load(provider), provider
    with contextlib.redirect_stdout(io.StringIO()):
        # Finds what was installed as packages; it prints what it misses, and the session says it again.
        onnxruntime.preload_dlls()
    try:
        session = load(provider)
        reason = providers.lost(provider, session.get_providers())
    except Exception as error:  # the library's exceptions share no base class
        if not providers.blames_device(str(error)):
            raise
        session, reason = None, " ".join(str(error).split())
    if reason is None:
        return session, provider
    if placement.asked != AUTO:
        raise providers.unavailable(provider, reason)
    _log.warning("the GPU can't be used: the model runs on the CPU", extra=fields(provider=provider, reason=reason))
    return load(Provider.CPU), Provider.CPU


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
