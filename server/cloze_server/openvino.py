"""A graph run by OpenVINO, which on processors with AMX multiplies in bfloat16."""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from cloze_server import providers
from cloze_server.backend import Ids, Logits, OutOfMemoryError, check_names
from cloze_server.exits import ExitCode, FatalError
from cloze_server.providers import Provider

# Kernels are made for a shape when it first comes, and kept; the library's own bound lets memory grow for hours.
_KERNELS = 512


class OpenVinoBackend:
    """An ONNX graph in 32-bit floats on the CPU. provider: OPENVINO, or OPENVINO_BF16 for products in bfloat16."""

    def __init__(self, path: Path, *, inputs: list[str], output: str, threads: int, provider: Provider) -> None:
        """Load the graph.

        Raises FatalError: ARTIFACT_INVALID for one that can't be run or has other inputs, CONFIGURATION when the
        library or the processor lacks what it takes.
        """
        self.provider = provider
        try:
            import openvino  # noqa: PLC0415 - an optional library
        except ImportError as error:
            where = "use the image cloze-serve-openvino, or install cloze-mlops[serve-openvino]"
            raise providers.unavailable(provider, f"OpenVINO isn't here: {where}") from error
        core: Any = openvino.Core()
        if provider is Provider.OPENVINO_BF16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            reason = "this processor has no instructions for bfloat16 (AVX512_BF16, AMX)"
            raise providers.unavailable(provider, reason)
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Pods on one node don't know of each other, and would bind their threads to the same processors.
            "ENABLE_CPU_PINNING": False,
            # Or it would leave half of the threads out where two are of one core.
            "ENABLE_HYPER_THREADING": True,
            "INFERENCE_PRECISION_HINT": "bf16" if provider is Provider.OPENVINO_BF16 else "f32",
            "CPU_RUNTIME_CACHE_CAPACITY": _KERNELS,
        }
        try:
            self._compiled = core.compile_model(core.read_model(path), "CPU", settings)
        except Exception as error:  # the library's exceptions share no base class
            message = f"{path.name} can't be run by OpenVINO: {error}"
            raise FatalError(ExitCode.ARTIFACT_INVALID, "GraphInvalid", message) from error
        # The library folds nodes that change nothing, so that a tensor may go by several names.
        named = {name: place for place, node in enumerate(self._compiled.outputs) for name in node.get_names()}
        present = {name for node in self._compiled.inputs for name in node.get_names()}
        check_names(path, inputs, present, output, named)
        self._inputs, self._output = inputs, named[output]
        # A request of the library's is for one thread at a time.
        self._local = threading.local()

    def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:  # noqa: N803 - as in Backend
        """Run the graph. Raises OutOfMemoryError."""
        if segments_BL is None:
            segments_BL = np.zeros_like(ids_BL)  # noqa: N806
        available = {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": segments_BL}
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        try:
            found = self._local.request.infer({name: available[name] for name in self._inputs})
        except Exception as error:  # as above
            if not (isinstance(error, MemoryError) or providers.blames_memory(str(error))):
                raise
            raise OutOfMemoryError(f"not enough memory for {ids_BL.size} tokens") from error
        logits: Logits = found[self._output]
        return logits
