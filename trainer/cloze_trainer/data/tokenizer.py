"""Trains the WordPiece tokenizer and writes it as `tokenizer.json` (Schuster and Nakajima 2012; Devlin et al. 2018)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from cloze_api.manifest import TOKENIZER_FILE, SpecialTokens

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNK, CLS, SEP, MASK)
SPECIAL_IDS = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)
# Words that `pii` puts in place of personal data; each is one token, so that its kind is learned.
PLACEHOLDERS = ("[EMAIL]", "[IBAN]", "[CARD]", "[IP]", "[PHONE]")
FIRST_ORDINARY_ID = len(SPECIAL)


def train(texts: Sequence[str], *, vocab_size: int, lowercase: bool) -> Tokenizer:
    """Train on the texts; the same texts in the same order give the same tokenizer.

    The vocabulary has at most `vocab_size` entries, the five special ones first; fewer when the texts hold fewer.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=[*SPECIAL, *PLACEHOLDERS],
            limit_alphabet=min(1000, vocab_size // 2),
            show_progress=False,
        ),
        length=len(texts),
    )
    # A placeholder stays whole but, unlike a special token, is ordinary text: it may be masked and predicted.
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in PLACEHOLDERS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, SPECIAL_IDS.cls), (SEP, SPECIAL_IDS.sep)],
    )
    return tokenizer


def write(tokenizer: Tokenizer, folder: Path, *, max_length: int, lowercase: bool) -> None:
    """Write `tokenizer.json` and what `AutoTokenizer.from_pretrained` wants beside it."""
    tokenizer.save(str(folder / TOKENIZER_FILE))
    settings: dict[str, Any] = {
        "tokenizer_class": "BertTokenizer",
        "model_max_length": max_length,
        "do_lower_case": lowercase,
        "pad_token": PAD,
        "unk_token": UNK,
        "cls_token": CLS,
        "sep_token": SEP,
        "mask_token": MASK,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> Tokenizer:
    """The tokenizer of an artifact or a data folder."""
    return Tokenizer.from_file(str(folder / TOKENIZER_FILE))
