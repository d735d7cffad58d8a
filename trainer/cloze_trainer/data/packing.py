"""Documents as packed rows of token ids, in one `.npy` file; never more than a block of them is in memory."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from cloze_api.manifest import SpecialTokens
from cloze_trainer.data import tokenizer
from cloze_trainer.data.passes import Block, blocks

_BLOCK_ROWS = 4096
# Of a document that is cut, in tokens: less has hardly any context.
_SHORTEST_PIECE = 16

Tokens = npt.NDArray[np.integer[Any]]
Seen = npt.NDArray[np.int64]


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


def attended(rows_BT: Tokens, special: SpecialTokens = tokenizer.SPECIAL_IDS) -> float:
    """How many tokens a token looks at, on average over all of them: those of its own text."""
    texts_BT, _ = texts_of(rows_BT, special)
    real_BT = rows_BT != special.pad
    # No text goes on from one row to the next.
    texts_BT = texts_BT + (rows_BT.shape[1] + 1) * np.arange(len(rows_BT))[:, None]
    _, lengths = np.unique(texts_BT[real_BT], return_counts=True)
    return float((lengths**2).sum() / lengths.sum())


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


def spread_tokenizing(threads: int) -> None:
    """Have the tokenizers library use so many threads in this process, if it has not begun any yet."""
    os.environ.update(dict.fromkeys(("RAYON_RS_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads)))


def _encode(
    model: Tokenizer, texts: Sequence[str], special: SpecialTokens, tell: Callable[[Block], object] | None
) -> Iterator[Sequence[int]]:
    """Ids of the texts. tell: takes each block of them once it is used."""
    framing = {special.pad, special.cls, special.sep, special.mask}
    for block, encodings in _ahead(model, texts):
        yield from (_without(framing, encoding.ids, special.unk) for encoding in encodings)
        if tell is not None:
            tell(block)


def _without(framing: Set[int | None], ids: Sequence[int], unknown: int | None) -> Sequence[int]:
    """The ids, with the unknown one in place of those that would begin, end, pad or hide something.

    A Unigram's model has its special tokens among its pieces, and a WordPiece that splits at blanks alone finds them as
    words: a text that spells one, as `<s>` of a web page, gets its id even where it is ordinary text.
    """
    if framing.isdisjoint(ids):
        return ids
    kept = (unknown if each in framing else each for each in ids)
    return [each for each in kept if each is not None]


def _ahead(model: Tokenizer, texts: Sequence[str]) -> Iterator[tuple[Block, list[Encoding]]]:
    """Blocks of the texts, each of which is tokenized while the one before is used.

    `[SEP]` and the like within a text are ordinary text.
    """
    model.encode_special_tokens = True
    # The library spreads a block over the processors, and lets Python run meanwhile.
    with ThreadPoolExecutor(1) as ahead:
        waiting: tuple[Block, Future[list[Encoding]]] | None = None
        for block in blocks(texts):
            begun = block, ahead.submit(model.encode_batch_fast, block, add_special_tokens=False)
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = begun
        if waiting:
            yield waiting[0], waiting[1].result()


def write_rows(
    path: Path,
    model: Tokenizer,
    texts: Sequence[str],
    max_length: int,
    special: SpecialTokens = tokenizer.SPECIAL_IDS,
    *,
    tell: Callable[[Block], object] | None = None,
) -> Counts:
    """Tokenize the texts, pack them into rows, and write these as one `.npy` file. tell: takes what is done of them."""
    vocab_size = tokenizer.size(model)
    rows = pack(_encode(model, texts, special, tell), max_length, _dtype(vocab_size), special)
    return _write(path, rows, max_length, vocab_size, special)
