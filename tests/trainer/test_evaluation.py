"""Figures of masked language models come from sums."""

import math

from cloze_trainer import evaluation


def test_masked_figures_come_from_sums() -> None:
    """Loss is the mean over hidden tokens, perplexity its exponential."""
    figures = evaluation.masked(loss_sum=20.0, hits=3.0, count=10.0)
    assert figures == {"masked_loss": 2.0, "masked_accuracy": 0.3, "perplexity": math.exp(2.0)}
