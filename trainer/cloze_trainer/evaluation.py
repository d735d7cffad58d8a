"""Figures of merit of masked language models, from sums that add up over ranks."""

import math


def masked(loss_sum: float, hits: float, count: float) -> dict[str, float]:
    """`masked_loss` (nats), `masked_accuracy` and `perplexity` of sums over hidden tokens."""
    loss = loss_sum / max(1.0, count)
    return {
        "masked_loss": loss,
        "masked_accuracy": hits / max(1.0, count),
        "perplexity": math.exp(min(loss, 700.0)),
    }
