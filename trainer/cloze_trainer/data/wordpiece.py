"""Chooses a WordPiece vocabulary: the same words give the same pieces, in every process.

Byte-pair encoding's greedy merges by frequency (Sennrich, Haddow and Birch, arXiv:1508.07909), as BERT's vocabularies
are commonly trained. The `tokenizers` library's own trainer walks hash maps that are seeded anew in each process, and
its vocabulary differs from run to run; two runs of one job would then train different models.
"""

import heapq
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise

PREFIX = "##"
"""Marks a piece that continues a word."""

# A pair that occurs once is no pattern, it is a word of the corpus learned by heart.
_LEAST_COUNT = 2

Pair = tuple[str, str]


def join(first: str, second: str) -> str:
    """The piece that two neighbours make."""
    return first + second.removeprefix(PREFIX)


def split(word: str) -> list[str]:
    """A word as single characters, all but the first marked as continuing."""
    return [word[0], *(PREFIX + character for character in word[1:])]


def pieces(words: Mapping[str, int], size: int) -> list[str]:
    """At most `size` pieces: the characters in their order, then merged pieces, the most frequent first.

    words: how often each word occurs. Ties go to the pair that sorts first.
    """
    spelt = [split(word) for word in words]
    counts = list(words.values())
    chosen = dict.fromkeys(sorted({piece for word in spelt for piece in word}))
    frequency: defaultdict[Pair, int] = defaultdict(int)
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, word in enumerate(spelt):
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
        changed: set[Pair] = set()
        for index in places.pop(pair):
            before = spelt[index]
            after = _merge(before, pair, merged)
            for old in pairwise(before):
                frequency[old] -= counts[index]
                changed.add(old)
            for new in pairwise(after):
                frequency[new] += counts[index]
                places[new].add(index)
                changed.add(new)
            spelt[index] = after
        del frequency[pair]
        for touched in changed - {pair}:
            heapq.heappush(heap, (-frequency[touched], touched))
    return list(chosen)


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
