"""Rows of tables: CSV and Parquet; never more than some rows and a block of a file are in memory."""

import csv
import io
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from cloze_trainer.data.lines import LONGEST, BrokenLines, Meter, compression, opened, raw_lines
from cloze_trainer.errors import InputError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

# Rows of a Parquet file that are in memory at once, and bytes that are read of it at once.
BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20

Row = tuple[int, list[str]]
"""First line and fields."""


def csv_rows(path: Path, broken: BrokenLines, meter: Meter | None = None) -> Iterator[Row]:
    """Rows as RFC 4180 has them, all with as many fields as the first, which has their names.

    Raises InputError as `broken` does.
    """
    with opened(path, meter) as stream:
        width: int | None = None
        for number, row in _rows(raw_lines(stream, path, broken)):
            place = f"{path}:{number}"
            if row is None:
                what = f"begins a row that isn't CSV, or is longer than {LONGEST >> 20} MiB: check its quotation marks"
                broken.add(place, "SourceNotCSV", what)
            elif row and len(row) != (width or len(row)):
                broken.add(place, "SourceNotCSV", f"has {len(row)} fields, the first row has {width}")
            elif row:
                width = width or len(row)
                yield number, row


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


@contextmanager
def parquet(path: Path, setting: str) -> Iterator["ParquetFile"]:
    """A file of Parquet. setting: where its format is named. Raises InputError, also while it is read."""
    import pyarrow as pa  # noqa: PLC0415 - a tenth of a second, for few
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415

    if compression(path):
        raise InputError(
            "SourceFormatUnsupported", f"{path} is a compressed file of Parquet, which is compressed within: unpack it"
        )
    try:
        with opened(path) as stream, ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise InputError(
            "SourceNotParquet",
            f"{path} can't be read as Parquet: it is damaged or another format; check {setting}",
        ) from error
