"""Chooses a vocabulary of byte sequences (Radford et al. 2019, section 2.2): nothing is unknown to it."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import normalizers, pre_tokenizers

from cloze_trainer.data import bpe
from cloze_trainer.data.passes import Pass, alone

# A word never goes on beyond blanks, so that a text can be counted by these stretches, of which few are distinct.
_STRETCH = re.compile(r"\s*\S+|\s+")


# Bytes that are no visible character of Latin-1 are written as the characters from U+0100 on, in their order.
_VISIBLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_BYTES = {chr(byte): byte for byte in _VISIBLE} | {
    chr(0x100 + number): byte for number, byte in enumerate(byte for byte in range(256) if byte not in _VISIBLE)
}


def continues(piece: str) -> bool:
    """Whether a piece goes on with a word: words begin with their blank, and marks are words of their own."""
    first = _BYTES[piece[0]]
    return first >= 0x80 or chr(first).isalnum()


def normalizer(*, lowercase: bool) -> normalizers.Normalizer:
    """What texts go through first."""
    parts = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    return normalizers.Sequence(parts)


def _splitter() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


@dataclass(frozen=True, slots=True)
class _Counting:
    """Counts the stretches of texts, and the words of those that are long."""

    lowercase: bool

    def __call__(self, texts: Iterable[str]) -> tuple[Counter[str], Counter[str]]:
        normal, split = normalizer(lowercase=self.lowercase), _splitter()
        stretches: Counter[str] = Counter()
        words: Counter[str] = Counter()
        for text in texts:
            # Each word begins with its blank, also the first.
            found = _STRETCH.findall(" " + normal.normalize_str(text))
            stretches.update(stretch for stretch in found if len(stretch) <= bpe.PART)
            for stretch in found:
                if len(stretch) > bpe.PART:
                    words.update(bpe.parts(stretch, split))
        return stretches, words


def learn(texts: Iterable[str], size: int, *, lowercase: bool, over: Pass = alone) -> bpe.Merges:
    """At most `size` pieces, the 256 single bytes first. Bytes are written as the characters that stand for them.

    over: how to pass over the texts.
    """
    split, stretches, words = _splitter(), bpe.Tally(), bpe.Tally()
    for counted, long in over("counting", _Counting(lowercase), texts):
        stretches.merge(counted)
        words.merge(long)
    for stretch, count in stretches.counts.items():
        words.add(bpe.parts(stretch, split), count)
    ordered = sorted(words.counts)
    return bpe.learn(
        [list(word) for word in ordered],
        [words.counts[word] for word in ordered],
        alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        size=size,
    )
