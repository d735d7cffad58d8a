"""Texts that are nearly the same are found, also among many that share a disclaimer, which costs no more for each."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from near_texts import families

from cloze_api.pretrain import Cleaning
from cloze_trainer.data import duplicates, leakage, likeness, passes, splitting
from cloze_trainer.data.cleaning import clean
from cloze_trainer.data.crew import Crew
from cloze_trainer.data.duplicates import SIMILAR, Groups, Hashes, Words, jaccard, near_duplicate_groups, shingles
from cloze_trainer.data.labelled import Example
from cloze_trainer.data.passes import Passes, Unheard
from cloze_trainer.data.splitting import Sides, part
from cloze_trainer.data.spool import Spool
from cloze_trainer.errors import InputError

WORDS = 200


def mails(count: int, share: float, *, seed: int = 0, words: int = WORDS) -> list[str]:
    """Texts of random words, but for a disclaimer at their ends that is this share of each."""
    random = np.random.default_rng(seed)
    disclaimer = " ".join(f"d{number}" for number in random.integers(100_000, size=round(words * share)))
    own = random.integers(1_000_000, size=(count, words - round(words * share)))
    return [f"{' '.join(f'w{number}' for number in numbers)} {disclaimer}" for numbers in own]


def changed(text: str, at: int) -> str:
    """The text with other words at that place and the one before: a similarity of 0.94 in one of 200 words."""
    words = text.split()
    words[at - 1 : at + 1] = [f"other{at}", "and"]
    return " ".join(words)


def exactly(texts: Sequence[str]) -> list[int]:
    """The groups, as a comparison of all pairs has them."""
    hashes = [shingles(text, Words()) for text in texts]
    groups = Groups(len(texts))
    for second in range(len(texts)):
        for first in range(second):
            if len(hashes[first]) and jaccard(hashes[first], hashes[second]) >= SIMILAR:
                groups.join(first, second)
    return groups.all()


def mixed(seed: int, shared: int) -> list[str]:
    """Families behind so many words that all begin with, in any order."""
    texts = families(seed, shared=shared)
    return [texts[at] for at in np.random.default_rng(seed).permutation(len(texts))]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 150))
def test_groups_are_those_of_all_pairs(seed: int, shared: int) -> None:
    """In a corpus of which no more than some share anything, or where more do, but have something of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "MOST", 100)
        texts = mixed(seed, shared)
        found = near_duplicate_groups(texts)
    assert found.groups == exactly(texts)
    assert found.whole.all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 150), st.integers(1, 8))
def test_what_is_joined_is_nearly_the_same(seed: int, shared: int, most: int) -> None:
    """However few are compared: each group is a part of one that a comparison of all pairs finds."""
    texts = mixed(seed, shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "MOST", most)
        groups = near_duplicate_groups(texts).groups
    whole = exactly(texts)
    assert [whole[group] for group in groups] == whole


