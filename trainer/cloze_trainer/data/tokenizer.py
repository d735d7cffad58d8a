"""Trains the tokenizer and writes it as `tokenizer.json`."""

import json
import re
import shutil
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from cloze_api.manifest import TOKENIZER_FILE, SpecialTokens, tokenizer_fingerprint
from cloze_api.pretrain import TokenizerAlgorithm
from cloze_trainer.data import bpe, byte_level, character_bpe, unigram
from cloze_trainer.data.character_bpe import stands_alone
from cloze_trainer.data.passes import Pass, alone
from cloze_trainer.data.wordpiece import PREFIX, pieces
from cloze_trainer.errors import InputError

SETTINGS_FILE = "tokenizer_config.json"
PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNK, CLS, SEP, MASK)


class _AllSpecialTokens(SpecialTokens):
    """Those of a tokenizer that has one for each purpose."""

    unk: int
    mask: int


SPECIAL_IDS = _AllSpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)
# Words that `pii` puts in place of personal data; each is one token, so that its kind is learned. That of a name, which
# few corpora are searched for, is one where it is.
PLACEHOLDERS = ("[EMAIL]", "[IBAN]", "[CARD]", "[IP]", "[PHONE]")
FIRST_ORDINARY_ID = len(SPECIAL)
"""Of a tokenizer that is trained here."""
# Never in a word's place.
_OUTSIDE = (PAD, CLS, SEP)


# Characters that get a piece wherever there is room; beyond them only as many as cover this share of the text. English
# stays with few, and Chinese gets its thousands.
_COMMON_CHARACTERS = 1000
_COVERAGE = 0.9995
# Longer words become `[UNK]` whole: it is the model's own limit.
_LONGEST_WORD = 100


def train(
    texts: Sequence[str],
    *,
    vocab_size: int,
    lowercase: bool,
    algorithm: TokenizerAlgorithm = TokenizerAlgorithm.WORDPIECE,
    placeholders: Sequence[str] = PLACEHOLDERS,
    over: Pass = alone,
) -> Tokenizer:
    """Train on the texts; the same texts in the same order give the same tokenizer.

    The vocabulary has at most `vocab_size` entries, the five special ones first; fewer when the texts hold fewer.
    placeholders: words that stay whole. over: how to pass over the texts.
    """
    by_bytes = algorithm is TokenizerAlgorithm.BYTE_LEVEL_BPE
    make = {
        TokenizerAlgorithm.WORDPIECE: _wordpiece,
        TokenizerAlgorithm.BYTE_LEVEL_BPE: _byte_level,
        TokenizerAlgorithm.UNIGRAM: _unigram,
        TokenizerAlgorithm.BPE: _character_bpe,
    }[algorithm]
    tokenizer = make(texts, [*SPECIAL, *placeholders], vocab_size=vocab_size, lowercase=lowercase, over=over)

    def added(word: str, *, special: bool) -> AddedToken:
        # Where a word's blank is part of it, that of a token which stands for one is, too.
        return AddedToken(word, normalized=False, special=special, lstrip=by_bytes and word not in _OUTSIDE)

    tokenizer.add_special_tokens([added(word, special=True) for word in SPECIAL])
    # A placeholder stays whole but, unlike a special token, is ordinary text: it may be masked and predicted.
    tokenizer.add_tokens([added(word, special=False) for word in placeholders])
    framing = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, SPECIAL_IDS.cls), (SEP, SPECIAL_IDS.sep)],
    )
    # A word's place in the text is told without its blank.
    trimming = processors.ByteLevel(trim_offsets=True)
    tokenizer.post_processor = processors.Sequence([trimming, framing]) if by_bytes else framing
    return tokenizer


def _wordpiece(
    texts: Sequence[str], first: Sequence[str], *, vocab_size: int, lowercase: bool, over: Pass
) -> Tokenizer:
    """Without special tokens (Schuster and Nakajima 2012; Devlin et al., arXiv:1810.04805).

    first: the pieces that the vocabulary begins with, also of the other algorithms.
    """
    vocabulary = _vocabulary(texts, first, vocab_size=vocab_size, lowercase=lowercase, over=over)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNK, continuing_subword_prefix=PREFIX))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX)
    return tokenizer


