"""The vocabulary of merged characters: as the library's trainer has it. What it shares with Unigram is tested there."""

from tokenizers import Tokenizer, models, trainers

from cloze_api.pretrain import TokenizerAlgorithm
from cloze_trainer.data import character_bpe, tokenizer, unigram

TEXTS = ["the quick brown fox jumps over the lazy dog,\n\nagain and again: 12 + 13 = 25 — größer, don't [x]"] * 20

UNK = tokenizer.SPECIAL_IDS.unk


def trained() -> Tokenizer:
    return tokenizer.train(TEXTS, vocab_size=128, lowercase=False, algorithm=TokenizerAlgorithm.BPE)


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