def test_nearly_all_pairs_at_the_bound_are_found() -> None:
    """Of pairs with a similarity of just above 0.8, no fewer than 999 of 1,000: also where one is the other's part."""
    own = mails(1000, 0)
    at = [changed(changed(changed(changed(text, 20), 60), 100), 198) for text in own]
    cut = [" ".join(text.split()[: 4 + 158]) for text in own]
    for others in (at, cut):
        similarity = jaccard(shingles(own[0], Words()), shingles(others[0], Words()))
        assert SIMILAR <= similarity < SIMILAR + 0.02
        groups = near_duplicate_groups([*own, *others]).groups
        assert sum(group == number for number, group in enumerate(groups[1000:])) >= 999


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Tells how many pairs of texts were compared exactly since it was asked last."""
    count = 0

    def counting(first: Hashes, second: Hashes) -> float:
        nonlocal count
        count += 1
        return jaccard(first, second)

    def told() -> int:
        nonlocal count
        before, count = count, 0
        return before

    for module in (duplicates, splitting):
        monkeypatch.setattr(module, "jaccard", counting)
    return told


@pytest.mark.parametrize("share", [0.5, 0.6, 0.75, 0.85])
def test_comparisons_are_linear_where_all_share_a_disclaimer(compared: Callable[[], int], share: float) -> None:
    """Of texts with a similarity of 0.33 to 0.74: of four times as many each needs hardly more of them."""
    each = []
    for texts in (mails(300, share), mails(1200, share)):
        assert near_duplicate_groups(texts).groups == list(range(len(texts)))
        each.append(compared() / len(texts))
    assert each[1] < 1.5 * each[0]
    assert each[1] < 100


@pytest.mark.parametrize("share", [0.5, 0.6, 0.7])
def test_near_duplicates_are_found_behind_a_disclaimer(share: float) -> None:
    """They have something else in common, too."""
    texts = mails(500, share)
    found = near_duplicate_groups([*texts, *(changed(text, 20) for text in texts[:300])]).groups
    assert found == [*range(500), *range(300)]


def test_a_long_campaign_is_one_group(compared: Callable[[], int]) -> None:
    """However many are nearly the same; each is compared with a few."""
    (text,) = mails(1, 0)
    copies = [changed(text, 2 + number % 190) + f" {number}" for number in range(1000)]
    found = near_duplicate_groups([*mails(100, 0, seed=1), *copies])
    assert found.groups == [*range(100), *[100] * 1000]
    assert compared() < 3000


def mask(count: int, numbers: Any) -> Any:
    found = np.zeros(count, dtype=bool)
    found[numbers] = True
    return found


def parted(texts: Sequence[str], held_out: Any) -> Sides:
    chosen = mask(len(texts), held_out)
    return part(texts, ~chosen, chosen)


@pytest.mark.parametrize("share", [0.5, 0.6, 0.75, 0.85])
def test_comparisons_of_the_sides_are_linear_where_all_share_a_disclaimer(
    compared: Callable[[], int], share: float
) -> None:
    """Also when the held-out texts are four times as many."""
    each = []
    for texts in (mails(300, share), mails(1200, share)):
        assert parted(texts, range(len(texts) // 3)).held_out.sum() == len(texts) // 3
        each.append(compared() / len(texts))
    assert each[1] < 1.5 * each[0]
    assert each[1] < 100


def test_what_is_nearly_trained_on_is_found_behind_a_disclaimer() -> None:
    """Each of them, and no other one."""
    texts = mails(1000, 0.6)
    sides = parted([*texts, *(changed(text, 20) for text in texts[:300])], range(500))
    assert np.flatnonzero(sides.held_out).tolist() == list(range(300, 500))


@pytest.mark.parametrize("training", [1, 40])
def test_all_of_a_campaign_is_on_one_side(training: int) -> None:
    """Also of more texts than are compared with one at once, whether all or one of them is trained on."""
    (text,) = mails(1, 0)
    copies = [changed(text, 2 + number % 190) + f" {number}" for number in range(300)]
    sides = parted([*mails(100, 0, seed=1), *copies], range(400 - training))
    assert np.flatnonzero(sides.held_out).tolist() == list(range(100))


def reported(texts: list[str]) -> tuple[int, int]:
    """How many documents and how many held-out ones weren't compared with all others."""
    with tempfile.TemporaryDirectory() as folder, Spool(Path(folder)) as spool:
        report = clean(texts, Cleaning.model_validate({"deduplicate": "near"}), spool).report
        return report.partly_compared, parted(texts, range(len(texts) // 2)).partly_compared


def test_what_was_left_out_is_counted() -> None:
    """Where little of a text is its own, and others are many: elsewhere there is nothing to count."""
    assert reported(mails(200, 0.85)) == (200, 100)
    assert reported(mails(30, 0.85)) == (0, 0)
    assert reported(mails(200, 0.3)) == (0, 0)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(0, 150), st.integers(1, 8))
def test_whoever_compares_finds_the_same(crews: list[Crew], seed: int, shared: int, most: int) -> None:
    """Also where not all are compared with all: one process, two helpers or three, and once more."""
    texts = mixed(seed, shared)
    chosen = mask(len(texts), range(len(texts) // 2))

    def found(over: Any) -> Any:
        grouped = near_duplicate_groups(texts, over=over)
        try:
            sides = part(texts, ~chosen, chosen, over=over)
        except InputError as refusal:
            return grouped.groups, grouped.whole.tolist(), refusal.reason
        return grouped.groups, grouped.whole.tolist(), sides.held_out.tolist(), sides.partly_compared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "MOST", most)
        expected = found(passes.alone)
        assert [found(Passes(each, Unheard())) for each in crews] == [expected] * 2
        assert found(passes.alone) == expected


def requests(count: int, *, seed: int = 0) -> list[Example]:
    """To one template, in which four words of 15 are other ones each time: a similarity of 0.3."""
    random = np.random.default_rng(seed)
    numbers = random.integers(1_000_000, size=(count, 4))
    texts = [f"please book me a table for {a} people at {b} on {c} in {d}" for a, b, c, d in numbers]
    return [Example(f"train:{number}", (text,), ("book",)) for number, text in enumerate(texts)]


def test_comparisons_of_examples_are_linear_where_all_follow_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four times as many examples each needs hardly more of them."""
    count = 0

    def counting(hashes: Hashes, others: Sequence[Hashes]) -> Any:
        nonlocal count
        count += len(others)
        return duplicates.shared(hashes, others)

    monkeypatch.setattr(likeness, "shared", counting)
    monkeypatch.setattr(likeness, "MOST", 8)
    each = []
    for size in (300, 1200):
        assert likeness.groups(requests(size)) == list(range(size))
        each.append(count / size)
        count = 0
    assert each[1] < 1.5 * each[0]


def test_examples_that_are_nearly_the_same_are_found_in_a_template() -> None:
    """By what is their own, also when many share what is the template's."""
    train = requests(2000)
    test = [Example(f"test:{number}", (f"{each.texts[0]} again",), ()) for number, each in enumerate(train[-100:])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likeness, "MOST", 8)
        seen = leakage.find("test", train, test)
    assert seen.count == 100
    assert seen.first[0] == "test:0 as train:1900"
