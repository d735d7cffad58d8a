"""How sure a figure is: other examples might have been in the test.

Percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13): examples are drawn
again with replacement, whole texts and not words, since the words of a text are alike. The draws are the same each
time, so that the same answers always get the same interval.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cloze_trainer.quality.scores import Floats, Statistic

_DRAWS = 1000
# Weights of so many examples are there at a time.
_AT_ONCE = 4_000_000


def _weights(examples: int) -> Iterator[npt.NDArray[np.float64]]:
    """How often each example is drawn, in parts of all draws."""
    random = np.random.Generator(np.random.PCG64(0))
    step = max(1, _AT_ONCE // examples)
    for start in range(0, _DRAWS, step):
        rows = min(step, _DRAWS - start)
        drawn = random.integers(examples, size=(rows, examples))
        flat = (drawn + np.arange(rows)[:, None] * examples).ravel()
        yield np.bincount(flat, minlength=rows * examples).reshape(rows, examples).astype(np.float64)


def _drawn(*statistics: Statistic) -> list[Floats]:
    """The figures of all draws, each draw the same for all of them."""
    found: list[list[Floats]] = [[] for _ in statistics]
    for weights_RE in _weights(len(statistics[0].sums_EK)):
        for statistic, figures in zip(statistics, found, strict=True):
            figures.append(statistic.value(weights_RE @ statistic.sums_EK))
    return [np.concatenate(figures) for figures in found]


def interval(statistic: Statistic, confidence: float) -> tuple[float, float]:
    """Lower and upper end of the two-sided interval."""
    (figures,) = _drawn(statistic)
    tail = (1 - confidence) / 2
    low, high = np.quantile(figures, [tail, 1 - tail])
    return float(low), float(high)


def least_difference(new: Statistic, old: Statistic, confidence: float) -> float:
    """With this confidence (one-sided) new minus old is at least so much. Both answer the same examples."""
    assert len(new.sums_EK) == len(old.sums_EK), "the examples are the same"
    ours, theirs = _drawn(new, old)
    return float(np.quantile(ours - theirs, 1 - confidence))
