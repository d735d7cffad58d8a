"""Hides tokens for the model to predict (Devlin et al., arXiv:1810.04805, section 3.1).

The masks of a sample are a function of (seed, epoch, sample) alone, whichever rank draws them and in whatever order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloze_trainer.data.tokenizer import FIRST_ORDINARY_ID, SPECIAL_IDS

EVALUATION_PROBABILITY = 0.15
# The evaluation's masks are those of this seed, so that models are compared on the same tokens.
EVALUATION_SEED = 0

_TRAINING_DOMAIN = 2
_EVALUATION_DOMAIN = 3
# 64 random bits to a number in [0, 1): the upper 53 fill a double's mantissa.
_TO_UNIT = 2.0**-53


@dataclass(frozen=True, slots=True)
class Masked:
    """Sequences with hidden tokens.

    input_ids_BT: int64. positions_M: indices of the hidden tokens in the flattened B × T. targets_M: what they were.
    """

    input_ids_BT: npt.NDArray[np.int64]
    positions_M: npt.NDArray[np.int64]
    targets_M: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Masker:
    """Draws masks. The shares are of the hidden tokens: replaced by `[MASK]`, by a random token; the rest stays."""

    vocab_size: int
    probability: float
    mask_share: float
    random_share: float
    seed: int
    evaluation: bool = False

    def row(self, tokens_T: npt.NDArray[np.int64], epoch: int, sample: int) -> tuple[Any, Any]:
        """One sequence: its ids with some replaced, and which positions are hidden (bool). Special tokens never are."""
        domain = _EVALUATION_DOMAIN if self.evaluation else _TRAINING_DOMAIN
        bits = np.random.Philox(
            key=np.array([self.seed, domain], dtype=np.uint64), counter=np.array([0, epoch, sample, 0], dtype=np.uint64)
        )
        # Raw words, whose stream NumPy guarantees to stay the same from release to release.
        raw_3T = bits.random_raw(3 * len(tokens_T)).reshape(3, len(tokens_T))
        unit_2T = (raw_3T[:2] >> np.uint64(11)) * _TO_UNIT
        hidden_T = (unit_2T[0] < self.probability) & ((tokens_T >= FIRST_ORDINARY_ID) | (tokens_T == SPECIAL_IDS.unk))
        random_T = FIRST_ORDINARY_ID + (raw_3T[2] % np.uint64(self.vocab_size - FIRST_ORDINARY_ID)).astype(np.int64)
        replaced_T = np.where(
            unit_2T[1] < self.mask_share,
            SPECIAL_IDS.mask,
            np.where(unit_2T[1] < self.mask_share + self.random_share, random_T, tokens_T),
        )
        return np.where(hidden_T, replaced_T, tokens_T), hidden_T

    def batch(
        self,
        tokens_BT: npt.NDArray[np.integer[Any]],
        epochs_B: npt.NDArray[np.integer[Any]],
        samples_B: npt.NDArray[np.integer[Any]],
    ) -> Masked:
        """Sequences with their hidden tokens. samples_B: each sequence's index in the corpus."""
        ids_BT = tokens_BT.astype(np.int64)
        masked_BT = ids_BT.copy()
        hidden_BT = np.zeros(ids_BT.shape, dtype=bool)
        for row, (epoch, sample) in enumerate(zip(epochs_B, samples_B, strict=True)):
            masked_BT[row], hidden_BT[row] = self.row(ids_BT[row], int(epoch), int(sample))
        positions_M = np.flatnonzero(hidden_BT)
        return Masked(masked_BT, positions_M, ids_BT.reshape(-1)[positions_M])
