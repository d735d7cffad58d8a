"""Where a graph runs. What a GPU would do is played by a stand-in of the runtime: there is none here."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cloze_api.manifest import verify
from cloze_api.task import Task
from cloze_server import providers
from cloze_server.backend import OnnxBackend
from cloze_server.exits import ExitCode, FatalError
from cloze_server.providers import CHOICES, Placement, Provider, arguments, choose, has_device, lost
from cloze_server.settings import read

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
GPU_IMAGE = [TENSORRT, CUDA, CPU]

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("asked", "offered", "device", "chosen"),
    [
        ("auto", [CPU], True, Provider.CPU),
        ("auto", GPU_IMAGE, False, Provider.CPU),
        ("auto", GPU_IMAGE, True, Provider.CUDA),
        ("cpu", GPU_IMAGE, True, Provider.CPU),
        ("cuda", GPU_IMAGE, True, Provider.CUDA),
        ("tensorrt", GPU_IMAGE, True, Provider.TENSORRT),
    ],
)
def test_what_can_be_had_is_chosen(asked: str, offered: list[str], device: bool, chosen: Provider) -> None:
    """By itself CUDA, never TensorRT."""
    assert choose(asked, offered, device=device) is chosen


@pytest.mark.parametrize(
    ("asked", "offered", "device", "advice"),
    [
        ("cuda", [CPU], True, "use the image cloze-serve-gpu"),
        ("cuda", [CPU], False, "use the image cloze-serve-gpu"),
        ("cuda", GPU_IMAGE, False, "nvidia.com/gpu"),
        ("tensorrt", [CUDA, CPU], True, "use the image cloze-serve-gpu"),
    ],
)
def test_what_is_asked_for_and_missing_is_refused(asked: str, offered: list[str], device: bool, advice: str) -> None:
    """With where it comes from, and what goes without."""
    with pytest.raises(FatalError, match=advice) as refused:
        choose(asked, offered, device=device)
    assert (refused.value.code, refused.value.reason) == (ExitCode.CONFIGURATION, "ProviderUnavailable")
    assert "--provider cpu" in str(refused.value)


def test_a_session_runs_on_the_cpu_what_the_gpu_cannot() -> None:
    """Each provider before those that take over from it."""
    assert [name for name, _ in arguments(Provider.CPU, 1)] == [CPU]
    assert [name for name, _ in arguments(Provider.CUDA, 0)] == [CUDA, CPU]
    assert [name for name, _ in arguments(Provider.TENSORRT, 0)] == [TENSORRT, CUDA, CPU]


def test_the_memory_of_a_gpu_is_bounded_when_asked() -> None:
    """And its arena grows by what is needed."""
    assert dict(arguments(Provider.CUDA, 1 << 30))[CUDA] == {
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": 1 << 30,
    }
    assert dict(arguments(Provider.CUDA, 0))[CUDA] == {"arena_extend_strategy": "kSameAsRequested"}


def test_a_dropped_provider_is_noticed() -> None:
    """A session that says what it has left."""
    assert lost(Provider.CUDA, [CUDA, CPU]) is None
    assert lost(Provider.CPU, [CPU]) is None
    assert CPU in (lost(Provider.CUDA, [CPU]) or "")
    assert lost(Provider.TENSORRT, [CUDA, CPU]) is not None


@pytest.mark.parametrize(
    "message",
    [
        "void* onnxruntime::BFCArena::AllocateRawInternal() Failed to allocate memory for requested buffer of size 4",
        "Status Message: std::bad_alloc",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=x ; expr=cudaMalloc((void**)&p, size);",
        "Available memory of 1048576 is smaller than requested bytes of 2097152",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    ],
)
def test_a_lack_of_memory_is_told_from_other_failures(message: str) -> None:
    """As ONNX Runtime and CUDA spell it."""
    assert providers.blames_memory(message)
    assert not providers.blames_memory("Non-zero status code returned while running Gather: index out of range")


def test_a_gpu_is_seen_by_its_device_files(tmp_path: Path) -> None:
    """The driver's own file alone is none."""
    assert not has_device(tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert not has_device(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert has_device(tmp_path)


def test_a_provider_is_one_of_those_that_are_known() -> None:
    """The message lists them."""
    assert read(["--model", "x"], {}).provider == "auto"
    assert read(["--model", "x"], {"CLOZE_PROVIDER": "cuda"}).provider == "cuda"
    with pytest.raises(FatalError, match=", ".join(CHOICES)):
        read(["--model", "x", "--provider", "gpu"], {})


# ---------------------------------------------------------------- loading, with a stand-in for the runtime's GPU build


class Session:
    """A session of a graph with the usual inputs, on these providers."""

    def __init__(self, used: list[str]) -> None:
        self._used = used

    def get_providers(self) -> list[str]:
        return self._used

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="input_ids")]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="logits")]


Load = Callable[..., OnnxBackend]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a graph where the runtime makes of the wanted providers what `used` says."""
    import onnxruntime  # noqa: PLC0415 - as the server does

    def make(asked: str, used: Callable[[list[str]], list[str]]) -> OnnxBackend:
        def session(path: Path, options: Any, *, providers: list[tuple[str, Any]], enable_fallback: int) -> Session:
            assert not enable_fallback, "the runtime must not go to the CPU by itself"
            return Session(used([name for name, _ in providers]))

        runtime = SimpleNamespace(
            **{name: getattr(onnxruntime, name) for name in dir(onnxruntime) if name[0].isupper()}
            | {"InferenceSession": session, "get_available_providers": lambda: GPU_IMAGE, "preload_dlls": lambda: None}
        )
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        monkeypatch.setattr(providers, "has_device", lambda: True)
        return OnnxBackend(Path("x"), inputs=["input_ids"], output="logits", threads=1, placement=Placement(asked))

    return make


def test_threads_are_as_many_as_asked_for_and_rest_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime would take one for each of the machine's processors, whatever the pod may use."""
    import onnxruntime  # noqa: PLC0415 - as the server does

    seen = []

    def session(path: Path, options: Any, **_: Any) -> Session:
        seen.append(options)
        return Session([CPU])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    OnnxBackend(Path("x"), inputs=["input_ids"], output="logits", threads=3)
    (options,) = seen
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    assert options.get_session_config_entry("session.inter_op.allow_spinning") == "0"


