"""The vocabulary of pieces with probabilities: of the asked size, without a way to spell a special token."""

import io
import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from cloze_api.manifest import tokenizer_fingerprint
from cloze_api.pretrain import TokenizerAlgorithm
from cloze_trainer.data import packing, shards, tokenizer, unigram

TEXTS = ["the quick brown fox jumps over the lazy dog,\n\nagain and again: 12 + 13 = 25 — größer, don't [x]"] * 20

UNK = tokenizer.SPECIAL_IDS.unk


def trained(
    texts: list[str] = TEXTS,
    *,
    lowercase: bool = False,
    size: int = 128,
    algorithm: TokenizerAlgorithm = TokenizerAlgorithm.UNIGRAM,
) -> Tokenizer:
    return tokenizer.train(texts, vocab_size=size, lowercase=lowercase, algorithm=algorithm)


#: Merges of characters share its normalizer, its blanks and its alphabet.
EITHER = pytest.mark.parametrize("algorithm", [TokenizerAlgorithm.UNIGRAM, TokenizerAlgorithm.BPE])


@cache
def literal(algorithm: TokenizerAlgorithm) -> Tokenizer:
    """It takes the names of special tokens for text."""
    model = trained(algorithm=algorithm)
    model.encode_special_tokens = True
    return model


@EITHER
@given(text=st.text(alphabet="aegnx [CLSMASKUP]\n"))
def test_no_text_is_a_special_token(algorithm: TokenizerAlgorithm, text: str) -> None:
    """Whatever a corpus says, no row gets a border within it; and what is known comes back, but for its blanks."""
    model = literal(algorithm)
    encoding = model.encode(text, add_special_tokens=False)
    assert not {0, 2, 3, 4} & set(encoding.ids)
    if UNK not in encoding.ids:
        assert model.decode(encoding.ids, skip_special_tokens=False).split() == text.split()


def test_what_a_text_has_is_known_and_what_it_lacks_is_unknown() -> None:
    """Special tokens come first, placeholders of personal data stay whole."""
    model = trained()
    assert model.get_vocab_size() <= 128
    assert [model.token_to_id(word) for word in tokenizer.SPECIAL] == [0, 1, 2, 3, 4]
    assert UNK not in model.encode(TEXTS[0]).ids
    encoding = model.encode("the [MASK] fox, [EMAIL]天 fox")
    assert encoding.ids.count(UNK) == 1
    assert [token for token in encoding.tokens if token[0] == "["] == ["[CLS]", "[MASK]", "[EMAIL]", "[SEP]"]
    fox = model.encode("fox", add_special_tokens=False)
    assert fox.ids == encoding.ids[-1 - len(fox.ids) : -1]
    first, last = encoding.offsets[-1 - len(fox.ids)], encoding.offsets[-2]
    assert "the [MASK] fox, [EMAIL]天 fox"[first[0] : last[1]].strip() == "fox"


def test_a_word_is_cut_as_sentencepiece_cuts_it(corpus: Path) -> None:
    """The pieces are its own, and of ways to cut a word the tokenizer takes the same."""
    text = corpus.read_text(encoding="utf-8")[:60_000].replace("[", "(")
    model = trained(text.splitlines(), size=600)
    pieces = [model.id_to_token(number) for number in range(tokenizer.FIRST_ORDINARY_ID, model.get_vocab_size())]
    # It is told of a piece's probability by nothing but the words, so it is trained on them again.
    words = unigram.words(text.splitlines(), unigram.splitter, lowercase=False)

    learnt = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(f"{word}\t{words[word]}" for word in sorted(words)),
        model_writer=learnt,
        input_format="tsv",
        vocab_size=601 - len(tokenizer.SPECIAL) - len(tokenizer.PLACEHOLDERS),
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        bos_id=-1,
        eos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    theirs = SentencePieceProcessor(model_proto=learnt.getvalue())
    assert set(pieces) - set(tokenizer.PLACEHOLDERS) == {
        theirs.id_to_piece(n) for n in range(1, theirs.get_piece_size())
    }
    for word in [each for each in words if each.startswith(unigram.BLANK)][:300]:
        ours = model.encode(word.removeprefix(unigram.BLANK), add_special_tokens=False)
        assert ours.tokens == theirs.encode(word, out_type=str)


@EITHER
def test_rare_characters_make_room_for_words(algorithm: TokenizerAlgorithm) -> None:
    """A vocabulary that is smaller than the alphabet leaves the rarest out, and training goes on."""
    script = "".join(chr(0x4E00 + number) for number in range(500))
    model = trained([script, *["the fox and the dog"] * 50], size=200, algorithm=algorithm)
    assert model.get_vocab_size() <= 200
    assert UNK in model.encode(script).ids
    assert UNK not in model.encode("the dog").ids


def test_pieces_tell_whether_they_go_on_with_a_word() -> None:
    """A blank or one of ASCII's marks begins one."""
    model = trained()
    goes_on = tokenizer.continuing(model)
    encoding = model.encode("größer x12, don't [EMAIL] fox", add_special_tokens=False)
    words: list[str] = []
    for number, token in zip(encoding.ids, encoding.tokens, strict=True):
        words = [*words[:-1], words[-1] + token] if goes_on[number] and words else [*words, token]
    assert [word.strip(unigram.BLANK) for word in words if word != unigram.BLANK] == [
        *("größer", "x12", ",", "don", "'t", "[EMAIL]", "fox")
    ]


def test_its_fit_is_reported(tmp_path: Path) -> None:
    """The unknown share and rare tokens, as of others; single bytes are none of its business."""
    model = trained()
    counts = packing.write_rows(tmp_path / "rows.npy", model, [*TEXTS, "天"], 32)
    assert counts.unknown == 1
    figures = shards._vocabulary_figures(model, counts.seen_V, tokenizer.SPECIAL_IDS)
    assert figures.keys() == {"rare_token_share"}


@EITHER
@pytest.mark.parametrize("lowercase", [False, True])
def test_transformers_and_the_server_read_it(tmp_path: Path, lowercase: bool, algorithm: TokenizerAlgorithm) -> None:
    """With the same ids; what is read again has the fingerprint of what was written."""

    model = trained(lowercase=lowercase, algorithm=algorithm)
    tokenizer.write(model, tmp_path, max_length=32, lowercase=lowercase)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("The quick [MASK] größer", "a\n\n b  c", "", "ﬁne ¼"):
        assert theirs(text)["input_ids"] == model.encode(text).ids
    assert (theirs.pad_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id) == (0, 2, 3, 4)
    written = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert tokenizer_fingerprint(json.loads(tokenizer.read(tmp_path).to_str())) == tokenizer_fingerprint(written)
