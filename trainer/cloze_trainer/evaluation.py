"""Figures of merit, from sums and confusion counts that add up over ranks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Counts_CC = npt.NDArray[np.int64]
"""Examples by true class (row) and predicted class (column)."""


def confusion(
    truth_N: npt.NDArray[np.integer[Any]], predicted_N: npt.NDArray[np.integer[Any]], classes: int
) -> Counts_CC:
    """Confusion counts of paired classes."""
    flat = np.bincount(truth_N.astype(np.int64) * classes + predicted_N.astype(np.int64), minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def f1_scores(counts_CC: Counts_CC) -> npt.NDArray[np.float64]:
    """F1 of each class; 0 where a class is neither predicted nor present."""
    hits_C = np.diag(counts_CC).astype(np.float64)
    total_C = counts_CC.sum(axis=0) + counts_CC.sum(axis=1)
    scores_C: npt.NDArray[np.float64] = np.divide(2 * hits_C, total_C, out=np.zeros(len(hits_C)), where=total_C > 0)
    return scores_C


def classification(counts_CC: Counts_CC, labels: Sequence[str]) -> dict[str, float]:
    """`accuracy`, `macro_f1` over the classes that occur, `f1_<label>` of each label.

    With two labels also `f1`, that of the last one: the second that the spec names, or in the alphabet.
    """
    present_C = (counts_CC.sum(axis=0) + counts_CC.sum(axis=1)) > 0
    scores_C = f1_scores(counts_CC)
    figures = {
        "accuracy": float(np.trace(counts_CC) / max(1, counts_CC.sum())),
        "macro_f1": float(scores_C[present_C].mean()) if present_C.any() else 0.0,
    }
    if len(counts_CC) == 2:
        figures["f1"] = float(scores_C[1])
    return figures | {f"f1_{label}": float(score) for label, score in zip(labels, scores_C, strict=True)}


def masked(loss_sum: float, hits: float, count: float) -> dict[str, float]:
    """`masked_loss` (nats), `masked_accuracy` and `perplexity` of sums over hidden tokens."""
    loss = loss_sum / max(1.0, count)
    return {
        "masked_loss": loss,
        "masked_accuracy": hits / max(1.0, count),
        "perplexity": math.exp(min(loss, 700.0)),
    }
