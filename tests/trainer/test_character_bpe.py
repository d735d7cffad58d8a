"""The vocabulary of merged characters: of the asked size, as the library's trainer has it, without a way to spell a
special token.
"""

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers
from transformers import AutoTokenizer

from cloze_api.manifest import tokenizer_fingerprint
from cloze_api.pretrain import TokenizerAlgorithm
from cloze_trainer.data import character_bpe, tokenizer, unigram

TEXTS = ["the quick brown fox jumps over the lazy dog,\n\nagain and again: 12 + 13 = 25 — größer, don't [x]"] * 20

UNK = tokenizer.SPECIAL_IDS.unk


def trained(texts: list[str] = TEXTS, *, lowercase: bool = False, size: int = 128) -> Tokenizer:
    return tokenizer.train(texts, vocab_size=size, lowercase=lowercase, algorithm=TokenizerAlgorithm.BPE)


@cache
def literal() -> Tokenizer:
    """It takes the names of special tokens for text."""
    model = trained()
    model.encode_special_tokens = True
    return model


@given(st.text(alphabet="aegnx [CLSMASKUP]\n"))
def test_no_text_is_a_special_token(text: str) -> None:
    """Whatever a corpus says, no row gets a border within it; and what is known comes back, but for its blanks."""
    encoding = literal().encode(text, add_special_tokens=False)
    assert not {0, 2, 3, 4} & set(encoding.ids)
    if UNK not in encoding.ids:
        assert literal().decode(encoding.ids, skip_special_tokens=False).split() == text.split()


def test_pieces_are_those_of_the_librarys_trainer() -> None:
    """Where no two pairs are equally frequent, of which the library takes another one each time."""
    words = {"abab": 101, "abc": 53, "bcd": 29, "dd": 17}
    texts = [word for word, count in words.items() for _ in range(count)]
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = character_bpe.splitter()
    library.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=10))
    ours = character_bpe.learn(unigram.words(texts, character_bpe.splitter, lowercase=False), 10)
    assert set(ours.pieces) == set(library.get_vocab())


def test_what_a_text_has_is_known_and_what_it_lacks_is_unknown() -> None:
    """Special tokens come first, placeholders of personal data stay whole."""
    model = trained()
    assert model.get_vocab_size() <= 128
    assert [model.token_to_id(word) for word in tokenizer.SPECIAL] == [0, 1, 2, 3, 4]
    assert UNK not in model.encode(TEXTS[0]).ids
    encoding = model.encode("the [MASK] fox, [EMAIL]天 fox")
    assert encoding.ids.count(UNK) == 1
    assert [token for token in encoding.tokens if token[0] == "["] == ["[CLS]", "[MASK]", "[EMAIL]", "[UNK]", "[SEP]"]


def test_rare_characters_make_room_for_words() -> None:
    """A vocabulary that is smaller than the alphabet leaves the rarest out, and training goes on."""
    script = "".join(chr(0x4E00 + number) for number in range(500))
    model = trained([script, *["the fox and the dog"] * 50], size=200)
    assert model.get_vocab_size() <= 200
    assert UNK in model.encode(script).ids
    assert UNK not in model.encode("the dog").ids


def test_pieces_tell_whether_they_go_on_with_a_word() -> None:
    """A blank or a mark begins one."""
    model = trained()
    goes_on = tokenizer.continuing(model)
    encoding = model.encode("größer 12, don't [EMAIL] fox", add_special_tokens=False)
    words: list[str] = []
    for number, token in zip(encoding.ids, encoding.tokens, strict=True):
        words = [*words[:-1], words[-1] + token] if goes_on[number] and words else [*words, token]
    found = [word.strip(unigram.BLANK) for word in words if word != unigram.BLANK]
    assert found[:4] == ["größer", "12", ",", "don"]
    assert found[-2:] == ["[EMAIL]", "fox"]


@pytest.mark.parametrize("lowercase", [False, True])
def test_transformers_reads_it(tmp_path: Path, lowercase: bool) -> None:
    """With the same ids; what is read again has the fingerprint of what was written."""
    model = trained(lowercase=lowercase)
    tokenizer.write(model, tmp_path, max_length=32, lowercase=lowercase)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("The quick [MASK] größer", "a\n\n b  c", "", "ﬁne ¼"):
        assert theirs(text)["input_ids"] == model.encode(text).ids
    assert (theirs.pad_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id) == (0, 2, 3, 4)
    written = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert tokenizer_fingerprint(json.loads(tokenizer.read(tmp_path).to_str())) == tokenizer_fingerprint(written)
