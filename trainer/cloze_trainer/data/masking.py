"""Hides tokens for the model to predict (Devlin et al., arXiv:1810.04805, section 3.1).

The masks of a sample are a function of (seed, epoch, sample) and the probability alone, whichever rank draws them and
in whatever order.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cloze_api.manifest import SpecialTokens
from cloze_trainer.data.tokenizer import SPECIAL_IDS, ordinary

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

EVALUATION_PROBABILITY = 0.15
# The evaluation's masks are those of this seed, so that models are compared on the same tokens.
EVALUATION_SEED = 0

_TRAINING_DOMAIN = 2
_EVALUATION_DOMAIN = 3
# Words of a span: a geometric distribution, cut (SpanBERT's figures).
_SPAN_END = 0.2
_LONGEST_SPAN = 10
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


def _spans(maskable_T: Flags, words_T: Ids, order_W: Ids, lengths_W: Ids, wanted: int) -> Flags:
    """Words in a row, until so many tokens are hidden.

    words_T: the word of each token. order_W: words, at which spans begin in this order. lengths_W: words of each span.
    """
    hidden_T = np.zeros(len(maskable_T), dtype=bool)
    for first in order_W:
        room = wanted - int(hidden_T.sum())
        if room <= 0:
            break
        span = np.flatnonzero((words_T >= first) & (words_T < first + lengths_W[first]) & maskable_T)
        # It ends with its text.
        ends = np.flatnonzero(~maskable_T[span[0] :])
        span = span[span < span[0] + ends[0]] if len(ends) else span
        hidden_T[span[~hidden_T[span]][:room]] = True
    return hidden_T


@dataclass(frozen=True, slots=True)
class Masker:
    """Draws masks. The shares are of the hidden tokens: replaced by `[MASK]`, by a random token; the rest stays.

    continuing_V: which tokens go on with a word, where words are hidden as one; None where tokens are. spans: whether
    several words in a row are. special_tokens: ids of the tokenizer.
    """

    vocab_size: int
    probability: float
    mask_share: float
    random_share: float
    seed: int
    evaluation: bool = False
    continuing_V: Flags | None = None
    spans: bool = False
    special_tokens: SpecialTokens = SPECIAL_IDS
    _ordinary_O: Ids = field(init=False, repr=False)
    _mask: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.special_tokens.mask is not None, "a tokenizer without a mask token is refused"
        object.__setattr__(self, "_mask", self.special_tokens.mask)
        object.__setattr__(self, "_ordinary_O", ordinary(self.vocab_size, self.special_tokens))

    def row(
        self, tokens_T: npt.NDArray[np.int64], epoch: int, sample: int, probability: float | None = None
    ) -> tuple[Any, Any]:
        """One sequence: its ids with some replaced, and which positions are hidden (bool). Special tokens never are.

        probability: instead of the masker's own.
        """
        domain = _EVALUATION_DOMAIN if self.evaluation else _TRAINING_DOMAIN
        bits = np.random.Philox(
            key=np.array([self.seed, domain], dtype=np.uint64), counter=np.array([0, epoch, sample, 0], dtype=np.uint64)
        )
        # Raw words, whose stream NumPy guarantees to stay the same from release to release.
        raw_3T = bits.random_raw(3 * len(tokens_T)).reshape(3, len(tokens_T))
        unit_2T = (raw_3T[:2] >> np.uint64(11)) * _TO_UNIT
        hidden_T = self._hidden(tokens_T, unit_2T[0], bits, self.probability if probability is None else probability)
        random_T = self._ordinary_O[raw_3T[2] % np.uint64(len(self._ordinary_O))]
        replaced_T = np.where(
            unit_2T[1] < self.mask_share,
            self._mask,
            np.where(unit_2T[1] < self.mask_share + self.random_share, random_T, tokens_T),
        )
        return np.where(hidden_T, replaced_T, tokens_T), hidden_T

    def _maskable(self, tokens_T: Ids) -> Flags:
        """All but special tokens; an unknown word is a word like another."""
        special = self.special_tokens
        framing_T = (tokens_T == special.pad) | (tokens_T == special.cls) | (tokens_T == special.sep)
        maskable_T: Flags = ~(framing_T | (tokens_T == self._mask))
        return maskable_T

    def _hidden(
        self, tokens_T: Ids, unit_T: npt.NDArray[np.float64], bits: np.random.Philox, probability: float
    ) -> Flags:
        maskable_T = self._maskable(tokens_T)
        if self.continuing_V is None:
            hidden_T: Flags = (unit_T < probability) & maskable_T
            return hidden_T
        begins_T = maskable_T & ~(self.continuing_V[tokens_T] & np.concatenate([[False], maskable_T[:-1]]))
        # Index of its word for each token.
        words_T = np.cumsum(begins_T) - 1
        starts_W = np.flatnonzero(begins_T)
        if not self.spans:
            # A word shares the fate of its first token.
            return (unit_T[starts_W[words_T]] < probability) & maskable_T if len(starts_W) else maskable_T
        order_W = bits.random_raw(len(starts_W) + 1)
        # Of the row's tokens; the rest of the division is made up by chance, so that short rows get their share.
        wanted = int(probability * maskable_T.sum() + (order_W[-1] >> np.uint64(11)) * _TO_UNIT)
        lengths_W = 1 + np.floor(np.log1p(-unit_T[starts_W]) / np.log1p(-_SPAN_END)).clip(max=_LONGEST_SPAN - 1)
        return _spans(maskable_T, words_T, np.argsort(order_W[:-1], kind="stable"), lengths_W.astype(int), wanted)

    def batch(
        self,
        tokens_BT: npt.NDArray[np.integer[Any]],
        epochs_B: npt.NDArray[np.integer[Any]],
        samples_B: npt.NDArray[np.integer[Any]],
        probability: float | None = None,
    ) -> Masked:
        """Sequences with their hidden tokens.

        samples_B: each sequence's index in the corpus. probability: as in `row`.
        """
        ids_BT = tokens_BT.astype(np.int64)
        masked_BT = ids_BT.copy()
        hidden_BT = np.zeros(ids_BT.shape, dtype=bool)
        for row, (epoch, sample) in enumerate(zip(epochs_B, samples_B, strict=True)):
            masked_BT[row], hidden_BT[row] = self.row(ids_BT[row], int(epoch), int(sample), probability)
        positions_M = np.flatnonzero(hidden_BT)
        return Masked(masked_BT, positions_M, ids_BT.reshape(-1)[positions_M])
