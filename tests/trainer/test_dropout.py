"""Dropout of our own: torch's in what it does, and in what its noise follows from."""

import pytest
import torch

from cloze_trainer.encoders.dropout import Dropout


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_as_many_are_dropped_and_the_mean_stays(share: float) -> None:
    """Within five standard errors of a million draws; the others grow by what was dropped."""
    torch.manual_seed(1)
    values = torch.ones(1000, 1000)
    noised = Dropout(share)(values)
    error = 5 * (share * (1 - share) / values.numel()) ** 0.5
    assert float((noised == 0).float().mean()) == pytest.approx(share, abs=error)
    assert float(noised[noised > 0].unique()) == pytest.approx(1 / (1 - share), rel=1e-4)
    assert float(noised.mean()) == pytest.approx(1, abs=error / (1 - share))


def test_noise_has_no_pattern() -> None:
    """Neighbours, rows and columns are dropped independently of each other."""
    torch.manual_seed(1)
    dropped = (Dropout(0.5)(torch.ones(1000, 1000)) == 0).float() - 0.5
    for other in (dropped.roll(1, 1), dropped.roll(4, 1), dropped.roll(1, 0), dropped.T):
        assert abs(float((dropped * other).mean())) < 5 * 0.25 / 1000


def test_gradient_is_that_of_what_was_kept() -> None:
    """Nothing flows back through what was dropped."""
    torch.manual_seed(1)
    values = torch.randn(50, 7, requires_grad=True)
    noised = Dropout(0.3)(values)
    noised.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * values.detach(), noised.detach())


def test_the_same_seed_gives_the_same_noise() -> None:
    """And the next draw another one."""
    module, values = Dropout(0.3), torch.ones(100, 3)
    torch.manual_seed(5)
    first, second = module(values), module(values)
    torch.manual_seed(5)
    assert torch.equal(module(values), first)
    assert not torch.equal(first, second)


def test_nothing_is_dropped_where_nothing_is_trained() -> None:
    """Nor without a probability."""
    values = torch.ones(10, 3)
    assert Dropout(0.3).eval()(values) is values
    assert Dropout(0.0)(values) is values


def test_a_share_next_to_all_leaves_numbers() -> None:
    """Also where it is rounded to all."""
    values = Dropout(1 - 1e-9)(torch.ones(1000, 1000))
    assert torch.isfinite(values).all()
    assert float((values == 0).float().mean()) > 0.999


def test_half_precision_stays() -> None:
    """The products of bfloat16 aren't widened."""
    noised = Dropout(0.3)(torch.ones(10, 3, dtype=torch.bfloat16))
    assert noised.dtype == torch.bfloat16
