"""The learning rate at each step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.training import Optimization
from cloze_trainer.optimizer import adamw, learning_rate


def settings(schedule: str, warmup: int = 0) -> Optimization:
    return Optimization.model_validate({"learningRate": 0.5, "schedule": schedule, "warmupSteps": warmup})


def test_rise_and_fall() -> None:
    """A linear rise to the full rate, then the schedule."""
    rates = [learning_rate(settings("linear", 4), step, 12) for step in range(12)]
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert rates[4:] == pytest.approx([0.5 * (8 - step) / 8 for step in range(8)])
    assert [learning_rate(settings("constant", 2), step, 5) for step in range(5)] == [0.25, 0.5, 0.5, 0.5, 0.5]
    assert learning_rate(settings("cosine"), 5, 10) == pytest.approx(0.25)
    assert learning_rate(settings("cosine"), 9, 10) == pytest.approx(
        0.5 * 0.5 * (1 + torch.cos(torch.tensor(0.9 * torch.pi)))
    )


@given(st.sampled_from(["linear", "cosine", "constant"]), st.integers(0, 50), st.integers(1, 40), st.data())
def test_rate_stays_in_bounds(schedule: str, warmup: int, total: int, data: st.DataObject) -> None:
    """Above zero and at most the rate that was asked for, also where the warm-up is longer than the run."""
    step = data.draw(st.integers(0, total - 1))
    assert 0 < learning_rate(settings(schedule, warmup), step, total) <= 0.5


def test_biases_and_normalisation_do_not_decay() -> None:
    """Weight decay is for matrices."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    matrices, rest = adamw(model, settings("linear")).param_groups
    assert [tuple(parameter.shape) for parameter in matrices["params"]] == [(2, 3)]
    assert matrices["weight_decay"] == 0.01
    assert len(rest["params"]) == 3
    assert rest["weight_decay"] == 0.0
