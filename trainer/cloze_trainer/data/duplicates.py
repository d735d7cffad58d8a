"""Groups texts that are nearly the same: MinHash over word 5-grams (Broder 1997), candidates by banding, each
candidate pair checked against the exact Jaccard similarity."""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from cloze_trainer.data.passes import Pass, alone

SHINGLE_WORDS = 5
PERMUTATIONS = 128
ROWS = 6
"""Of a band: 21 of them find a pair of similarity 0.8 with probability 0.998; what they find is checked exactly."""

SIMILAR = 0.8
"""Jaccard similarity from which on two texts are nearly the same."""
SKETCH = 16
_SHARED = 4
_MOST_WORDS = 1 << 20

_WORD = re.compile(r"\w+")
_LARGEST = np.uint64((1 << 32) - 1)
_HALF = np.uint64(32)

Hashes = npt.NDArray[np.uint64]
Sketch = npt.NDArray[np.uint32]


class Words(dict[str, int]):
    """Hashes of words, worked out once each; the memory is bounded."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST_WORDS:
            self.clear()
        found = self[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return found


def shingles(text: str, words: Words) -> Hashes:
    """Sorted distinct 32-bit hashes of a text's word 5-grams; one hash of all words when there are fewer.

    words: the words' own hashes, shared between texts.
    """
    return runs(_WORD.findall(text.lower()), SHINGLE_WORDS, words)


def runs(tokens: Sequence[str], width: int, words: Words) -> Hashes:
    """Sorted distinct 32-bit hashes of so many tokens after each other; one hash of all when there are fewer."""
    hashes = np.fromiter(map(words.__getitem__, tokens), dtype=np.uint64, count=len(tokens))
    width = min(width, len(tokens))
    if width == 0:
        return np.empty(0, dtype=np.uint64)
    combined = np.zeros(len(tokens) - width + 1, dtype=np.uint64)
    for offset in range(width):
        combined = combined * np.uint64(0x9E3779B97F4A7C15) + hashes[offset : len(tokens) - width + 1 + offset]
        combined ^= combined >> np.uint64(29)
    return np.unique((combined * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(32))


def signature(hashes: Hashes, multipliers: Hashes, offsets: Hashes) -> Hashes:
    """The smallest value of each permutation over the hashes; shape (P,).

    A permutation is a·h + b mod 2^64, high 32 bits: strongly universal for 32-bit h (Dietzfelbinger 1996).
    """
    smallest = np.full(len(multipliers), _LARGEST, dtype=np.uint64)
    # In slices, so that a long document doesn't need P × shingles numbers at once.
    for start in range(0, len(hashes), 1024):
        block = hashes[start : start + 1024, None]
        smallest = np.minimum(smallest, ((block * multipliers + offsets) >> _HALF).min(axis=0))
    return smallest


def permutations(seed: int = 0) -> tuple[Hashes, Hashes]:
    """Multipliers and offsets of a signature's permutations."""
    generator = np.random.Generator(np.random.PCG64(seed))
    multipliers = generator.integers(1, 1 << 63, size=PERMUTATIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return multipliers, generator.integers(0, 1 << 63, size=PERMUTATIONS, dtype=np.uint64)


def bands(values: Hashes, rows: int) -> list[int]:
    """A hash for each band of a signature, in which its rows and the band's number go; a rest is left out."""
    count = len(values) // rows
    rows_BR = values[: count * rows].reshape(count, rows)
    keys = np.arange(1, count + 1, dtype=np.uint64)
    for row in range(rows):
        keys = (keys ^ rows_BR[:, row]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    found: list[int] = keys.tolist()
    return found


def jaccard(first: Hashes, second: Hashes) -> float:
    """Share of common elements among the elements of both."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / max(1, len(first) + len(second) - common)


def sketches(texts: Iterable[str]) -> list[Sketch]:
    """The smallest hashes of each text's shingles."""
    words = Words()
    # They are sorted, and of 32 bits.
    return [shingles(text, words)[:SKETCH].astype(np.uint32) for text in texts]


class Sketched:
    """Few texts, among which what is nearly another text is found: by the smallest hashes of their word 5-grams.

    Of two texts of similarity s each of the k smallest hashes of both together is in both with a probability of s
    (bottom-k sketches, Cohen and Kaplan 2007): of 16 at 0.8 fewer than four are in one of a million pairs. Candidates
    are checked against the exact similarity. 16 numbers of each text are in memory.
    """

    def __init__(self, sketches: Iterable[Sketch]) -> None:
        sketches = list(sketches)
        owners = np.repeat(np.arange(len(sketches), dtype=np.int64), [len(sketch) for sketch in sketches])
        entries = np.concatenate([*sketches, np.empty(0, dtype=np.uint32)])
        order = np.argsort(entries, kind="stable")
        self._entries, self._owners = entries[order], owners[order]

    def candidates(self, sketch: Sketch) -> list[int]:
        """Numbers of the texts that the one of this sketch may nearly be, in their order."""
        begins = np.searchsorted(self._entries, sketch, "left")
        ends = np.searchsorted(self._entries, sketch, "right")
        if not (ends > begins).any():
            return []
        found = np.concatenate([self._owners[begin:end] for begin, end in zip(begins, ends, strict=True)])
        those, shared = np.unique(found, return_counts=True)
        return [int(number) for number in those[shared >= min(_SHARED, math.ceil(SIMILAR * len(sketch)))]]


@dataclass(frozen=True, slots=True)
class _Signing:
    """Makes the bands of texts' signatures, as the functions of these names have them."""

    multipliers: Hashes
    offsets: Hashes

    def __call__(self, texts: Iterable[str]) -> list[tuple[bytes, list[int]] | None]:
        """Of each text a digest of its shingles and the bands of its signature; None where there are none."""
        words = Words()
        hashes = (shingles(text, words) for text in texts)
        return [
            (hashlib.sha256(each.tobytes()).digest(), bands(signature(each, self.multipliers, self.offsets), ROWS))
            if len(each)
            else None
            for each in hashes
        ]


class Groups:
    """Numbers in groups, at first each in its own. A group is called by its first number."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def of(self, number: int) -> int:
        """What its group is called."""
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number

    def join(self, one: int, other: int) -> None:
        """Make one group of theirs."""
        first, second = sorted((self.of(one), self.of(other)))
        self._parents[second] = first

    def all(self) -> list[int]:
        """For each number what its group is called."""
        return [self.of(number) for number in range(len(self._parents))]


def near_duplicate_groups(
    texts: Sequence[str], threshold: float = SIMILAR, seed: int = 0, *, over: Pass = alone
) -> list[int]:
    """For each text the number of its group: the index of the group's first text. over: how to pass over the texts.

    Two texts whose word 5-grams have a Jaccard similarity of at least `threshold` are in one group, and so is what
    connects them. Texts without any word are in groups of their own.
    """
    # The texts of which a band has this hash.
    index: defaultdict[int, list[int]] = defaultdict(list)
    words = Words()
    groups = Groups(len(texts))
    exact: dict[bytes, int] = {}
    signed = chain.from_iterable(over("comparing", _Signing(*permutations(seed)), texts))
    for number, found in enumerate(signed):
        if found is None:
            continue
        digest, keys = found
        twin = exact.setdefault(digest, number)
        if twin != number:
            groups.join(twin, number)
            continue
        hashes: Hashes | None = None
        for candidate in sorted({other for key in keys for other in index[key]}):
            if groups.of(candidate) == groups.of(number):
                continue
            hashes = shingles(texts[number], words) if hashes is None else hashes
            if jaccard(hashes, shingles(texts[candidate], words)) >= threshold:
                groups.join(candidate, number)
        for key in keys:
            index[key].append(number)
    return groups.all()
