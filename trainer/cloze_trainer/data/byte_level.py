"""Chooses a vocabulary of byte sequences (Radford et al. 2019, section 2.2): nothing is unknown to it."""

import re
from collections.abc import Iterable

from tokenizers import normalizers, pre_tokenizers

from cloze_trainer.data import bpe

# A word never goes on beyond blanks, so that a text can be counted by these stretches, of which few are distinct.
_STRETCH = re.compile(r"\s*\S+|\s+")
# Longer words are counted in parts of as many bytes, as scripts without blanks have sentences instead of words. It's a
# multiple of what a character takes.
_PART = 96


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


def learn(texts: Iterable[str], size: int, *, lowercase: bool) -> bpe.Merges:
    """At most `size` pieces, the 256 single bytes first. Bytes are written as the characters that stand for them."""
    normal = normalizer(lowercase=lowercase)
    stretches, words = bpe.Tally(), bpe.Tally()
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def parts(stretch: str) -> Iterable[str]:
        for word, _ in splitter.pre_tokenize_str(stretch):
            yield from (word[at : at + _PART] for at in range(0, len(word), _PART))

    for text in texts:
        # Each word begins with its blank, also the first.
        found = _STRETCH.findall(" " + normal.normalize_str(text))
        stretches.add(stretch for stretch in found if len(stretch) <= _PART)
        for stretch in found:
            if len(stretch) > _PART:
                words.add(parts(stretch))
    for stretch, count in stretches.counts.items():
        words.add(parts(stretch), count)
    ordered = sorted(words.counts)
    return bpe.learn(
        [list(word) for word in ordered],
        [words.counts[word] for word in ordered],
        alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        size=size,
    )
