"""Figures of merit equal scikit-learn's."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from cloze_trainer import evaluation

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=200)


@given(PAIRS)
def test_classification_equals_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    """Accuracy, macro F1 over the classes that occur, and the confusion counts."""
    truth_N, predicted_N = np.array(pairs).T
    counts_CC = evaluation.confusion(truth_N, predicted_N, 5)
    assert np.array_equal(counts_CC, confusion_matrix(truth_N, predicted_N, labels=range(5)))
    figures = evaluation.classification(counts_CC, "abcde")
    assert figures["accuracy"] == pytest.approx(accuracy_score(truth_N, predicted_N))
    assert figures["macro_f1"] == pytest.approx(f1_score(truth_N, predicted_N, average="macro", zero_division=0))
    scores_C = f1_score(truth_N, predicted_N, labels=range(5), average=None, zero_division=0)
    assert [figures[f"f1_{label}"] for label in "abcde"] == pytest.approx(scores_C)
    assert "f1" not in figures


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=100))
def test_f1_of_two_labels_is_that_of_the_last(pairs: list[tuple[int, int]]) -> None:
    """As scikit-learn's binary F1 with the last label as the positive one."""
    truth_N, predicted_N = np.array(pairs).T
    figures = evaluation.classification(evaluation.confusion(truth_N, predicted_N, 2), ("ham", "spam"))
    assert figures["f1"] == figures["f1_spam"] == pytest.approx(f1_score(truth_N, predicted_N, zero_division=0))


def test_masked_figures_come_from_sums() -> None:
    """Loss is the mean over hidden tokens, perplexity its exponential."""
    figures = evaluation.masked(loss_sum=20.0, hits=3.0, count=10.0)
    assert figures == {"masked_loss": 2.0, "masked_accuracy": 0.3, "perplexity": math.exp(2.0)}
