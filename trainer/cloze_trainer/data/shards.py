"""The prepared corpus: tokenizer and packed sequences in a folder named after their content."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers

from cloze_api.manifest import SpecialTokens
from cloze_api.pretrain import PretrainJobSpec
from cloze_api.pretrain import Tokenizer as TokenizerSpec
from cloze_trainer.data import cleaning, tokenizer
from cloze_trainer.data.documents import documents
from cloze_trainer.data.lines import BrokenLines
from cloze_trainer.data.names import NameModel
from cloze_trainer.data.source import SourceFiles
from cloze_trainer.data.splitting import part, split
from cloze_trainer.data.spool import Chosen, Spool
from cloze_trainer.data.tokenizer import PretrainedTokenizer
from cloze_trainer.errors import InputError
from cloze_trainer.files import is_complete, publish, write_json

# Part of each folder's key: raise it when the same input would give other shards.
EDITION = 5
# Of a corpus: what is told by the sources' digests, and what decides whether there are shards, not which.
_UNDECIDING = {"uri", "revision", "credentials", "max_broken_lines"}
TRAIN_FILE = "train.npy"
HELD_OUT_FILE = "held-out.npy"
REPORT_FILE = "report.json"
# Texts and characters that are tokenized at once.
_ENCODE_BATCH = 1000
_ENCODE_CHARACTERS = 1 << 20
_BLOCK_ROWS = 4096
# Of a document that is cut, in tokens: less has hardly any context.
_SHORTEST_PIECE = 16
# An entry of the vocabulary that occurs less often in the training text is hardly learned.
_RARE = 10

Tokens = npt.NDArray[np.integer[Any]]
Seen = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shards:
    """A prepared corpus, memory-mapped.

    train_NT, held_out_NT: token ids, one packed sequence a row, some of them with padding (0) at the end.
    """

    folder: Path
    train_NT: Tokens
    held_out_NT: Tokens
    vocab_size: int
    report: dict[str, Any]


def content_key(
    sources: Sequence[SourceFiles],
    spec: PretrainJobSpec,
    max_length: int,
    reused: PretrainedTokenizer | None,
    names: NameModel | None = None,
) -> str:
    """Name of the folder: a digest of everything that decides its content."""
    parts: dict[str, Any] = {
        "edition": EDITION,
        "sources": [source.digest for source in sources],
        "corpus": [corpus.model_dump(mode="json", exclude=_UNDECIDING) for corpus in spec.corpus],
        "cleaning": spec.cleaning.model_dump(mode="json", exclude={"names"}),
        "tokenizer": reused.content if reused else spec.tokenizer.model_dump(mode="json"),
        "max_length": max_length,
        "held_out_fraction": spec.evaluation.held_out_fraction,
    }
    if spec.cleaning.names and names:
        parts["names"] = [names.digest, spec.cleaning.names.model_dump(mode="json", exclude=_UNDECIDING)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def pack(
    documents_ids: Iterable[Sequence[int]],
    max_length: int,
    dtype: npt.DTypeLike,
    special: SpecialTokens = tokenizer.SPECIAL_IDS,
) -> Iterator[Tokens]:
    """Blocks of rows of `max_length` ids: documents one after the other, each `[CLS] … [SEP]`.

    One that doesn't fit into the rest of a row is cut there and goes on in the next row as another; a rest that would
    hold less than a few tokens of it is padded. Every id of every document is in exactly one row. No more than a block
    and a document are in memory.
    """
    block = np.full((_BLOCK_ROWS, max_length), special.pad, dtype=dtype)
    row = at = 0
    for ids in documents_ids:
        rest = np.asarray(ids, dtype=dtype)
        while len(rest):
            room = max_length - at - 2
            if at and room < min(len(rest), _SHORTEST_PIECE):
                row, at = row + 1, 0
                if row == _BLOCK_ROWS:
                    yield block
                    block, row = np.full_like(block, special.pad), 0
                continue
            piece, rest = rest[:room], rest[room:]
            end = at + len(piece) + 1
            block[row, at], block[row, at + 1 : end], block[row, end] = special.cls, piece, special.sep
            at = end + 1
    if at:
        yield block[: row + 1]


def texts_of(rows_BT: Tokens, special: SpecialTokens = tokenizer.SPECIAL_IDS) -> tuple[Tokens, Tokens]:
    """Which text of its row each token belongs to, from 1, and its place in it, from 0; padding goes with the last."""
    begins_BT = rows_BT == special.cls
    columns_T = np.arange(rows_BT.shape[1])
    starts_BT = np.maximum.accumulate(np.where(begins_BT, columns_T, 0), axis=1)
    return np.cumsum(begins_BT, axis=1), columns_T - starts_BT


@dataclass(slots=True)
class Counts:
    """What was written. filled: all but padding; tokens: ordinary ones; unknown: `[UNK]`; seen_V: each id."""

    seen_V: Seen
    rows: int = 0
    filled: int = 0
    tokens: int = 0
    unknown: int = 0


def _write(path: Path, blocks: Iterable[Tokens], max_length: int, vocab_size: int, special: SpecialTokens) -> Counts:
    """Write blocks of rows as one `.npy` file, whose header is completed at the end."""
    counts = Counts(np.zeros(vocab_size, dtype=np.int64))
    dtype = _dtype(vocab_size)

    def header(stream: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(
            stream,
            {
                "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
                "fortran_order": False,
                "shape": (counts.rows, max_length),
            },
        )

    with path.open("wb") as stream:
        header(stream)
        length = stream.tell()
        for block in blocks:
            stream.write(np.ascontiguousarray(block).tobytes())
            counts.rows += len(block)
            counts.filled += int((block != special.pad).sum())
            counts.seen_V += np.bincount(block.ravel(), minlength=vocab_size)
        counts.tokens = int(counts.seen_V[tokenizer.ordinary(vocab_size, special)].sum())
        counts.unknown = 0 if special.unk is None else int(counts.seen_V[special.unk])
        stream.seek(0)
        header(stream)
        # NumPy leaves room for the number of rows to grow.
        assert stream.tell() == length
    return counts


def _dtype(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """The smallest that holds the ids."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _vocabulary_figures(model: Tokenizer, seen_V: Seen, special: SpecialTokens) -> dict[str, float]:
    """How well the vocabulary fits the text. Nothing is unknown to bytes: there the share of single ones says it."""
    ordinary = seen_V[tokenizer.ordinary(len(seen_V), special)]
    figures = {"rare_token_share": float((ordinary < _RARE).mean())}
    if isinstance(model.model, models.BPE):
        alphabet = set(pre_tokenizers.ByteLevel.alphabet())
        single = [number for piece, number in model.get_vocab().items() if piece in alphabet]
        figures["single_byte_share"] = float(seen_V[single].sum() / max(1, ordinary.sum()))
    return figures


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in their order, so many at once as are neither many nor long together."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == _ENCODE_BATCH or characters >= _ENCODE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(model: Tokenizer, texts: Sequence[str]) -> Iterator[Sequence[int]]:
    """Ids of the texts, a batch of which is worked out while the one before is used.

    `[SEP]` and the like within a text are ordinary text.
    """
    model.encode_special_tokens = True
    # The library spreads a batch over the processors, and lets Python run meanwhile.
    with ThreadPoolExecutor(1) as ahead:
        waiting: Future[list[Encoding]] | None = None
        for batch in _batches(texts):
            begun = ahead.submit(model.encode_batch_fast, batch, add_special_tokens=False)
            if waiting:
                yield from (encoding.ids for encoding in waiting.result())
            waiting = begun
        if waiting:
            yield from (encoding.ids for encoding in waiting.result())


