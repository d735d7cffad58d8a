"""Masks: a function of seed, epoch and sample, with the shares that were asked for."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cloze_trainer.data.masking import Masker
from cloze_trainer.data.tokenizer import FIRST_ORDINARY_ID, SPECIAL_IDS

VOCABULARY = 1000


def masker(seed: int = 0, *, evaluation: bool = False) -> Masker:
    return Masker(VOCABULARY, 0.15, 0.8, 0.1, seed, evaluation=evaluation)


def tokens(rows: int, length: int) -> np.ndarray:
    body_BT = np.random.default_rng(3).integers(FIRST_ORDINARY_ID, VOCABULARY, size=(rows, length))
    body_BT[:, 0], body_BT[:, -1] = SPECIAL_IDS.cls, SPECIAL_IDS.sep
    body_BT[:, 2::5], body_BT[:, 3::7] = SPECIAL_IDS.unk, SPECIAL_IDS.sep
    body_BT[-1, -2:] = SPECIAL_IDS.pad
    return body_BT


@given(st.integers(0, 2**31 - 1), st.integers(0, 1000), st.permutations(range(6)))
def test_masks_do_not_depend_on_the_batch(seed: int, epoch: int, samples: list[int]) -> None:
    """A sample gets the same masks in whatever batch, place and rank it is drawn."""
    corpus_BT = tokens(6, 32)
    together = masker(seed).batch(corpus_BT[samples], np.full(6, epoch), np.array(samples))
    for row, sample in enumerate(samples):
        alone = masker(seed).batch(corpus_BT[[sample]], np.array([epoch]), np.array([sample]))
        assert np.array_equal(together.input_ids_BT[row], alone.input_ids_BT[0])


@given(st.integers(0, 2**31 - 1))
def test_special_tokens_are_never_hidden_and_targets_are_the_originals(seed: int) -> None:
    """What is to be predicted stood at that place; `[CLS]`, `[SEP]`, `[PAD]` stay; `[UNK]` is a word like another."""
    corpus_BT = tokens(4, 40)
    original_BT = corpus_BT.copy()
    everything = Masker(VOCABULARY, 0.9, 0.8, 0.1, seed)
    masked = everything.batch(corpus_BT, np.zeros(4), np.arange(4))
    assert np.array_equal(original_BT.reshape(-1)[masked.positions_M], masked.targets_M)
    framing = [SPECIAL_IDS.cls, SPECIAL_IDS.sep, SPECIAL_IDS.pad]
    assert not np.isin(masked.targets_M, framing).any()
    assert (masked.targets_M == SPECIAL_IDS.unk).any()
    assert np.array_equal(
        masked.input_ids_BT[np.isin(original_BT, framing)], original_BT[np.isin(original_BT, framing)]
    )
    untouched = np.ones(corpus_BT.size, dtype=bool)
    untouched[masked.positions_M] = False
    assert np.array_equal(corpus_BT.reshape(-1)[untouched], masked.input_ids_BT.reshape(-1)[untouched])


def test_shares_are_those_of_the_paper() -> None:
    """15 % hidden; of these 80 % `[MASK]`, 10 % random, 10 % kept (within four standard errors of 40,000 draws)."""
    corpus_BT = np.random.default_rng(3).integers(FIRST_ORDINARY_ID, VOCABULARY, size=(2000, 128))
    masked = masker().batch(corpus_BT, np.zeros(2000), np.arange(2000))
    count = len(masked.positions_M)
    shown_M = masked.input_ids_BT.reshape(-1)[masked.positions_M]
    assert abs(count / (2000 * 128) - 0.15) < 0.003
    assert abs((shown_M == SPECIAL_IDS.mask).mean() - 0.8) < 0.01
    assert abs((shown_M == masked.targets_M).mean() - 0.1) < 0.01


def test_epochs_and_purposes_have_masks_of_their_own() -> None:
    """Masking is dynamic over epochs, and the evaluation's masks are none of the training's."""
    corpus_BT = tokens(8, 64)
    drawn = [
        masker().batch(corpus_BT, np.zeros(8), np.arange(8)),
        masker().batch(corpus_BT, np.ones(8), np.arange(8)),
        masker(evaluation=True).batch(corpus_BT, np.zeros(8), np.arange(8)),
    ]
    assert len({masked.positions_M.tobytes() for masked in drawn}) == 3
