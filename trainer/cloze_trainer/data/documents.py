"""Documents of a corpus' files, by format; never more than a document and a block of a file are in memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from cloze_api.pretrain import Corpus, CorpusFormat
from cloze_trainer.data.lines import LONGEST, BrokenLines, Meter, lines, objects
from cloze_trainer.data.tables import BATCH_ROWS, csv_rows, parquet
from cloze_trainer.errors import InputError


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
    column: int | None = None
    for number, row in csv_rows(path, broken, meter):
        if column is not None:
            yield f"{path}:{number}", row[column]
        elif field in row:
            column = row.index(field)
        else:
            raise _no_column(path, field)


def _parquet(path: Path, field: str, _broken: BrokenLines, _meter: Meter) -> Read:
    """Its columns lie here and there, so that the file counts as read at its end."""
    number = 0
    with parquet(path, "corpus.format") as file:
        if field not in file.schema_arrow.names:
            raise _no_column(path, field)
        for batch in file.iter_batches(BATCH_ROWS, columns=[field], use_threads=False):
            for text in batch.column(0):
                number += 1
                yield f"{path}:{number}", text.as_py()


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
