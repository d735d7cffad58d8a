"""Finds texts that are nearly the same: those whose word 5-grams have a Jaccard similarity of 0.8.

Candidates are looked up by the smallest hashes of their word 5-grams (bottom-k sketches, Cohen and Kaplan 2007), and
each pair of them is checked exactly. What many texts have in common, such as a disclaimer, tells nothing about two of
them: of those that share one hash the first few are candidates. That keeps the comparisons linear, and what two texts
have in common beyond it still leads from one to the other.
"""

import hashlib
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from cloze_trainer.data.passes import Pass, alone
from cloze_trainer.data.spool import Mask

SHINGLE_WORDS = 5

SIMILAR = 0.8
"""Jaccard similarity from which on two texts are nearly the same."""
SKETCH: Final = 64
_SHARED: Final = 35
"""Of two texts of similarity s each of the smallest hashes of both together is in both with a probability of s: of 64
at 0.8 fewer than 35 are in one of a million pairs."""
MOST: Final = 32
"""Of the texts that share one hash so many are candidates, the first of them."""
_RARE: Final = 0.3
_MOST_WORDS = 1 << 20
_MOST_SHINGLES: Final = 1 << 22

_WORD = re.compile(r"\w+")

Hashes = npt.NDArray[np.uint64]
Sketch = npt.NDArray[np.uint32]
H = TypeVar("H", np.uint32, np.uint64)


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


def jaccard(first: Hashes, second: Hashes) -> float:
    """Share of common elements among the elements of both."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / max(1, len(first) + len(second) - common)


def shared(hashes: npt.NDArray[H], others: Sequence[npt.NDArray[H]]) -> npt.NDArray[np.int64]:
    """How many of the sorted hashes are in each of the others, of which none is empty."""
    together = np.concatenate(others)
    those = hashes.take(np.searchsorted(hashes, together), mode="clip") == together
    starts = np.cumsum([0, *(len(other) for other in others[:-1])])
    found: npt.NDArray[np.int64] = np.add.reduceat(those, starts, dtype=np.int64)
    return found


def _sketch(hashes: Hashes) -> Sketch:
    # They are sorted, and of 32 bits.
    return hashes[:SKETCH].astype(np.uint32)


def sketches(texts: Iterable[str]) -> list[Sketch]:
    """The smallest hashes of each text's shingles."""
    words = Words()
    return [_sketch(shingles(text, words)) for text in texts]


