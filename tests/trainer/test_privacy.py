"""Private training: what its noise and its steps come to, held to Opacus, and what it refuses."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from opacus.accountants import PRVAccountant
from torch import Tensor
from torch.nn import functional

from cloze_api.privacy import Privacy
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.encoders.postnorm import PostNormEncoder
from cloze_trainer.errors import TrainerError
from cloze_trainer.privacy import budget, secret
from cloze_trainer.privacy.gradient import clipped_sum

ASKED = Privacy(epsilon=3, delta=1e-4)
KEY = bytes(range(16))


def test_the_budget_is_spent_with_the_last_step_and_not_before() -> None:
    """The noise is the least that all steps fit in; a tighter accountant of Opacus' finds no more than we tell."""
    planned = budget.plan(ASKED, examples=2000, batch=64, steps=300)
    assert 0.97 * 3 < planned.spent(300) <= 3
    assert planned.spent(301) > planned.spent(300) > planned.spent(100) > planned.spent(0) == 0
    tighter = PRVAccountant()
    tighter.history = [(planned.noise, planned.rate, 300)]
    assert tighter.get_epsilon(delta=1e-4) < planned.spent(300)
    assert budget.plan(replace_epsilon(1), examples=2000, batch=64, steps=300).noise > planned.noise


def replace_epsilon(epsilon: float) -> Privacy:
    return ASKED.model_copy(update={"epsilon": epsilon})


@pytest.mark.parametrize(
    ("asked", "reason", "words"),
    [
        (Privacy(epsilon=3, delta=0.01), "DeltaTooLarge", "such as 1e-03"),
        (Privacy(epsilon=1e-9, delta=1e-9), "PrivacyBudgetTooSmall", "raise spec.privacy.epsilon"),
    ],
)
def test_a_budget_that_promises_nothing_or_cant_be_kept_is_refused(asked: Privacy, reason: str, words: str) -> None:
    """Before the training, with what to do."""
    with pytest.raises(TrainerError, match=words) as refusal:
        budget.plan(asked, examples=100, batch=10, steps=1000)
    assert refusal.value.reason == reason


def test_no_examples_gradient_counts_for_more_than_its_share() -> None:
    """The sum of cut gradients is that of Opacus' own, example by example, where some are cut and some aren't."""
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=40, layers=2, hidden_size=16, heads=2, intermediate_size=16, max_length=16, dropout=0
    )
    model = PostNormEncoder(config)
    ids_BT, types_BT = torch.randint(5, 40, (4, 9)), torch.zeros(4, 9, dtype=torch.int64)
    # Opacus takes the first dimension of all that goes into a layer for the examples'.
    places_BT, classes_B = torch.arange(9).expand(4, 9), torch.tensor([0, 2, 1, 1])

    def loss(encoder: Any, rows: slice) -> Tensor:
        hidden_BTD = encoder(ids_BT[rows], None, types_BT[rows], places_BT[rows])
        return functional.cross_entropy(hidden_BTD[:, 0], classes_B[rows], reduction="sum")

    reference = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    loss(reference, slice(4)).backward()
    each_BP = torch.cat([parameter.grad_sample.reshape(4, -1) for parameter in reference.parameters()], dim=1)
    norms_B = each_BP.norm(dim=1)
    most = float(norms_B.median())
    expected = (each_BP * (most / norms_B).clamp(max=1)[:, None]).sum(0)
    assert 0 < int((norms_B > most).sum()) < 4
    losses = (loss(model, slice(row, row + 1)) for row in range(4))
    assert torch.allclose(clipped_sum(list(model.parameters()), losses, most), expected, rtol=1e-4, atol=1e-6)


def test_an_example_without_a_finite_gradient_is_left_out() -> None:
    """One broken example doesn't decide about the others, nor make a step infinite."""
    model = torch.nn.Linear(2, 1)
    weights = list(model.parameters())
    good = clipped_sum(weights, (model(torch.ones(1, 2)).sum() for _ in range(1)), 0.5)
    both = clipped_sum(weights, (model(torch.ones(1, 2)).sum() * scale for scale in (float("nan"), 1.0)), 0.5)
    assert torch.equal(good, both)
    assert float(good.norm()) == pytest.approx(0.5)


def test_each_example_is_in_a_step_by_its_own_lot() -> None:
    """As often as the rate says, in sets whose sizes vary as those of independent lots do; other noise at each step."""
    sizes = [len(secret.sample(KEY, step, 1000, 0.05)) for step in range(400)]
    assert np.mean(sizes) == pytest.approx(50, abs=1.5)
    assert np.std(sizes) == pytest.approx(np.sqrt(1000 * 0.05 * 0.95), rel=0.15)
    assert np.array_equal(secret.sample(KEY, 7, 1000, 0.05), secret.sample(KEY, 7, 1000, 0.05))
    first, second = secret.noise(KEY, 0, 20_000), secret.noise(KEY, 1, 20_000)
    assert first.std() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_the_key_stays_while_it_is_needed_and_is_another_for_each_run(tmp_path: Path) -> None:
    """The same after a restart, readable by its owner alone, gone in the end; a seed in the spec decides nothing."""
    file, other = tmp_path / "privacy.key", tmp_path / "other.key"
    key = secret.obtain(file)
    assert secret.obtain(file) == key != secret.obtain(other)
    assert file.stat().st_mode & 0o777 == 0o600
    secret.forget(file)
    secret.forget(file)
    assert not file.exists()
