"""Byte-pair encoding: greedy merges by frequency (Sennrich, Haddow and Birch, arXiv:1508.07909).

The same words give the same merges, in every process. The `tokenizers` library's own trainer walks hash maps that are
seeded anew in each process, and its vocabulary differs from run to run; two runs of one job would then train different
models.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from tokenizers.pre_tokenizers import PreTokenizer

# A pair that occurs once is no pattern, it is a word of the corpus learned by heart.
_LEAST_COUNT = 2

#: Longer words are counted in parts of as many characters, or bytes, as scripts without blanks have sentences instead
#: of words. It's a multiple of the bytes that a character takes.
PART = 96

Pair = tuple[str, str]


def parts(stretch: str, split: PreTokenizer) -> Iterator[str]:
    """The words of a stretch of text, those that are long in parts."""
    for word, _ in split.pre_tokenize_str(stretch):
        yield from (word[at : at + PART] for at in range(0, len(word), PART))


class Tally:
    """Counts words in bounded memory: when there are too many, the rarest are dropped (lossy counting, Manku and
    Motwani 2002). The same words in the same order give the same counts.
    """

    def __init__(self, most: int = 1_000_000) -> None:
        self.counts: Counter[str] = Counter()
        self._most, self._floor = most, 0

    def add(self, words: Iterable[str], times: int = 1) -> None:
        """Count each of the words so many times."""
        for word in words:
            self.counts[word] += times
        self._forget()

    def merge(self, counted: Mapping[str, int]) -> None:
        """Count words that were counted elsewhere."""
        self.counts.update(counted)
        self._forget()

    def _forget(self) -> None:
        while len(self.counts) > self._most:
            self._floor += 1
            self.counts = Counter({word: count for word, count in self.counts.items() if count > self._floor})


class Merges(NamedTuple):
    """pieces: the alphabet in its order, then merged pieces, the most frequent first. pairs: what was merged."""

    pieces: list[str]
    pairs: list[Pair]


def learn(
    words: list[list[str]],
    counts: Sequence[int],
    *,
    alphabet: Iterable[str],
    size: int,
    join: Callable[[str, str], str] = str.__add__,
) -> Merges:
    """At most `size` pieces. Ties go to the pair that sorts first.

    words: spelt in pieces of the alphabet; changed to how the merges spell them. counts: how often each occurs. join:
    the piece that two neighbours make.
    """
    chosen = dict.fromkeys(alphabet)
    pairs: list[Pair] = []
    frequency: defaultdict[Pair, int] = defaultdict(int)
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in pairwise(word):
            frequency[pair] += counts[index]
            places[pair].add(index)
    heap = [(-count, pair) for pair, count in frequency.items()]
    heapq.heapify(heap)
    while heap and len(chosen) < size:
        count, pair = heapq.heappop(heap)
        if -count != frequency[pair]:
            continue  # an entry of before the pair's count changed; a newer one is in the heap
        if -count < _LEAST_COUNT:
            break
        merged = join(*pair)
        chosen[merged] = None
        pairs.append(pair)
        changed: set[Pair] = set()
        for index in places.pop(pair):
            before = words[index]
            after = _merge(before, pair, merged)
            for old in pairwise(before):
                frequency[old] -= counts[index]
                changed.add(old)
            for new in pairwise(after):
                frequency[new] += counts[index]
                places[new].add(index)
                changed.add(new)
            words[index] = after
        del frequency[pair]
        for touched in changed - {pair}:
            heapq.heappush(heap, (-frequency[touched], touched))
    return Merges(list(chosen), pairs)


def _merge(word: list[str], pair: Pair, merged: str) -> list[str]:
    """The word with each occurrence of the pair as one piece, from left to right."""
    result: list[str] = []
    at = 0
    while at < len(word):
        if at + 1 < len(word) and (word[at], word[at + 1]) == pair:
            result.append(merged)
            at += 2
        else:
            result.append(word[at])
            at += 1
    return result
