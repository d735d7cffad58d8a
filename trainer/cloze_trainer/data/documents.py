"""Documents of a corpus' files, by format; never more than a document and a block of a file are in memory."""

import csv
import io
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from cloze_api.pretrain import Corpus, CorpusFormat
from cloze_trainer.data.lines import LONGEST, BrokenLines, Meter, compression, lines, objects, opened, raw_lines
from cloze_trainer.errors import InputError

# Rows of a Parquet file that are in memory at once, and bytes that are read of it at once.
_BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20


def documents(
    corpus: Corpus, paths: Sequence[Path], broken: BrokenLines | None = None, meter: Meter | None = None
) -> Iterator[str]:
    """Documents of one corpus source, file after file; a document never goes on in the next file.

    meter: knows how far it is. Raises InputError with file and line (of a Parquet file: row) where more lines are
    broken than `broken` allows, by default none.
    """
    read = _READERS[corpus.format]
    broken, meter = broken or BrokenLines(0), meter or Meter()
    for path in paths:
        for place, text in read(path, corpus.text_field, broken, meter):
            if not isinstance(text, str):
                broken.add(
                    place,
                    "TextFieldMissing",
                    f"has no text in field {corpus.text_field!r}: set corpus.textField to the field that holds it",
                )
            elif len(text) > LONGEST:
                _too_long(place, broken)
            else:
                yield text
        meter.finished(path)


Read = Iterator[tuple[str, object]]
"""Place and document; what isn't a text stands for a document without one."""


def _too_long(place: str, broken: BrokenLines) -> None:
    what = f"begins a document of more than {LONGEST:,} characters: check corpus.format, or cut the document"
    broken.add(place, "DocumentTooLong", what)


def _paragraphs(path: Path, _field: str, broken: BrokenLines, meter: Meter) -> Read:
    paragraph: list[str] = []
    begin = length = 0

    def whole() -> Read:
        if length > LONGEST:
            _too_long(f"{path}:{begin}", broken)
        elif paragraph:
            yield f"{path}:{begin}", "\n".join(paragraph)

    for number, line in lines(path, broken, meter):
        if line.strip():
            begin = number if not length else begin
            length += len(line) + 1
            if length <= LONGEST:
                paragraph.append(line)
        else:
            yield from whole()
            paragraph, length = [], 0
    yield from whole()


def _lines(path: Path, _field: str, broken: BrokenLines, meter: Meter) -> Read:
    yield from ((f"{path}:{number}", line) for number, line in lines(path, broken, meter) if line.strip())


def _objects(path: Path, field: str, broken: BrokenLines, meter: Meter) -> Read:
    yield from ((f"{path}:{number}", row.get(field)) for number, row in objects(path, broken, meter))


def _csv(path: Path, field: str, broken: BrokenLines, meter: Meter) -> Read:
    """Rows as RFC 4180 has them, the first one the fields' names."""
    with opened(path, meter) as stream:
        column: int | None = None
        width = 0
        for number, row in _rows(raw_lines(stream, path, broken)):
            place = f"{path}:{number}"
            if row is None:
                what = f"begins a row that isn't CSV, or is longer than {LONGEST >> 20} MiB: check its quotation marks"
                broken.add(place, "SourceNotCSV", what)
            elif column is None:
                if field not in row:
                    raise _no_column(path, field)
                column, width = row.index(field), len(row)
            elif row and len(row) != width:
                broken.add(place, "SourceNotCSV", f"has {len(row)} fields, the first row has {width}")
            elif row:
                yield place, row[column]


def _rows(numbered: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str] | None]]:
    """First line and fields of each row, None for one that can't be read; the next one begins in the line after it.

    A quotation mark that isn't closed takes in the lines up to the next one, or the longest row. They are rows of their
    own, of one line each, but for the last, in which a row of several may begin: no line is read more than twice.
    """
    csv.field_size_limit(LONGEST)
    begin = length = 0
    # What a row has taken in after its first line; many short lines would be large as a list of them.
    numbers, texts = array("Q"), io.StringIO(newline="\n")

    def fed(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
        nonlocal begin, length
        for number, line in lines:
            if length:
                numbers.append(number)
                texts.write(line)
            else:
                begin = number
            length += len(line)
            if length > LONGEST:
                raise csv.Error
            yield line

    rows = csv.reader(fed(numbered), strict=True)
    while True:
        length = 0
        if numbers:
            numbers, texts = array("Q"), io.StringIO(newline="\n")
        try:
            row = next(rows, None)
        except csv.Error:
            yield begin, None
            texts.seek(0)
            again = zip(numbers, texts, strict=True)
            for number, line in islice(again, max(0, len(numbers) - 1)):
                yield number, _row(line)
            rows = csv.reader(fed(chain(again, numbered)), strict=True)
        else:
            if row is None:
                return
            yield begin, row


def _row(line: str) -> list[str] | None:
    """Fields of a row of one line; None if it can't be read."""
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return None


def _parquet(path: Path, field: str, _broken: BrokenLines, _meter: Meter) -> Read:
    """Its columns lie here and there, so that the file counts as read at its end."""
    import pyarrow as pa  # noqa: PLC0415 - a tenth of a second, for few
    from pyarrow import parquet  # noqa: PLC0415

    if compression(path):
        raise InputError(
            "SourceFormatUnsupported", f"{path} is a compressed file of Parquet, which is compressed within: unpack it"
        )
    number = 0
    try:
        with opened(path) as stream, parquet.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            if field not in file.schema_arrow.names:
                raise _no_column(path, field)
            for batch in file.iter_batches(_BATCH_ROWS, columns=[field], use_threads=False):
                for text in batch.column(0):
                    number += 1
                    yield f"{path}:{number}", text.as_py()
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        place = f"{path}:{number + 1}" if number else str(path)
        raise InputError(
            "SourceNotParquet",
            f"{place} can't be read as Parquet: it is damaged or another format; check corpus.format",
        ) from error


def _no_column(path: Path, field: str) -> InputError:
    return InputError(
        "TextFieldMissing", f"{path} has no column {field!r}: set corpus.textField to the column that holds the text"
    )


_READERS = {
    CorpusFormat.PARAGRAPHS: _paragraphs,
    CorpusFormat.LINES: _lines,
    CorpusFormat.JSONL: _objects,
    CorpusFormat.CSV: _csv,
    CorpusFormat.PARQUET: _parquet,
}
