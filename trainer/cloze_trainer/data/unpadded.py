"""Rows of packed texts without their padding: all texts one after the other, and where each begins."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloze_api.manifest import SpecialTokens

Numbers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Unpadded:
    """N tokens of S texts. ids_N: what the model reads. places_N: of each token in its text. positions_M: what is
    predicted. bounds: where each text begins, and the end (S + 1). longest: tokens of the longest.
    """

    ids_N: Numbers
    places_N: Numbers
    positions_M: Numbers
    bounds: npt.NDArray[np.int32]
    longest: int


def unpadded(
    rows_BT: Numbers, input_ids_BT: Numbers, places_BT: Numbers, positions_M: Numbers, special: SpecialTokens
) -> Unpadded:
    """The rows' tokens, of which some are hidden in the input. positions_M: indices into the flattened (B × T)."""
    real = (rows_BT != special.pad).ravel()
    # Hidden tokens may stand for anything in the input; in the rows each text begins with its own.
    begins = np.flatnonzero(rows_BT.ravel()[real] == special.cls)
    bounds = np.append(begins, real.sum()).astype(np.int32)
    return Unpadded(
        ids_N=input_ids_BT.ravel()[real],
        places_N=places_BT.ravel()[real],
        positions_M=(np.cumsum(real) - 1)[positions_M],
        bounds=bounds,
        longest=int(np.diff(bounds).max()),
    )
