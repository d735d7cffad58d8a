"""Rare classes count as much as frequent ones where that is asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from cloze_api.task import Task
from cloze_trainer.tasks.classification import balanced

RARE = [{"text": f"an ordinary mail number {number}", "label": "ham"} for number in range(9)] + [
    {"text": "win a prize", "label": "spam"}
]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_balanced_weights_are_those_of_scikit_learn(classes: list[int]) -> None:
    """And 1 on average over the items."""
    truth_N = np.unique(classes, return_inverse=True)[1]
    count = int(truth_N.max()) + 1
    weights_C = balanced(truth_N, count)
    assert weights_C == pytest.approx(compute_class_weight("balanced", classes=np.arange(count), y=truth_N))
    assert weights_C[truth_N].mean() == pytest.approx(1)


def test_the_loss_counts_them(tuned: Callable[..., Any]) -> None:
    """By the training examples' classes; nothing changes where nothing is asked for."""
    plain = tuned(Task.SEQUENCE_CLASSIFICATION, RARE, RARE)
    weighted = tuned(
        Task.SEQUENCE_CLASSIFICATION,
        RARE,
        RARE,
        optimization={"batchSequences": 10, "seed": 1, "classWeights": "balanced"},
    )
    (chunk,) = weighted.workload.share(0, 0, 1, 0.0)
    with torch.no_grad():
        logits_BC = weighted.model(*chunk.inputs)
        weights_C = torch.tensor([10 / 18, 10 / 2])
        expected = functional.cross_entropy(logits_BC, chunk.targets, weight=weights_C, reduction="sum")
        assert weighted.workload.loss_sum(weighted.model, chunk) == pytest.approx(float(expected))
        even = functional.cross_entropy(logits_BC, chunk.targets, reduction="sum")
        assert plain.workload.loss_sum(weighted.model, chunk) == pytest.approx(float(even))
