"""Chooses a vocabulary of pieces with probabilities, of which a word takes the likeliest (Kudo, arXiv:1804.10959).

SentencePiece's trainer in one thread gives the same pieces for the same words, to the last bit. That of the
`tokenizers` library doesn't: it walks hash maps that are seeded anew in each process.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Regex, normalizers, pre_tokenizers

from cloze_trainer.data import bpe
from cloze_trainer.data.passes import Pass, alone

BLANK = "▁"
"""Begins a word."""
_SILENT = 2
_DIGITS = 6


def normalizer(*, lowercase: bool) -> normalizers.Normalizer:
    """What texts go through first: compatible characters are one (NFKC), and any blanks are a single one."""
    parts = [
        normalizers.NFKC(),
        *([normalizers.Lowercase()] if lowercase else []),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    return normalizers.Sequence(parts)


def splitter() -> pre_tokenizers.PreTokenizer:
    """Words begin with their blank; they are cut after `[`, so that none is spelt as a special token is."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(replacement=BLANK), pre_tokenizers.Split("[", "merged_with_previous")]
    )


def continues(piece: str) -> bool:
    """Whether a piece goes on with a word: words begin with their blank, and ASCII's marks are words of their own."""
    return piece[0].isalnum() or (piece[0] != BLANK and not piece[0].isascii())


@dataclass(frozen=True, slots=True)
class _Counting:
    """Counts the stretches of texts between blanks, and the words of those that are long."""

    splitter: Callable[[], pre_tokenizers.PreTokenizer]
    lowercase: bool

    def __call__(self, texts: Iterable[str]) -> tuple[Counter[str], Counter[str]]:
        normal, split = normalizer(lowercase=self.lowercase), self.splitter()
        stretches: Counter[str] = Counter()
        counted: Counter[str] = Counter()
        for text in texts:
            found = normal.normalize_str(text).split(" ")
            stretches.update(stretch for stretch in found if stretch and len(stretch) <= bpe.PART)
            for stretch in found:
                if len(stretch) > bpe.PART:
                    counted.update(bpe.parts(stretch, split))
        return stretches, counted


def words(
    texts: Iterable[str], splitter: Callable[[], pre_tokenizers.PreTokenizer], *, lowercase: bool, over: Pass = alone
) -> Mapping[str, int]:
    """How often each word occurs, as the splitter gives it. over: how to pass over the texts."""
    split, stretches, counted = splitter(), bpe.Tally(), bpe.Tally()
    for found, long in over("counting", _Counting(splitter, lowercase), texts):
        stretches.merge(found)
        counted.merge(long)
    for stretch, count in stretches.counts.items():
        counted.add(bpe.parts(stretch, split), count)
    return counted.counts


def learn(counts: Mapping[str, int], size: int) -> list[tuple[str, float]]:
    """At most `size` pieces with the logarithm of their probability, the likeliest first.

    counts: how often each word occurs; all its characters become pieces, and there must be room for them.
    """
    # A tab would end the word.
    rows = [f"{word}\t{counts[word]}" for word in sorted(counts) if "\t" not in word]
    if not rows:
        return []
    trained = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(rows),
        model_writer=trained,
        input_format="tsv",
        model_type="unigram",
        # The piece for what is unknown counts as one.
        vocab_size=size + 1,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=_SILENT,
    )
    model = SentencePieceProcessor(model_proto=trained.getvalue())
    # So many digits are read again as they were written, whoever reads them, and the fingerprint stays the same.
    return [
        (model.id_to_piece(number), round(model.get_score(number), _DIGITS))
        for number in range(1, model.get_piece_size())
    ]
