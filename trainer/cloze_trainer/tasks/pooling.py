"""What the windows of a text say together, as servers have it: the mean, weighted by their tokens."""

import numpy as np

from cloze_trainer.tasks.kind import Outputs
from cloze_trainer.tasks.rows import Array, Rows

# Around each window.
_SPECIAL = 2


def pooled(outputs_RK: Outputs, rows: Rows) -> tuple[Outputs, Array]:
    """An output (E, K) and the target of each example. outputs_RK: of its rows, whose target is the same."""
    firsts_E = np.array([own.start for own in rows.groups()])
    # A text of which the tokenizer leaves nothing has one row.
    weights_R = np.maximum(rows.lengths - _SPECIAL, 1)
    sums_EK = np.add.reduceat(outputs_RK.astype(np.float64) * weights_R[:, None], firsts_E)
    means_EK = sums_EK / np.add.reduceat(weights_R, firsts_E)[:, None]
    return means_EK.astype(np.float32), rows.items()[1][firsts_E]