def test_a_gpu_that_works_is_used(load: Load) -> None:
    """By itself."""
    assert load("auto", lambda wanted: wanted).provider is Provider.CUDA
    assert load("tensorrt", lambda wanted: wanted).provider is Provider.TENSORRT


def test_a_silent_fall_to_the_cpu_is_an_error_where_a_gpu_was_asked_for(load: Load) -> None:
    """The libraries of CUDA can't be loaded: nobody pays for a GPU that does nothing."""
    with pytest.raises(FatalError, match="its own message names the library") as refused:
        load("cuda", lambda _: [CPU])
    assert (refused.value.code, refused.value.reason) == (ExitCode.CONFIGURATION, "ProviderUnavailable")


def driver_too_old(wanted: list[str]) -> list[str]:
    """What a runtime does with a driver that it can't use."""
    if CUDA in wanted:
        raise RuntimeError("CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version")
    return wanted


@pytest.mark.parametrize("used", [lambda _: [CPU], driver_too_old])
def test_a_gpu_that_does_not_work_leaves_the_cpu_with_a_warning(
    load: Load, caplog: pytest.LogCaptureFixture, used: Callable[[list[str]], list[str]]
) -> None:
    """Where nobody asked for one."""
    assert load("auto", used).provider is Provider.CPU
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "runs on the CPU" in warning.message
    with pytest.raises(FatalError, match="--provider is cuda"):
        load("cuda", used)


def test_a_broken_graph_is_not_the_gpus_fault(load: Load) -> None:
    """It would fail on the CPU as well."""

    def broken(_: list[str]) -> list[str]:
        raise RuntimeError("INVALID_PROTOBUF : Protobuf parsing failed")

    with pytest.raises(FatalError, match="can't be run") as refused:
        load("auto", broken)
    assert refused.value.code is ExitCode.ARTIFACT_INVALID


async def test_models_tell_where_they_run(artifacts: Any, serving: Any) -> None:
    """A loaded artifact, on this machine without a GPU."""
    async with serving(artifacts(Task.SEQUENCE_CLASSIFICATION).load) as client:
        (model,) = (await client.get("/v1/models")).json()["models"]
    assert model["provider"] == "cpu"


# ---------------------------------------------------------------- OpenVINO, which runs here

BOTH = pytest.mark.parametrize("provider", [Provider.OPENVINO, Provider.OPENVINO_BF16])


def missing_instructions(provider: Provider) -> bool:
    import openvino  # noqa: PLC0415 - as the server does

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return provider is Provider.OPENVINO_BF16 and "BF16" not in capabilities


@BOTH
@pytest.mark.parametrize("task", [task for task in Task if task is not Task.ECHO])
def test_openvino_gives_the_same_outputs(artifacts: Any, task: Task, provider: Provider) -> None:
    """In 32-bit floats to the last digits, in bfloat16 to about the second; also for padded batches, and pairs."""
    artifact = artifacts(task)
    usual, limits = artifact.load(), verify(artifact.folder).limits
    if missing_instructions(provider):
        with pytest.raises(FatalError, match="no instructions for bfloat16"):
            artifact.load(placement=Placement(provider))
        return
    other = artifact.load(placement=Placement(provider))
    assert other.provider is provider
    random = np.random.Generator(np.random.PCG64(0))
    for rows, length in ((1, 3), (4, limits.max_length)):
        ids_BL = random.integers(5, limits.vocab_size, size=(rows, length))  # noqa: N806 - B batch, L length
        mask_BL = np.ones_like(ids_BL)  # noqa: N806
        mask_BL[-1, length // 2 + 1 :] = 0
        segments_BL = None  # noqa: N806
        if task is Task.QUESTION_ANSWERING:
            segments_BL = np.where(np.arange(length) >= length // 3, mask_BL, 0)  # noqa: N806
        expected, found = (model.backend.infer(ids_BL, mask_BL, segments_BL) for model in (usual, other))
        if expected.ndim == 3:
            expected, found = expected[mask_BL == 1], found[mask_BL == 1]
        error = np.linalg.norm(expected - found) / np.linalg.norm(expected)
        # Random weights, which are large here, carry roundings further than trained ones.
        assert error < 1e-5 if provider is Provider.OPENVINO else 1e-4 < error < 0.1


def test_what_openvino_lacks_is_said(monkeypatch: pytest.MonkeyPatch, artifacts: Any) -> None:
    """The library, or what runs of an artifact's precisions."""
    with pytest.raises(FatalError, match="leave one of them away"):
        read(["--model", "x", "--provider", "openvino", "--precision", "int8"], {})
    with pytest.raises(FatalError, match="one batch at a time"):
        read(["--model", "x", "--provider", "openvino", "--parallel-batches", "2"], {})
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(FatalError, match="use the image cloze-serve-openvino") as refused:
        artifacts(Task.SEQUENCE_CLASSIFICATION).load(placement=Placement("openvino"))
    assert (refused.value.code, refused.value.reason) == (ExitCode.CONFIGURATION, "ProviderUnavailable")
