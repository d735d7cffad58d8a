"""Where a graph runs: on the CPU by ONNX Runtime or OpenVINO, or on a GPU by CUDA or TensorRT.

Decisions are pure; `has_device` looks.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from cloze_server.exits import ExitCode, FatalError


class Provider(StrEnum):
    """What computes."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    OPENVINO = "openvino"
    OPENVINO_BF16 = "openvino-bf16"


AUTO: Final = "auto"
"""CUDA where it can be had, else the CPU; never TensorRT, which first builds an engine for minutes."""
CHOICES: Final = (AUTO, *Provider)
BY_OPENVINO: Final = frozenset({Provider.OPENVINO, Provider.OPENVINO_BF16})
"""On the CPU, by another library than ONNX Runtime."""
ON_DEVICE: Final = frozenset({Provider.CUDA, Provider.TENSORRT})

_NAMES: Final = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
    Provider.TENSORRT: "TensorrtExecutionProvider",
}
_OTHERWISE: Final = f"or say --provider {Provider.CPU}"
_DEVICE_WORDS: Final = re.compile(r"cuda|cudnn|cublas|cufft|nvidia|tensorrt|nvinfer|\bgpu\b", re.IGNORECASE)
_MEMORY_WORDS: Final = re.compile(
    r"failed to allocate memory|out of memory|bad_alloc|memoryallocation|alloc_failed|is smaller than requested bytes",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a graph is to run. asked: one of CHOICES. memory_bytes: most of a GPU's memory for it; 0: all there is."""

    asked: str = AUTO
    memory_bytes: int = 0


ANYWHERE: Final = Placement()


def missing(provider: Provider, offered: Collection[str], *, device: bool) -> str | None:
    """What a provider lacks, and where that comes from; None when it may work.

    offered: names of what ONNX Runtime was built with. device: whether there is a GPU.
    """
    if provider is Provider.CPU:
        return None
    if _NAMES[provider] not in offered:
        return "this ONNX Runtime is built without it: use the image cloze-serve-gpu, or install onnxruntime-gpu"
    if not device:
        return "there is no GPU: ask for one, in a pod by spec.resources.limits with nvidia.com/gpu: 1"
    return None


def choose(asked: str, offered: Collection[str], *, device: bool) -> Provider:
    """The provider to load a graph with. Raises FatalError (CONFIGURATION) for one that can't be had."""
    if asked == AUTO:
        return Provider.CPU if missing(Provider.CUDA, offered, device=device) else Provider.CUDA
    provider = Provider(asked)
    if reason := missing(provider, offered, device=device):
        raise unavailable(provider, reason)
    return provider


def unavailable(provider: Provider, reason: str) -> FatalError:
    """The error that a provider that was asked for can't be had."""
    message = f"--provider is {provider}, which can't be had: {reason}; {_OTHERWISE}"
    return FatalError(ExitCode.CONFIGURATION, "ProviderUnavailable", message)


def arguments(provider: Provider, memory_bytes: int) -> list[tuple[str, dict[str, Any]]]:
    """What a session takes as `providers`: this one, and those that run what it can't."""
    # The arena grows by what is asked for; doubling would run out of memory with half of it unused.
    cuda = {"arena_extend_strategy": "kSameAsRequested", **({"gpu_mem_limit": memory_bytes} if memory_bytes else {})}
    chain: dict[Provider, dict[str, Any]] = {Provider.CPU: {}}
    if provider is not Provider.CPU:
        chain = {Provider.CUDA: cuda, **chain}
    if provider is Provider.TENSORRT:
        chain = {Provider.TENSORRT: {}, **chain}
    return [(_NAMES[each], options) for each, options in chain.items()]


def lost(provider: Provider, used: Sequence[str]) -> str | None:
    """Why a session doesn't run where it was to; None when it does. used: the providers that it says it has.

    ONNX Runtime drops a provider whose libraries can't be loaded, and goes on without.
    """
    if _NAMES[provider] in used:
        return None
    return f"ONNX Runtime dropped it and has {', '.join(used)} left; its own message names the library that failed"


def blames_device(message: str) -> bool:
    """Whether a session's error is about the GPU or its libraries, rather than about the graph."""
    return _DEVICE_WORDS.search(message) is not None


def blames_memory(message: str) -> bool:
    """Whether an error of a run says that memory could not be had, on the CPU or on a GPU."""
    return _MEMORY_WORDS.search(message) is not None


def shrinkable(provider: Provider) -> str:
    """The arenas that a run may give memory back from, as ONNX Runtime names them."""
    return "cpu:0" if provider is Provider.CPU else "gpu:0"


def has_device(devices: Path = Path("/dev")) -> bool:
    """Whether a GPU of NVIDIA's is here, as a container runtime hands it in; also in Windows' subsystem for Linux."""
    return any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists()
