"""Compiled layers compute what the others do, under the same names; what compiling lacks is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager

from cloze_api.pretrain import Architecture
from cloze_api.task import Task
from cloze_trainer import compiling
from cloze_trainer.encoders.config import LOCAL_REACH, EncoderConfig
from cloze_trainer.errors import InputError
from cloze_trainer.model import TaskModel, build

Shape = tuple[int, int, bool]
#: Rows, their length, and whether texts share them: each kind once or more, then once more in other sizes.
WARM: list[Shape] = [(3, 20, False), (4, 2 * LOCAL_REACH, False), (2, 20, True), (5, 2 * LOCAL_REACH, True)]
AGAIN: list[Shape] = [(7, 33, False), (2, 110, False), (6, 41, True), (3, 2 * LOCAL_REACH + 9, True)]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each program that was made of a layer; without machine code, which would need a compiler."""
    programs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        programs.append(len(graph.graph.nodes))
        made: Callable[..., Any] = aot_eager(graph, inputs)
        return made

    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "BACKEND", backend)
    return programs


def step(model: TaskModel, shape: Shape) -> tuple[Tensor, Tensor]:
    """Outputs and gradient of rows of this shape."""
    rows, length, shared = shape
    torch.manual_seed(rows * length)
    ids = torch.randint(5, 50, (rows, length))
    texts = torch.arange(length) // 17
    mask = (texts[:, None] == texts).expand(rows, -1, -1) if shared else None
    model.zero_grad()
    output = model(ids, mask)
    output.square().mean().backward()
    return output.detach(), torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


@pytest.mark.parametrize("architecture", [Architecture.BERT, Architecture.MODERNBERT])
def test_compiled_layers_learn_the_same_from_rows_of_any_shape(architecture: Architecture, made: list[int]) -> None:
    """One program for all layers of a kind, which isn't made again for other numbers and lengths of rows; the names in
    checkpoints are the same, and nothing is left behind.
    """
    sizes = {"layers": 5, "hidden_size": 16, "heads": 2, "intermediate_size": 32, "max_length": 2 * LOCAL_REACH + 20}
    torch.manual_seed(0)
    model = build(Task.FILL_MASK, EncoderConfig(architecture=architecture, vocab_size=50, dropout=0.0, **sizes))
    names, expected = list(model.state_dict()), [step(model, shape) for shape in (*WARM, *AGAIN)]
    with compiling.compiled(model, wanted=True):
        found = [step(model, shape) for shape in WARM]
        assert made
        programs = len(made)
        found += [step(model, shape) for shape in AGAIN]
        assert len(made) == programs
        assert list(model.state_dict()) == names
    for (output, gradient), (known, wanted) in zip(found, expected, strict=True):
        assert torch.allclose(output, known, atol=1e-6)
        assert torch.allclose(gradient, wanted, atol=1e-6)
    assert not any("forward" in vars(layer) for layer in model.encoder.layers)


@pytest.mark.parametrize(
    ("device", "found", "missing"),
    [
        ("cpu", {"compiler": True, "headers": True, "triton": False}, ""),
        ("cpu", {"compiler": False, "headers": True, "triton": True}, "a C++ compiler (g++)"),
        ("cuda", {"compiler": True, "headers": True, "triton": True}, ""),
        (
            "cuda",
            {"compiler": False, "headers": False, "triton": True},
            "a C compiler (gcc) and Python's headers (Python.h)",
        ),
        ("cuda", {"compiler": True, "headers": True, "triton": False}, "Triton"),
    ],
)
def test_what_an_image_lacks_is_told(device: str, found: dict[str, bool], missing: str) -> None:
    """For a GPU Triton builds its launcher in C, for a processor the layers themselves are C++."""
    assert compiling.lacking(device, **found) == missing


def test_a_job_that_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before anything is read: silently slow would be worse. A compiler on the path, or one that is named, is found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiling.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    (tmp_path / "Python.h").touch()
    with pytest.raises(InputError, match=r"a C\+\+ compiler.*spec\.image") as refusal:
        compiling.check(torch.device("cpu"))
    assert refusal.value.reason == "CompilerMissing"
    for name in ("g++", "other"):
        (tmp_path / name).touch(0o755)
    compiling.check(torch.device("cpu"))
    (tmp_path / "g++").unlink()
    monkeypatch.setenv("CXX", "other")
    compiling.check(torch.device("cpu"))
