"""Parquet: the columns of the input with their types, and one struct for the result and one for the error."""

import io
import json
import types
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import IO, Any, Union, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from cloze_server.batch.rows import NOT_OF_A_ROW, Columns, Outcome, Row, check_columns
from cloze_server.tasks.handler import AnyHandler

_BATCH_ROWS = 1024
_BATCH_BYTES = 8 << 20
# Of the output, so that its row groups don't depend on how often progress was saved.
_GROUP_BYTES = 64 << 20
_GROUP_ROWS = 100_000
_ERROR = pa.struct([("type", pa.string()), ("detail", pa.string())])
_SCALARS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def arrow_type(annotation: Any) -> Any:
    """The Arrow type of a reply's field. Raises TypeError for one that has none."""
    if get_origin(annotation) in (Union, types.UnionType):
        # The first: the other form of an embedding is asked for by a parameter that a run doesn't take.
        return arrow_type(next(each for each in get_args(annotation) if each is not type(None)))
    if annotation == list[float]:
        # An embedding, which the model gives in this precision.
        return pa.list_(pa.float32())
    if get_origin(annotation) is list:
        return pa.list_(arrow_type(get_args(annotation)[0]))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = {name: field for name, field in annotation.model_fields.items() if name not in NOT_OF_A_ROW}
        return pa.struct([(name, arrow_type(field.annotation)) for name, field in fields.items()])
    try:
        return _SCALARS[annotation]
    except KeyError:
        raise TypeError(f"no Arrow type for {annotation}") from None


def result_type(handler: type[AnyHandler]) -> Any:
    """The Arrow type of the result for one input."""
    fields = handler.reply.model_fields
    (result,) = get_args((fields.get("results") or fields["data"]).annotation)
    return arrow_type(result)


class Parquet:
    """A table in Parquet. Positions are rows. total: rows of the input."""

    unit = " rows"

    def __init__(self, stream: IO[bytes], columns: Columns, handler: type[AnyHandler]) -> None:
        """Raises FatalError (CONFIGURATION) for a table without the columns, and OSError and ValueError for none."""
        self._file = pq.ParquetFile(stream)
        schema = self._file.schema_arrow
        check_columns(columns, schema.names, handler.task)
        self._columns = columns
        self._read = columns.read(handler.task)
        self._kept = [columns.id] if columns.id else schema.names
        self._added = pa.schema([(columns.result, result_type(handler)), (columns.error, _ERROR)])
        self.total = self._file.metadata.num_rows

    def rows(self, start: int) -> Iterator[Row]:
        """The rows from a position on."""
        position = 0
        for group in range(self._file.num_row_groups):
            count = self._file.metadata.row_group(group).num_rows
            row_bytes = self._file.metadata.row_group(group).total_byte_size // max(1, count)
            most = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, row_bytes)))
            if position + count <= start:
                position += count
                continue
            wanted = list(dict.fromkeys([*self._kept, *self._read]))
            for batch in self._file.iter_batches(most, row_groups=[group], columns=wanted):
                contents = batch.select(self._read).to_pylist()
                size = batch.nbytes // max(1, batch.num_rows)
                kept = batch.select(self._kept)
                for index, content in enumerate(contents):
                    position += 1
                    if position > start:
                        yield Row(content, (kept, index), size, position)

    def part(self, scored: Sequence[tuple[Row, Outcome]]) -> bytes:
        """Rows and what became of them, as a table."""
        batches = []
        for _, run in groupby(scored, key=lambda each: id(each[0].kept[0])):
            rows = [row.kept for row, _ in run]
            batches.append(rows[0][0].slice(rows[0][1], len(rows)))
        table = pa.Table.from_batches(batches)
        results = [json.loads(outcome.result) if outcome.result else None for _, outcome in scored]
        errors = [outcome.error() for _, outcome in scored]
        for field, values in zip(self._added, (results, errors), strict=True):
            table = table.append_column(field, pa.array(values, field.type))
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        return buffer.getvalue()

    def join(self, parts: Iterable[bytes], target: IO[bytes]) -> None:
        """Write parts as one table, in row groups of a size of their own."""
        schema = self._file.schema_arrow
        schema = pa.schema([*(schema.field(name) for name in self._kept), *self._added], schema.metadata)
        with pq.ParquetWriter(target, schema) as writer:
            group: list[Any] = []
            for part in parts:
                group.append(pq.read_table(io.BytesIO(part)).cast(schema))
                full = sum(table.nbytes for table in group) >= _GROUP_BYTES
                if full or sum(table.num_rows for table in group) >= _GROUP_ROWS:
                    writer.write_table(pa.concat_tables(group))
                    group = []
            if group:
                writer.write_table(pa.concat_tables(group))
