"""Chooses a vocabulary of byte sequences (Radford et al. 2019, section 2.2): nothing is unknown to it."""

import re
from collections import Counter
from collections.abc import Iterable

from tokenizers import normalizers, pre_tokenizers

from cloze_trainer.data import bpe

# A word never goes on beyond blanks, so that a text can be counted by these stretches, of which few are distinct.
_STRETCH = re.compile(r"\s*\S+|\s+")
# Longer words are no words, and would take most of the time.
_LONGEST_WORD = 100


def normalizer(*, lowercase: bool) -> normalizers.Normalizer:
    """What texts go through first."""
    parts = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    return normalizers.Sequence(parts)


def learn(texts: Iterable[str], size: int, *, lowercase: bool) -> bpe.Merges:
    """At most `size` pieces, the 256 single bytes first. Bytes are written as the characters that stand for them."""
    normal = normalizer(lowercase=lowercase)
    stretches: Counter[str] = Counter()
    for text in texts:
        # Each word begins with its blank, also the first.
        stretches.update(_STRETCH.findall(" " + normal.normalize_str(text)))
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words: Counter[str] = Counter()
    for stretch, count in stretches.items():
        for word, _ in splitter.pre_tokenize_str(stretch):
            if len(word) <= _LONGEST_WORD:
                words[word] += count
    ordered = sorted(words)
    return bpe.learn(
        [list(word) for word in ordered],
        [words[word] for word in ordered],
        alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        size=size,
    )