class Shingled:
    """The shingles of texts, by their numbers.

    Those of some are remembered, as the first texts with a disclaimer are compared with all others; the memory is
    bounded.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts, self._words = texts, Words()
        self._known: dict[int, Hashes] = {}
        self._size = 0

    def __getitem__(self, number: int) -> Hashes:
        found = self._known.get(number)
        if found is None:
            found = shingles(self._texts[number], self._words)
            if self._size + len(found) > _MOST_SHINGLES:
                self._known.clear()
                self._size = 0
            self._known[number] = found
            self._size += len(found)
        return found


class Sketched:
    """Texts by their sketches, among which what is nearly another text is looked up.

    whole: for each text whether it is a candidate of all that are nearly it. That is so where 0.3 of its hashes are in
    no more than MOST texts. What is nearly it may lack 0.2 of it: at worst, when these are all among the 0.3, each of
    the 20 and more of a sketch is shared with a probability of a third, and none is of three pairs in ten thousand.
    """

    def __init__(self, sketches: Iterable[Sketch]) -> None:
        flat, ends = array("I"), array("Q", [0])
        for sketch in sketches:
            flat.frombytes(sketch.tobytes())
            ends.append(len(flat))
        self._flat, self._ends = np.array(flat, dtype=np.uint32), np.array(ends, dtype=np.int64)
        sizes = np.diff(self._ends)
        owners = np.repeat(np.arange(len(sizes), dtype=np.uint32), sizes)
        order = np.argsort(self._flat, kind="stable")
        # Sorted, those of one hash in the texts' order.
        self._entries, self._owners = self._flat[order], owners[order]
        starts = np.flatnonzero(np.append(True, self._entries[1:] != self._entries[:-1]))
        lengths = np.diff(np.append(starts, len(self._entries)))
        rare = np.bincount(self._owners[np.repeat(lengths <= MOST, lengths)], minlength=len(sizes))
        self.whole: Mask = (rare > _RARE * sizes) | (sizes == 0)
        # The last is nobody's.
        self._forgotten = np.zeros(len(sizes) + 1, dtype=bool)

    def __getitem__(self, number: int) -> Sketch:
        found: Sketch = self._flat[self._ends[number] : self._ends[number + 1]]
        return found

    def __len__(self) -> int:
        return len(self._ends) - 1

    def forget(self, number: int) -> None:
        """It is no candidate any more, and leaves its place to another."""
        self._forgotten[number] = True

    def candidates(self, sketch: Sketch, before: int | None = None) -> list[int]:
        """Numbers of the texts that the one of this sketch may nearly be, in their order.

        before: only what comes before this number.
        """
        begins = np.searchsorted(self._entries, sketch, "left")
        ends = np.searchsorted(self._entries, sketch, "right")
        there = ends > begins
        if not there.any():
            return []
        spans = list(zip(begins[there].tolist(), ends[there].tolist(), strict=True))
        found = self._first(spans)
        if self._forgotten[found].any():
            for begin, end in spans:
                self._close_up(self._owners[begin:end])
            found = self._first(spans)
        those = np.unique(found)
        those = those[those < (len(self) if before is None else before)]
        if not len(those):
            return []
        counts = shared(sketch, [self[number] for number in those.tolist()])
        kept: list[int] = those[counts >= min(_SHARED, math.ceil(SIMILAR * len(sketch)))].tolist()
        return kept

    def _first(self, spans: Iterable[tuple[int, int]]) -> npt.NDArray[np.uint32]:
        return np.concatenate([self._owners[begin : min(end, begin + MOST)] for begin, end in spans])

    def _close_up(self, owners: npt.NDArray[np.uint32]) -> None:
        left = owners[~self._forgotten[owners]]
        owners[: len(left)] = left
        owners[len(left) :] = len(self)


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


def _digested(texts: Iterable[str]) -> list[tuple[bytes, Sketch] | None]:
    """Of each text a digest of its shingles and its sketch; None where there are no words."""
    words = Words()
    hashes = (shingles(text, words) for text in texts)
    return [(hashlib.sha256(each.tobytes()).digest(), _sketch(each)) if len(each) else None for each in hashes]


@dataclass(frozen=True, slots=True)
class Grouped:
    """Texts in groups.

    groups: for each text the number of its group: the index of the group's first text. whole: for each whether it was
    compared with all that it may nearly be, as `Sketched` has it.
    """

    groups: list[int]
    whole: Mask


def near_duplicate_groups(texts: Sequence[str], *, over: Pass = alone) -> Grouped:
    """Two texts that are nearly the same are in one group, and so is what connects them. over: how to pass over them.

    Texts without any word are in groups of their own. In memory are the sketches and some texts.
    """
    groups = Groups(len(texts))
    numbers = array("Q")

    def distinct() -> Iterator[Sketch]:
        exact: dict[bytes, int] = {}
        for number, found in enumerate(chain.from_iterable(over("comparing", _digested, texts))):
            if found is None:
                continue
            digest, sketch = found
            twin = exact.setdefault(digest, number)
            if twin == number:
                numbers.append(number)
                yield sketch
            else:
                groups.join(twin, number)

    sketched, shingled = Sketched(distinct()), Shingled(texts)
    for place, number in enumerate(numbers):
        for other in sketched.candidates(sketched[place], before=place):
            candidate = numbers[other]
            if groups.of(candidate) == groups.of(number):
                continue
            if jaccard(shingled[candidate], shingled[number]) >= SIMILAR:
                groups.join(candidate, number)
    whole = np.ones(len(texts), dtype=bool)
    whole[np.array(numbers, dtype=np.int64)] = sketched.whole
    return Grouped(groups.all(), whole)
