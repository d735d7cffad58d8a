"""The vocabulary of byte sequences: deterministic, of the asked size, and knowing every text."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from cloze_api.pretrain import TokenizerAlgorithm
from cloze_trainer.data import bpe, byte_level, tokenizer

TEXTS = ["the quick brown fox jumps over the lazy dog,\n\nagain and again: 12 + 13 = 25 — größer, don't"] * 20


def trained(*, lowercase: bool = False, size: int = 400) -> Tokenizer:
    return tokenizer.train(TEXTS, vocab_size=size, lowercase=lowercase, algorithm=TokenizerAlgorithm.BYTE_LEVEL_BPE)


@cache
def literal() -> Tokenizer:
    """It takes the names of special tokens for text. Trained once, not for each example."""
    model = trained()
    model.encode_special_tokens = True
    return model


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    """But for the composition of its characters, and the blank that the first word is given."""
    model = literal()
    encoding = model.encode(text, add_special_tokens=False)
    assert tokenizer.SPECIAL_IDS.unk not in encoding.ids
    normal = byte_level.normalizer(lowercase=False).normalize_str(text)
    decoded = model.decode(encoding.ids, skip_special_tokens=False)
    assert decoded.removeprefix(" ") == normal.removeprefix(" ")


def test_pieces_are_those_of_the_librarys_trainer() -> None:
    """Where no two pairs are equally frequent, of which the library takes another one each time."""
    words = {"abab": 101, "abc": 53, "bcd": 29, "dd": 17}
    text = " ".join(word for word, count in words.items() for _ in range(count))
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    library.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=261, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    ours = byte_level.learn([text], 261, lowercase=False)
    assert set(ours.pieces) == set(library.get_vocab())


def test_scripts_without_blanks_are_learned() -> None:
    """Their sentences are as words, of any length."""
    sentence = "今天天气很好我们去公园散步吧" * 30
    learnt = byte_level.learn([sentence] * 3, 400, lowercase=False)
    spelt, _ = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(sentence)[0]
    assert any(len(piece) >= 12 and piece in spelt for piece in learnt.pieces)


def test_words_are_counted_in_bounded_memory() -> None:
    """The rarest are forgotten; what is frequent keeps its count, nearly."""
    tally = bpe.Tally(most=10)
    for number in range(200):
        tally.add([f"once{number}", "often", "often"])
    assert len(tally.counts) <= 10
    assert tally.counts["often"] == 400


def test_a_word_has_the_same_pieces_wherever_it_stands() -> None:
    """Also at the begin of a text, beside a hidden word, and after one that stands for personal data."""
    model = trained()
    fox = model.encode("fox", add_special_tokens=False).tokens
    assert fox == ["Ġfox"]
    for text, tokens in {
        "the [MASK] fox": ["Ġthe", "[MASK]", "Ġfox"],
        "[MASK] fox": ["[MASK]", "Ġfox"],
        "the [EMAIL] fox": ["Ġthe", "[EMAIL]", "Ġfox"],
    }.items():
        assert [model.id_to_token(number) for number in model.encode(text, add_special_tokens=False).ids] == tokens
    encoding = model.encode("the fox")
    assert encoding.tokens == ["[CLS]", "Ġthe", "Ġfox", "[SEP]"]
    assert encoding.offsets == [(0, 0), (0, 3), (4, 7), (0, 0)]


def test_pieces_tell_whether_they_go_on_with_a_word() -> None:
    """A blank, a line's end or a mark begins one; letters, digits and what is beyond ASCII go on."""
    model = trained()
    goes_on = tokenizer.continuing(model)
    encoding = model.encode("größer x12, don't\n[EMAIL] fox", add_special_tokens=False)
    words: list[str] = []
    for number in encoding.ids:
        piece = model.decode([number], skip_special_tokens=False)
        words = [*words[:-1], words[-1] + piece] if goes_on[number] and words else [*words, piece]
    assert [word.strip() for word in words] == ["größer", "x12", ",", "don", "'t", "[EMAIL]", "fox"]
    assert not goes_on[model.token_to_id("Ċ")]
    assert set(byte_level._BYTES) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_level._BYTES.values()) == list(range(256))


def test_lowercase_is_asked_for() -> None:
    """Case is kept otherwise."""
    assert trained(lowercase=True).encode("FOX").ids == trained(lowercase=True).encode("fox").ids
    assert trained().encode("FOX").ids != trained().encode("fox").ids


@pytest.mark.parametrize("lowercase", [False, True])
def test_transformers_reads_it(tmp_path_factory: pytest.TempPathFactory, lowercase: bool) -> None:
    """With the same ids, and its own idea of which tokens are special."""
    folder = tmp_path_factory.mktemp("tokenizer")
    model = trained(lowercase=lowercase)
    tokenizer.write(model, folder, max_length=32, lowercase=lowercase)
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in ("The quick [MASK] größer", "a\n\n b  c", ""):
        assert theirs(text)["input_ids"] == model.encode(text).ids
    assert (theirs.pad_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id) == (0, 2, 3, 4)
