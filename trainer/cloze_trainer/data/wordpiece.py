"""Chooses a WordPiece vocabulary, by byte-pair encoding's merges as BERT's vocabularies are commonly trained."""

from collections.abc import Mapping

from cloze_trainer.data import bpe

PREFIX = "##"
"""Marks a piece that continues a word."""


def join(first: str, second: str) -> str:
    """The piece that two neighbours make."""
    return first + second.removeprefix(PREFIX)


def split(word: str) -> list[str]:
    """A word as single characters, all but the first marked as continuing."""
    return [word[0], *(PREFIX + character for character in word[1:])]


def pieces(words: Mapping[str, int], size: int) -> list[str]:
    """At most `size` pieces: the characters in their order, then merged pieces, the most frequent first.

    words: how often each word occurs.
    """
    spelt = [split(word) for word in words]
    alphabet = sorted({piece for word in spelt for piece in word})
    return bpe.learn(spelt, list(words.values()), alphabet=alphabet, size=size, join=join).pieces
