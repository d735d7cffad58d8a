"""Examples of files, one after the other: their fields by the names that tasks give them, whatever the format."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from cloze_api.dataset import Dataset, ExampleFields, ExampleFormat
from cloze_trainer.data.lines import BrokenLines, objects
from cloze_trainer.data.tables import BATCH_ROWS, csv_rows, parquet
from cloze_trainer.errors import InputError

T = TypeVar("T")
Record = dict[str, Any]

_METADATA: Final = "metadata"
#: What a cell of CSV has as JSON.
_JSON: Final = frozenset({"labels", "tokens", "answers", _METADATA})
_NUMBER: Final = "score"


@dataclass(frozen=True, slots=True)
class Form:
    """How examples lie in their files."""

    format: ExampleFormat = ExampleFormat.JSONL
    fields: ExampleFields = field(default_factory=ExampleFields)

    @property
    def others(self) -> Mapping[str, str]:
        """The files' names of fields that have others than the tasks', by these."""
        return {own: theirs for own, theirs in self.fields if isinstance(theirs, str)}

    def wants(self, name: str) -> bool:
        """Whether a field of this name in the files is one of an example's."""
        return name in self.others.values() or name in self.fields.metadata or name in ExampleFields.model_fields

    def record(self, row: Record) -> Record:
        """A row of a file with the tasks' names."""
        taken = self.others.values()
        found = {name: value for name, value in row.items() if name not in taken and name not in self.others}
        found |= {own: row[theirs] for own, theirs in self.others.items() if theirs in row}
        if self.fields.metadata:
            values = {name: _short(row.get(name)) for name in self.fields.metadata}
            found[_METADATA] = {name: value for name, value in values.items() if value is not None}
        return found

    def absent(self, row: Record) -> str:
        """What is said of a row that lacks fields which the spec names; nothing of another."""
        missing = [f"{theirs!r} for {own}" for own, theirs in self.others.items() if theirs not in row]
        return f"; dataset.fields names {', '.join(missing)}, which isn't there" if missing else ""


JSON_LINES: Final = Form()


def form_of(dataset: Dataset) -> Form:
    """As the spec has it."""
    return Form(dataset.format, dataset.fields)


def broken_lines(dataset: Dataset) -> BrokenLines:
    """How many lines of one of the data set's sources may be broken."""
    return BrokenLines(dataset.max_broken_lines, "dataset.maxBrokenLines")


Rows = Callable[[Path, Form, BrokenLines], Iterator[tuple[str, Record]]]
"""Place and fields of each row of a file, by the file's names."""


def read(
    paths: Sequence[Path],
    example: Callable[[str, Record], T],
    form: Form = JSON_LINES,
    broken: BrokenLines | None = None,
    rows: Rows | None = None,
) -> list[T]:
    """What `example` makes of each record and its place; at least one.

    broken: counts rows that it refuses, and lines that can't be read; none may be when absent. rows: instead of those
    of the format. Raises InputError with file and line.
    """
    broken, rows = broken or BrokenLines(), rows or ROWS[form.format]
    found = []
    for path in paths:
        for place, row in rows(path, form, broken):
            try:
                found.append(example(place, form.record(row)))
            except InputError as error:
                broken.add(place, error.reason, error.message.removeprefix(f"{place} ") + form.absent(row))
    if not found:
        raise InputError("DatasetEmpty", f"{paths[0]} holds no example")
    return found


def _objects(path: Path, _form: Form, broken: BrokenLines) -> Iterator[tuple[str, Record]]:
    yield from ((f"{path}:{number}", row) for number, row in objects(path, broken))


def _csv(path: Path, form: Form, broken: BrokenLines) -> Iterator[tuple[str, Record]]:
    names: list[str] | None = None
    own = {theirs: name for name, theirs in form.others.items()}
    for number, row in csv_rows(path, broken):
        if names is None:
            names = row
            continue
        place = f"{path}:{number}"
        cells = {name: cell for name, cell in zip(names, row, strict=True) if cell and form.wants(name)}
        try:
            yield place, {name: _value(name, own.get(name, name), cell) for name, cell in cells.items()}
        except ValueError as error:
            broken.add(place, "SourceNotJSON", str(error))


def _value(column: str, field: str, cell: str) -> Any:
    """What a cell stands for. Raises ValueError with what is wrong."""
    if field in _JSON:
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            raise ValueError(
                f'has no JSON in column {column!r}: give a list as ["a", "b"], with double quotation marks'
            ) from None
    if field == _NUMBER:
        try:
            return float(cell)
        except ValueError:
            return cell
    return cell


def _parquet(path: Path, form: Form, _broken: BrokenLines) -> Iterator[tuple[str, Record]]:
    number = 0
    with parquet(path, "dataset.format") as file:
        columns = [name for name in file.schema_arrow.names if form.wants(name)]
        classes = _class_labels(file.schema_arrow.metadata)
        for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
            for row in batch.to_pylist():
                number += 1
                yield (
                    f"{path}:{number}",
                    {
                        name: _named(value, classes[name]) if name in classes else _whole(value)
                        for name, value in row.items()
                        if value is not None
                    },
                )


def _whole(value: Any) -> Any:
    """A structure without the fields that are there for other rows' sake."""
    return {name: part for name, part in value.items() if part is not None} if isinstance(value, dict) else value


def _class_labels(metadata: Mapping[bytes, bytes] | None) -> dict[str, Sequence[str]]:
    """Names of classes by column, as the library `datasets` writes them into a file; none where they are none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        found = {column: _classes(feature) for column, feature in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {column: names for column, names in found.items() if names}


def _classes(feature: Any) -> Sequence[str]:
    """Of a column, or of the lists in it."""
    if isinstance(feature, list) and len(feature) == 1:
        return _classes(feature[0])
    if not isinstance(feature, dict):
        return []
    if feature.get("_type") == "ClassLabel":
        names = feature.get("names")
        return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
    return _classes(feature.get("feature"))


def _named(value: Any, names: Sequence[str]) -> Any:
    """Numbers of classes by name; one that stands for no class, as -1 does, by nothing."""
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return value


def _short(value: Any) -> Any:
    """What is told apart, as a text: numbers and truths by their JSON."""
    return json.dumps(value) if isinstance(value, int | float) else value


ROWS: Final[Mapping[ExampleFormat, Rows]] = {
    ExampleFormat.JSONL: _objects,
    ExampleFormat.CSV: _csv,
    ExampleFormat.PARQUET: _parquet,
}
"""How each format is read."""
