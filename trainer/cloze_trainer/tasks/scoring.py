"""What a model puts out for tokenized examples, however it is run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cloze_trainer import memory
from cloze_trainer.data.labelled import IGNORED
from cloze_trainer.tasks.kind import Outputs
from cloze_trainer.tasks.rows import Batch, Rows


def outputs(
    rows: Rows,
    width: int,
    infer: Callable[[Batch], npt.NDArray[Any]],
    *,
    at_once: int,
    rank: int = 0,
    world: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> Outputs:
    """Outputs (N, K) of all rows' items; of a rank its share, and zeros where others' are, or where it was `stopped`.

    infer: outputs (B, K) or (B, T, K) of rows of like lengths. at_once: tokens of a batch, padding included.
    """
    starts, truth_N = rows.items()
    outputs_NK = np.zeros((len(truth_N), width), np.float32)
    by_length = np.argsort(rows.lengths, kind="stable")
    size = max(1, at_once // int(rows.lengths.max()))

    def fill(rows_B: npt.NDArray[Any]) -> None:
        batch = rows.batch(rows_B)
        output = infer(batch).reshape(-1, width)
        places = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows_B])
        outputs_NK[places] = output if len(output) == len(rows_B) else output[batch.targets.reshape(-1) != IGNORED]

    for at in range(rank * size, len(by_length), world * size):
        if stopped():
            break
        memory.in_parts(by_length[at : at + size], fill)
    return outputs_NK