def _byte_level(
    texts: Sequence[str], first: Sequence[str], *, vocab_size: int, lowercase: bool, over: Pass
) -> Tokenizer:
    """Without special tokens."""
    learnt = byte_level.learn(texts, vocab_size - len(first), lowercase=lowercase, over=over)
    vocabulary = {piece: number for number, piece in enumerate([*first, *learnt.pieces])}
    tokenizer = Tokenizer(models.BPE(vocabulary, learnt.pairs))
    tokenizer.normalizer = byte_level.normalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _unigram(texts: Sequence[str], first: Sequence[str], *, vocab_size: int, lowercase: bool, over: Pass) -> Tokenizer:
    """Without special tokens. The rarest characters are left out where there is no room; they become `[UNK]`."""
    words = unigram.words(texts, unigram.splitter, lowercase=lowercase, over=over)
    room = vocab_size - len(first)
    learnt = unigram.learn(_known(words, room // 2), room)
    tokenizer = Tokenizer(models.Unigram([*((token, 0.0) for token in first), *learnt], SPECIAL_IDS.unk))
    tokenizer.normalizer = unigram.normalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = unigram.splitter()
    tokenizer.decoder = decoders.Metaspace(replacement=unigram.BLANK)
    return tokenizer


def _character_bpe(
    texts: Sequence[str], first: Sequence[str], *, vocab_size: int, lowercase: bool, over: Pass
) -> Tokenizer:
    """Without special tokens. The rarest characters are left out where there is no room; they become `[UNK]`."""
    words = unigram.words(texts, character_bpe.splitter, lowercase=lowercase, over=over)
    room = vocab_size - len(first)
    learnt = character_bpe.learn(_known(words, room // 2), room)
    vocabulary = {piece: number for number, piece in enumerate([*first, *learnt.pieces])}
    tokenizer = Tokenizer(models.BPE(vocabulary, learnt.pairs, unk_token=UNK))
    tokenizer.normalizer = unigram.normalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = character_bpe.splitter()
    tokenizer.decoder = decoders.Metaspace(replacement=unigram.BLANK)
    return tokenizer


def _known(words: Mapping[str, int], room: int) -> Counter[str]:
    """How often there are which stretches of words between characters that the alphabet has no room for."""
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    kept = "".join(_alphabet(characters, room))
    known: Counter[str] = Counter()
    for word, count in words.items():
        for found in re.findall(f"[{re.escape(kept)}]+", word) if kept else ():
            known[found] += count
    return known


@dataclass(frozen=True, slots=True)
class _Counting:
    """Counts the stretches of texts between blanks."""

    lowercase: bool

    def __call__(self, texts: Sequence[str]) -> Counter[str]:
        normalizer = normalizers.BertNormalizer(lowercase=self.lowercase)
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(normalizer.normalize_str(text).split())
        return counts


def _vocabulary(
    texts: Sequence[str], first: Sequence[str], *, vocab_size: int, lowercase: bool, over: Pass
) -> dict[str, int]:
    """Pieces and their ids: the first ones, characters, merged pieces.

    The rarest characters are left out where the vocabulary has no room for them; they become `[UNK]`.
    """
    # Distinct stretches between blanks with their counts: far fewer than the text, of which no second copy is made.
    stretches = bpe.Tally()
    for counted in over("counting", _Counting(lowercase), texts):
        stretches.merge(counted)
    characters: Counter[str] = Counter()
    for stretch, count in stretches.counts.items():
        for character in stretch:
            characters[character] += count
    kept = _alphabet(characters, (vocab_size - len(first)) // 2)
    alone = re.escape("".join(c for c in kept if stands_alone(c)))
    inner = re.escape("".join(c for c in kept if not stands_alone(c)))
    # What is between characters that are kept, split as BERT's pre-tokenizer does.
    word = re.compile(
        "|".join(part for part in (f"[{inner}]+" if inner else "", f"[{alone}]" if alone else "") if part)
    )
    counts: Counter[str] = Counter()
    for stretch, count in stretches.counts.items():
        for found in word.findall(stretch):
            counts[found] += count
    words = {text: counts[text] for text in sorted(counts) if len(text) <= _LONGEST_WORD}
    return {piece: number for number, piece in enumerate([*first, *pieces(words, vocab_size - len(first))])}


def _alphabet(characters: Mapping[str, int], room: int) -> list[str]:
    """The most frequent characters, at most `room`; ties go to the one that sorts first."""
    ranked = sorted(characters, key=lambda c: (-characters[c], c))
    wanted = _COVERAGE * sum(characters.values())
    covered = list(accumulate(characters[c] for c in ranked))
    return ranked[: min(room, max(_COMMON_CHARACTERS, bisect_left(covered, wanted) + 1))]


def ordinary(vocab_size: int, special: SpecialTokens) -> npt.NDArray[np.int64]:
    """Ids of all but the special tokens, in their order."""
    ids = [number for number in special.model_dump().values() if number is not None]
    return np.setdiff1d(np.arange(vocab_size, dtype=np.int64), ids)


def size(tokenizer: Tokenizer) -> int:
    """How many ids there are, with those between that no piece has."""
    return max(tokenizer.get_vocab().values()) + 1


def continuing(tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    """Which tokens go on with a word, by id (V,). Raises InputError for a tokenizer whose pieces don't tell."""
    found_V = np.zeros(size(tokenizer), dtype=bool)
    goes_on, added = _continues(tokenizer), tokenizer.get_added_tokens_decoder()
    for piece, number in tokenizer.get_vocab().items():
        # An added token is a word of its own.
        found_V[number] = number not in added and goes_on(piece)
    return found_V


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether its pieces are of bytes, so that nothing is unknown to it."""
    return isinstance(tokenizer.model, models.BPE) and "ByteLevel" in str(tokenizer.pre_tokenizer)


def _continues(tokenizer: Tokenizer) -> Callable[[str], bool]:
    """Whether a piece goes on with a word, by how the model spells it."""
    splitter = str(tokenizer.pre_tokenizer)
    if isinstance(tokenizer.model, models.WordPiece):
        return lambda piece: piece.startswith(PREFIX)
    if is_byte_level(tokenizer):
        return byte_level.continues
    if isinstance(tokenizer.model, models.Unigram) and "Metaspace" in splitter:
        return unigram.continues
    if isinstance(tokenizer.model, models.BPE) and "Metaspace" in splitter and "Punctuation" in splitter:
        return character_bpe.continues
    raise InputError(
        "TokenizerUnsupported",
        "the pieces of this tokenizer don't tell which of them begin a word: set masking.unit to token, or take a "
        "WordPiece, Unigram or byte-level BPE tokenizer",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedTokenizer:
    """The tokenizer of another model. folder: with its two files. digest: of all that came with it."""

    folder: Path
    name: str
    digest: str
    special_tokens: SpecialTokens
    lowercase: bool

    @property
    def content(self) -> list[Any]:
        """What decides which ids a text gets, and which of them are special."""
        document = json.loads((self.folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
        return [tokenizer_fingerprint(document), self.special_tokens.model_dump()]

    def copy(self, folder: Path, *, max_length: int) -> None:
        """Put its files into a folder, as `write` does."""
        shutil.copyfile(self.folder / TOKENIZER_FILE, folder / TOKENIZER_FILE)
        settings = json.loads((self.folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        settings["model_max_length"] = max_length
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write(tokenizer: Tokenizer, folder: Path, *, max_length: int, lowercase: bool) -> None:
    """Write `tokenizer.json` and what `AutoTokenizer.from_pretrained` wants beside it."""
    tokenizer.save(str(folder / TOKENIZER_FILE))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if isinstance(tokenizer.model, models.WordPiece):
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}
    elif is_byte_level(tokenizer):
        settings |= {"add_prefix_space": True}
    settings |= {
        "model_max_length": max_length,
        "pad_token": PAD,
        "unk_token": UNK,
        "cls_token": CLS,
        "sep_token": SEP,
        "mask_token": MASK,
    }
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> Tokenizer:
    """The tokenizer of an artifact or a data folder."""
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    # Settings of those who used it before.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
