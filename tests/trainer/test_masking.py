"""Masks: a function of seed, epoch and sample, with the shares that were asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.pretrain import Masking as MaskingSettings
from cloze_trainer.data.masking import Masker
from cloze_trainer.data.tokenizer import FIRST_ORDINARY_ID, SPECIAL_IDS
from cloze_trainer.pretrain import masking_probability

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


def hiding(*, spans: bool, probability: float = 0.15) -> Masker:
    """Odd ids go on with a word."""
    continuing_V = np.arange(VOCABULARY) % 2 == 1
    continuing_V[:FIRST_ORDINARY_ID] = False
    return Masker(VOCABULARY, probability, 0.8, 0.1, 0, continuing_V=continuing_V, spans=spans)


def words(row_T: np.ndarray) -> list[list[int]]:
    """Places of the tokens of each word."""
    found: list[list[int]] = []
    before = False
    for place, token in enumerate(row_T):
        maskable = token >= FIRST_ORDINARY_ID or token == SPECIAL_IDS.unk
        if maskable:
            goes_on = before and token >= FIRST_ORDINARY_ID and token % 2 == 1
            found = [*found[:-1], [*found[-1], place]] if goes_on else [*found, [place]]
        before = maskable
    return found


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_words_are_hidden_whole(epoch: int, sample: int) -> None:
    """All tokens of a word or none; special tokens part words."""
    (row_T,) = tokens(1, 60)
    _, hidden_T = hiding(spans=False, probability=0.4).row(row_T, epoch, sample)
    found = words(row_T)
    assert all(len({bool(hidden_T[place]) for place in word}) == 1 for word in found)
    assert not hidden_T[np.isin(row_T, [SPECIAL_IDS.cls, SPECIAL_IDS.sep, SPECIAL_IDS.pad])].any()


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_spans_are_words_in_a_row_within_a_text(epoch: int, sample: int) -> None:
    """The share that was asked for, to the token; each stretch begins with a word and never has a special token."""
    (row_T,) = tokens(1, 60)
    _, hidden_T = hiding(spans=True, probability=0.3).row(row_T, epoch, sample)
    maskable = (row_T >= FIRST_ORDINARY_ID) | (row_T == SPECIAL_IDS.unk)
    assert abs(int(hidden_T.sum()) - 0.3 * int(maskable.sum())) < 1
    assert not (hidden_T & ~maskable).any()
    starts = {word[0] for word in words(row_T)}
    stretches = [place for place in np.flatnonzero(hidden_T) if not hidden_T[place - 1]]
    assert set(stretches) <= starts


def test_spans_are_as_long_as_the_papers() -> None:
    """3.8 words on average; here as many tokens, where each is a word, and spans may touch."""
    corpus_BT = 2 * np.random.default_rng(3).integers(FIRST_ORDINARY_ID, VOCABULARY // 2, size=(2000, 128))
    hidden_BT = np.zeros(corpus_BT.shape, dtype=bool)
    for row, row_T in enumerate(corpus_BT):
        _, hidden_BT[row] = hiding(spans=True).row(row_T, 0, row)
    assert abs(hidden_BT.mean() - 0.15) < 0.001
    stretches = (hidden_BT & ~np.pad(hidden_BT, ((0, 0), (1, 0)))[:, :-1]).sum()
    assert 3.3 < hidden_BT.sum() / stretches < 4.6


def test_a_probability_changes_over_the_run() -> None:
    """Evenly, from the first to the last step; what comes after is as the last."""
    masking = MaskingSettings.model_validate({"probability": 0.3, "finalProbability": 0.15})
    assert [masking_probability(masking, share) for share in (0, 0.5, 1, 1.2)] == pytest.approx(
        [0.3, 0.225, 0.15, 0.15]
    )
    assert masking_probability(MaskingSettings(), 0.7) == 0.15
    corpus_BT = tokens(200, 64)
    many, few = (masker().batch(corpus_BT, np.zeros(200), np.arange(200), share) for share in (0.3, 0.15))
    assert set(few.positions_M) < set(many.positions_M)
