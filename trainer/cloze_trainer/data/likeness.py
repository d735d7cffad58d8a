"""Labelled examples that are nearly the same: a word in ten may be another.

They are shorter than the documents of a corpus, whose word 5-grams (`duplicates`) one word changes five of. Here it is
pairs of words in a row, and pairs of characters where words have no blanks between them: one of n words is in two of
their n - 1 pairs, so that the Jaccard similarity of what is left is (n - 3) / (n + 1).
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import numpy as np

from cloze_trainer.data.cleaning import normalise
from cloze_trainer.data.duplicates import Groups, Hashes, Words, runs, shared
from cloze_trainer.data.minhash import bands, permutations, signature


class Example(Protocol):
    """One line of a data set."""

    @property
    def place(self) -> str:
        """File and line."""

    @property
    def texts(self) -> Sequence[str]:
        """What two examples have in common when one of them gives the other away: its text, or both of a pair."""


SIMILAR: Final = 0.6
"""Jaccard similarity from which on two examples are nearly the same."""
ROWS: Final = 3
"""Of a band: 42 of them find a pair of similarity 0.6 with probability 0.99996; what they find is checked exactly."""
MOST: Final = 128
"""Of the examples that share a band so many are candidates, the first of them."""
_WIDTH: Final = 2
# That are compared at once.
_BLOCK: Final = 64

# Thai, Lao, Burmese, Khmer, kana and ideographs.
_UNSPACED: Final = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNIT = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


def shingles(texts: Sequence[str], words: Words) -> Hashes:
    """Sorted distinct 32-bit hashes of the pairs within an example's texts, normalised, whatever their order.

    Of a text of one word it is that word's, and of one without any, such as `:-)`, the hash of the text but for blanks.
    words: the words' own hashes, shared between examples.
    """
    normal = map(normalise, texts)
    units = (_UNIT.findall(text.lower()) or ["".join(text.split())] for text in normal)
    return np.unique(np.concatenate([runs(each, _WIDTH, words) for each in units]))


class Index:
    """Examples, numbered as they are added, among which those are found that another is nearly the same as.

    What many have in common, such as a template, tells nothing about two of them: of each band the first are compared.
    """

    def __init__(self) -> None:
        self._permutations = permutations()
        self._words = Words()
        self._hashes: list[Hashes] = []
        self._first: dict[bytes, int] = {}
        self._bands: defaultdict[int, list[int]] = defaultdict(list)

    def add(self, example: Example) -> None:
        """What is the same as one before is found by that."""
        hashes, number = shingles(example.texts, self._words), len(self._hashes)
        self._hashes.append(hashes)
        if self._first.setdefault(hashes.tobytes(), number) == number:
            for key in self._keys(hashes):
                if len(self._bands[key]) < MOST:
                    self._bands[key].append(number)

    def alike(self, example: Example) -> Iterator[int]:
        """Numbers of those that it is nearly the same as, in their order; of what it equals, that alone."""
        hashes = shingles(example.texts, self._words)
        twin = self._first.get(hashes.tobytes())
        if twin is not None:
            yield twin
            return
        candidates = sorted({number for key in self._keys(hashes) for number in self._bands.get(key, ())})
        for start in range(0, len(candidates), _BLOCK):
            block = candidates[start : start + _BLOCK]
            counts = shared(hashes, [self._hashes[number] for number in block])
            sizes = np.array([len(self._hashes[number]) for number in block]) + len(hashes)
            yield from (block[at] for at in np.flatnonzero(counts / (sizes - counts) >= SIMILAR))

    def _keys(self, hashes: Hashes) -> list[int]:
        return bands(signature(hashes, *self._permutations), ROWS)


def groups(examples: Sequence[Example]) -> list[int]:
    """For each example the number of its group: that of the group's first.

    Two that are nearly the same are in one group, and so is what connects them.
    """
    index, found = Index(), Groups(len(examples))
    # Which ones are the first with a band doesn't depend on the order of the examples.
    order = sorted(range(len(examples)), key=lambda number: tuple(examples[number].texts))
    for number in order:
        for other in index.alike(examples[number]):
            found.join(order[other], number)
        index.add(examples[number])
    return found.all()