def write_rows(
    path: Path, model: Tokenizer, texts: Sequence[str], max_length: int, special: SpecialTokens = tokenizer.SPECIAL_IDS
) -> Counts:
    """Tokenize the texts, pack them into rows, and write these as one `.npy` file."""
    vocab_size = tokenizer.size(model)
    rows = pack(_encode(model, texts), max_length, _dtype(vocab_size), special)
    return _write(path, rows, max_length, vocab_size, special)


def _tokenizer(texts: Sequence[str], wanted: TokenizerSpec, folder: Path, max_length: int) -> Tokenizer:
    """Trained on the texts; its files are in the folder then."""
    model = tokenizer.train(texts, vocab_size=wanted.vocab_size, lowercase=wanted.lowercase, algorithm=wanted.algorithm)
    tokenizer.write(model, folder, max_length=max_length, lowercase=wanted.lowercase)
    return model


def prepare(
    spec: PretrainJobSpec,
    sources: Sequence[SourceFiles],
    root: Path,
    stage: Callable[[str], None],
    *,
    max_length: int | None = None,
    reused: PretrainedTokenizer | None = None,
    names: NameModel | None = None,
) -> tuple[Shards, bool]:
    """Clean, train the tokenizer, pack and publish under `root`; nothing is repeated when that was done before.

    stage: told what begins, `data` or `tokenizer`. max_length: tokens of a row; the spec's when absent. reused: the
    tokenizer, where none is trained. names: the model that finds people's, where they are to go. Returns the shards and
    whether they were there already.
    """
    length = max_length or spec.model.max_length
    special: SpecialTokens = reused.special_tokens if reused else tokenizer.SPECIAL_IDS
    folder = root / content_key(sources, spec, length, reused, names)
    if is_complete(folder):
        return read(folder), True
    stage("data")
    broken = [BrokenLines(corpus.max_broken_lines) for corpus in spec.corpus]
    with Spool(root) as spool, publish(folder) as staging:
        cleaned = cleaning.clean(
            (
                text
                for corpus, source, counted in zip(spec.corpus, sources, broken, strict=True)
                for text in documents(corpus, source.paths, counted)
            ),
            spec.cleaning,
            spool,
            names.load() if names else None,
        )
        report = cleaned.report
        for source in sources:
            source.check_unchanged()
        if not report.documents_out:
            raise InputError(
                "CorpusEmpty",
                f"no document is left of {report.documents_in} read: check corpus.format and cleaning.minCharacters",
            )
        chosen = split(cleaned.kept, cleaned.digests, spec.evaluation.held_out_fraction)
        sides = part(spool, *chosen)
        train_texts, held_out_texts = (Chosen(spool, np.flatnonzero(side)) for side in sides)
        if reused:
            reused.copy(staging, max_length=length)
            model = tokenizer.read(staging)
        else:
            stage("tokenizer")
            model = _tokenizer(train_texts, spec.tokenizer, staging, length)
        vocab_size = tokenizer.size(model)
        stage("data")

        parts = {
            name: write_rows(staging / name, model, texts, length, special)
            for name, texts in ((TRAIN_FILE, train_texts), (HELD_OUT_FILE, held_out_texts))
        }
        train, held_out = parts[TRAIN_FILE], parts[HELD_OUT_FILE]
        for name, counts in (("training", train), ("held-out", held_out)):
            if not counts.rows:
                raise InputError("CorpusTooSmall", f"the {name} documents hold no token: add text to the corpus")
        tokens = train.tokens + train.unknown
        figures: dict[str, Any] = {
            "documents_in": report.documents_in,
            "lines_broken": sum(item.counts.total() for item in broken),
            "broken": dict(sum((item.counts for item in broken), Counter())),
            "broken_first": [place for item in broken for place in item.places],
            "documents": report.documents_out,
            "documents_held_out": len(held_out_texts),
            # Chosen at first, but nearly a training text.
            "held_out_near_duplicates": int(chosen[1].sum()) - len(held_out_texts),
            "dropped": dict(report.dropped),
            "replaced": dict(report.replaced),
            **({"names_model": names.digest} if names else {}),
            "languages": dict(report.languages),
            "characters": report.characters_out,
            "tokens": tokens,
            "tokens_held_out": held_out.tokens,
            "sequences": train.rows,
            "sequences_held_out": held_out.rows,
            "vocab_size": vocab_size,
            # Special tokens are none.
            "padding_share": 1 - train.filled / (train.rows * length),
            "unknown_share": train.unknown / max(1, tokens),
            "tokens_per_character": tokens / max(1, spool.characters(sides[0])),
            **_vocabulary_figures(model, train.seen_V, special),
        }
        write_json(staging / REPORT_FILE, figures)
    return read(folder), False


def read(folder: Path) -> Shards:
    """Map a published corpus into memory."""
    report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    return Shards(
        folder,
        np.load(folder / TRAIN_FILE, mmap_mode="r"),
        np.load(folder / HELD_OUT_FILE, mmap_mode="r"),
        int(report["vocab_size"]),
        report,
    )
