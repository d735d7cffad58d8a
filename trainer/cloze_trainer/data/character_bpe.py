"""Chooses a vocabulary of merged characters, as byte-pair encoding was first used for text (Sennrich, Haddow and Birch,
arXiv:1508.07909); words begin with their blank, and marks are words of their own.
"""

import unicodedata
from collections.abc import Mapping

from tokenizers import pre_tokenizers

from cloze_trainer.data import bpe, unigram


def splitter() -> pre_tokenizers.PreTokenizer:
    """Where words begin; no piece goes beyond a mark, so that none is spelt as a special token is."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(replacement=unigram.BLANK), pre_tokenizers.Punctuation("isolated")]
    )


def continues(piece: str) -> bool:
    """Whether a piece goes on with a word: words begin with their blank, and marks are words of their own."""
    return piece[0] != unigram.BLANK and not stands_alone(piece[0])


def stands_alone(character: str) -> bool:
    """Whether the tokenizers library makes a word of it wherever it stands: ASCII symbols, punctuation."""
    return unicodedata.category(character).startswith("P") or (character.isascii() and not character.isalnum())


def learn(counts: Mapping[str, int], size: int) -> bpe.Merges:
    """At most `size` pieces, the characters first. counts: how often each word occurs."""
    words = sorted(counts)
    alphabet = sorted({character for word in words for character in word})
    return bpe.learn(list(map(list, words)), [counts[word] for word in words], alphabet=alphabet, size=size)
