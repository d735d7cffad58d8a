"""The vocabulary: deterministic, of the asked size, and able to spell what it was made from."""

import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_api.pretrain import TokenizerAlgorithm
from cloze_trainer.data import tokenizer
from cloze_trainer.data.wordpiece import PREFIX, pieces

WORDS = st.dictionaries(st.text("abcdé", min_size=1, max_size=8), st.integers(1, 50), min_size=1, max_size=30)


@given(WORDS, st.integers(1, 60), st.randoms())
def test_order_of_words_does_not_matter(words: dict[str, int], size: int, random: object) -> None:
    """The pieces depend on the words and their counts alone."""
    shuffled = list(words.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # Hypothesis gives a random.Random
    assert pieces(words, size) == pieces(dict(shuffled), size)


@given(WORDS, st.integers(1, 60))
def test_pieces_spell_every_word(words: dict[str, int], size: int) -> None:
    """Each character of each word is there, at a word's start or as a continuation, and no piece twice."""
    chosen = pieces(words, size)
    assert len(chosen) == len(set(chosen))
    for word in words:
        assert word[0] in chosen
        assert all(PREFIX + character in chosen for character in word[1:])


@given(WORDS)
def test_most_frequent_pair_is_merged_first(words: dict[str, int]) -> None:
    """The first merged piece is the most frequent pair of neighbours (ties: the one that sorts first)."""
    spelt = {word: [word[0], *(PREFIX + c for c in word[1:])] for word in words}
    pairs = Counter()
    for word, count in words.items():
        for pair in zip(spelt[word], spelt[word][1:], strict=False):
            pairs[pair] += count
    characters = len({piece for word in spelt.values() for piece in word})
    chosen = pieces(words, characters + 1)[characters:]
    if not pairs or max(pairs.values()) < 2:
        assert chosen == []
        return
    first, second = min(pairs, key=lambda pair: (-pairs[pair], pair))
    assert chosen == [first + second.removeprefix(PREFIX)]


@pytest.mark.parametrize("algorithm", TokenizerAlgorithm)
def test_processes_agree(algorithm: TokenizerAlgorithm) -> None:
    """Two processes with other hash seeds train the same tokenizer: two runs of one job meet the same tokens."""
    program = (
        "from cloze_trainer.data import tokenizer;"
        "text = open(tokenizer.__file__).read();"
        f"algorithm = tokenizer.TokenizerAlgorithm({algorithm.value!r});"
        "trained = tokenizer.train(text.split('\\n'), vocab_size=600, lowercase=True, algorithm=algorithm);"
        "print(trained.to_str())"
    )
    texts = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1]
    assert ('"type":"BPE"' in texts[0]) == (algorithm in (TokenizerAlgorithm.BYTE_LEVEL_BPE, TokenizerAlgorithm.BPE))


def test_tokenizer_has_the_asked_size_and_knows_its_special_tokens() -> None:
    """Special tokens come first, placeholders of personal data stay whole, known text has no `[UNK]`."""
    texts = ["the quick brown fox jumps over the lazy dog, again and again: 12 + 13 = 25"] * 20
    trained = tokenizer.train(texts, vocab_size=128, lowercase=True)
    assert trained.get_vocab_size() <= 128
    assert [trained.token_to_id(word) for word in tokenizer.SPECIAL] == [0, 1, 2, 3, 4]
    tokens = trained.encode("The [MASK] fox mailed [EMAIL] 25").tokens
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    assert "[MASK]" in tokens
    assert "[EMAIL]" in tokens
    assert "[UNK]" not in trained.encode(texts[0]).tokens


@pytest.mark.parametrize("text", ["Café naïve", "don't stop", "a+b=c", "l'été"])
def test_words_are_split_as_berts_pre_tokenizer_does(text: str) -> None:
    """What the vocabulary was made from is what is looked up later: nothing known becomes `[UNK]`."""
    trained = tokenizer.train([text] * 3, vocab_size=200, lowercase=True)
    assert "[UNK]" not in trained.encode(text).tokens


def test_thousands_of_characters_fit_where_the_text_needs_them() -> None:
    """Text in a script of 2,500 equally frequent characters has next to no `[UNK]` at the default size."""
    script = [chr(0x4E00 + number) for number in range(2500)]
    texts = ["".join(script[start : start + 50]) for start in range(0, 2500, 50)]
    trained = tokenizer.train(texts, vocab_size=8192, lowercase=True)
    unknown = sum(encoding.tokens.count("[UNK]") for encoding in trained.encode_batch(texts))
    assert unknown <= 0.0005 * 2500 + 1


def test_rare_characters_take_no_room_where_a_thousand_cover_the_text() -> None:
    """A long tail of characters that occur once leaves the vocabulary to pieces of words."""
    tail = {chr(0x4E00 + number): 1 for number in range(3000)}
    assert len(tokenizer._alphabet({"a": 10_000_000, **tail}, room=4000)) == 1000
    assert len(tokenizer._alphabet({"a": 1000, **tail}, room=4000)) > 2900
    assert tokenizer._alphabet({"a": 1000, "b": 2000, **tail}, room=3) == ["b", "a", chr(0x4E00)]
