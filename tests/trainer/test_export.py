"""The check of the exported graph: bounded in memory, strict in proportion."""

from pathlib import Path

import pytest
import torch

from cloze_api.task import Task
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.errors import TrainerError
from cloze_trainer.export import check_length, export
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
