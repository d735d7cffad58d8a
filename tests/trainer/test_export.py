"""The check of the exported graph: bounded in memory, strict in proportion."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from cloze_api.pretrain import Architecture
from cloze_api.task import Task
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.errors import TrainerError
from cloze_trainer.export import INPUTS, check_length, export
from cloze_trainer.model import TaskModel, build


def config(max_length: int, vocab_size: int) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=vocab_size,
        layers=1,
        hidden_size=16,
        heads=2,
        intermediate_size=32,
        max_length=max_length,
        dropout=0.0,
    )


@pytest.mark.parametrize(
    ("max_length", "vocab_size", "length"),
    [(128, 8192, 128), (8192, 8192, 512), (8192, 262_144, 85), (16, 262_144, 16)],
)
def test_check_is_bounded(max_length: int, vocab_size: int, length: int) -> None:
    """Attention scores and logits of the longest sequences would take gigabytes: shorter ones prove the same."""
    assert check_length(vocab_size, max_length) == length


def model(scale: float) -> TaskModel:
    torch.manual_seed(0)
    built = build(Task.SEQUENCE_CLASSIFICATION, config(16, 50), 3)
    with torch.no_grad():
        built.classifier.weight.mul_(scale)  # type: ignore[union-attr, operator]  # a classifier has one
    return built


def test_large_outputs_are_compared_in_proportion(tmp_path: Path) -> None:
    """Logits of some hundred thousand differ by float32's rounding, which is no fault of the graph."""
    export(model(3e6), Task.SEQUENCE_CLASSIFICATION, config(16, 50), tmp_path / "model.onnx")


def test_another_models_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that computes something else is never published."""
    changed = model(1.0)
    write = torch.onnx.export

    def other(_: object, *arguments: object, **settings: object) -> None:
        write(model(1.5).eval(), *arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("torch.onnx.export", other)
    with pytest.raises(TrainerError) as refusal:
        export(changed, Task.SEQUENCE_CLASSIFICATION, config(16, 50), tmp_path / "model.onnx")
    assert refusal.value.reason == "ExportMismatch"


class Deaf(nn.Module):
    """The model, whose graph is traced as if one input were always the same."""

    def __init__(self, inner: TaskModel, place: int) -> None:
        super().__init__()
        self.inner, self._place = inner, place

    def forward(self, *inputs: Tensor) -> Tensor:
        given = list(inputs)
        if torch.jit.is_tracing():  # type: ignore[no-untyped-call]  # torch has no type here
            same = torch.ones_like if INPUTS[self._place] == "attention_mask" else torch.zeros_like
            # In the graph, and of no weight there.
            given[self._place] = same(given[0]) + 0 * given[self._place]
        return cast(Tensor, self.inner(*given))


@pytest.mark.parametrize("place", [1, 2], ids=INPUTS.__getitem__)
@pytest.mark.parametrize("task", [Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION])
def test_a_graph_that_is_deaf_to_an_input_is_refused(tmp_path: Path, task: Task, place: int) -> None:
    """To padding, or to which text of a pair a token is of, where the model hears it."""
    torch.manual_seed(0)
    inner = build(task, config(16, 50), 3)
    for weights in inner.parameters():
        if weights.dim() > 1:
            # As large as those of a trained one, whose answers depend on what it hears.
            nn.init.normal_(weights, std=0.4)
    with pytest.raises(TrainerError) as refusal:
        export(Deaf(inner, place), task, config(16, 50), tmp_path / "model.onnx")
    assert refusal.value.reason == "ExportMismatch"
    export(inner, task, config(16, 50), tmp_path / "model.onnx")


def test_a_model_that_tells_no_texts_apart_is_given_none(tmp_path: Path) -> None:
    """Its graph has no such input."""
    plain = replace(config(16, 50), architecture=Architecture.DISTILBERT)
    torch.manual_seed(0)
    export(build(Task.SEQUENCE_CLASSIFICATION, plain, 3), Task.SEQUENCE_CLASSIFICATION, plain, tmp_path / "model.onnx")
