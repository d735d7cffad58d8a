"""The learning rate at each step."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.training import Optimization
from cloze_trainer.clock import Clock
from cloze_trainer.optimizer import StableAdamW, build, learning_rate


def settings(schedule: str, warmup: int = 0, **more: Any) -> Optimization:
    return Optimization.model_validate({"learningRate": 0.5, "schedule": schedule, "warmupSteps": warmup, **more})


def rate(asked: Optimization, step: int, total: int) -> float:
    return learning_rate(asked, Clock(total, asked.warmup_steps), step, step + 1)


def test_rise_and_fall() -> None:
    """A linear rise to the full rate, then the schedule."""
    rates = [rate(settings("linear", 4), step, 12) for step in range(12)]
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert rates[4:] == pytest.approx([0.5 * (8 - step) / 8 for step in range(8)])
    assert [rate(settings("constant", 2), step, 5) for step in range(5)] == [0.25, 0.5, 0.5, 0.5, 0.5]
    assert rate(settings("cosine"), 5, 10) == pytest.approx(0.25)
    assert rate(settings("cosine"), 9, 10) == pytest.approx(0.5 * 0.5 * (1 + torch.cos(torch.tensor(0.9 * torch.pi))))


def test_rise_and_fall_by_tokens() -> None:
    """Batches of unlike size: the rate is that of where the tokens stand, never nothing and never too much."""
    clock = Clock(1000, 200, in_tokens=True)
    reached = [0, 50, 150, 210, 600, 990, 1010]
    rates = [learning_rate(settings("linear"), clock, *each) for each in itertools.pairwise(reached)]
    assert rates == pytest.approx([0.5 * share for share in (0.25, 0.75, 1.0, 790 / 800, 0.5, 10 / 800)])


@given(st.sampled_from(["linear", "cosine", "constant", "wsd"]), st.integers(0, 50), st.integers(1, 40), st.data())
def test_rate_stays_in_bounds(schedule: str, warmup: int, total: int, data: st.DataObject) -> None:
    """Above zero and at most the rate that was asked for, also where the warm-up is longer than the run."""
    step = data.draw(st.integers(0, total - 1))
    assert 0 < rate(settings(schedule, warmup), step, total) <= 0.5


def test_stable_until_the_end() -> None:
    """The full rate, and 1 - √x of it over the last part."""
    rates = [rate(settings("wsd", 2, decayShare=0.5), step, 10) for step in range(10)]
    assert rates[2:7] == [0.5] * 5
    assert rates[7:] == pytest.approx([0.5 * (1 - (done / 4) ** 0.5) for done in (1, 2, 3)])


def both(scale: float, algorithm: str, steps: int = 30) -> list[torch.Tensor]:
    """Weights after each step on gradients of which the last is so many times as large."""
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 5)
    optimizer = build(model, settings("constant", algorithm=algorithm, weightDecay=0.1))
    found = []
    for step in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter).sign() * (scale if step == steps - 1 else 1.0)
        optimizer.step()
        found.append(torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()]))
    return found


def test_stable_adamw_is_adamw_while_gradients_are_as_before() -> None:
    """Gradients as large as their average change nothing."""
    ours, theirs = both(1.0, "stable-adamw"), both(1.0, "adamw")
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(ours, theirs, strict=True))


def test_stable_adamw_shortens_the_step_of_a_gradient_that_jumps() -> None:
    """By the root mean square of gradient over its corrected second moment."""
    ours, theirs = both(50.0, "stable-adamw"), both(50.0, "adamw")
    # Of thirty gradients of size 1 but for the last, with the weights that beta2 gives.
    weights = torch.tensor([0.98 ** (29 - step) for step in range(30)])
    squares = torch.tensor([1.0] * 29 + [2500.0])
    excess = float((2500.0 / ((weights * squares).sum() / weights.sum())).sqrt())
    assert excess > 2
    # The weights' decay is a part of the step.
    assert torch.allclose(ours[-1] - ours[-2], (theirs[-1] - theirs[-2]) / excess, atol=1e-5)


def test_stable_adamw_leaves_weights_without_a_gradient_alone() -> None:
    """Embeddings of tokens that were never seen, also with an epsilon whose square is no number any more."""
    model = torch.nn.Linear(3, 2, bias=False)
    optimizer = build(model, settings("constant", algorithm="stable-adamw", weightDecay=0.0, epsilon=1e-30))
    before = model.weight.detach().clone()
    model.weight.grad = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    optimizer.step()
    assert torch.equal(model.weight[1], before[1])
    assert torch.isfinite(model.weight).all()
    assert model.weight[0, 0] != before[0, 0]


def test_checkpoints_of_one_fit_the_other() -> None:
    """They keep the same state."""
    model = torch.nn.Linear(3, 2)
    first, second = build(model, settings("constant")), build(model, settings("constant", algorithm="stable-adamw"))
    for optimizer in (first, second):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert isinstance(second, StableAdamW)
    second.load_state_dict(first.state_dict())
    second.step()
    assert [set(state) for state in first.state.values()] == [set(state) for state in second.state.values()]


def test_biases_and_normalisation_do_not_decay() -> None:
    """Weight decay is for matrices."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    matrices, rest = build(model, settings("linear")).param_groups
    assert [tuple(parameter.shape) for parameter in matrices["params"]] == [(2, 3)]
    assert matrices["weight_decay"] == 0.01
    assert len(rest["params"]) == 3
    assert rest["weight_decay"] == 0.0
