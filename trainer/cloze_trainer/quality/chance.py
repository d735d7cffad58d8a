"""What difference between two models' answers to the same examples is nothing but chance.

Approximate randomization (Yeh, arXiv:cs/0008005): if both were equally good, their answers to each example might as
well be swapped. Unlike with examples that are drawn again, a few examples that differ are known to prove nothing. The
draws are the same each time.
"""

import numpy as np

from cloze_trainer.quality.scores import Floats, Statistic

_DRAWS = 4000
# Examples of so many draws are swapped at a time.
_AT_ONCE = 4_000_000


def difference(one: Statistic, other: Statistic, confidence: float) -> float:
    """What one minus other doesn't exceed, with this confidence, where answers are swapped."""
    assert len(one.sums_EK) == len(other.sums_EK), "the examples are the same"
    gained_EK = other.sums_EK - one.sums_EK
    # Where both answers come to the same, nothing is to be swapped.
    gained_EK = gained_EK[(gained_EK != 0).any(-1)]
    ones_K, others_K = one.sums_EK.sum(0), other.sums_EK.sum(0)
    random = np.random.Generator(np.random.PCG64(0))
    step = max(1, _AT_ONCE // max(1, *gained_EK.shape))
    found: list[Floats] = []
    for start in range(0, _DRAWS, step):
        rows = min(step, _DRAWS - start)
        moved_RK = random.integers(2, size=(rows, len(gained_EK))).astype(np.float64) @ gained_EK
        found.append(one.value(ones_K + moved_RK) - other.value(others_K - moved_RK))
    return float(np.quantile(np.concatenate(found), confidence))
