"""Tokenized examples as they lie in a folder: flat arrays, memory-mapped, and batches of them."""

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cloze_trainer.data.examples import Row
from cloze_trainer.data.labelled import IGNORED, Labelled, pad

Ids = npt.NDArray[np.int64]
Array = npt.NDArray[Any]
Arrays = dict[str, Array]

EXAMPLE, SECOND, FIRST = range(3)
"""Columns of `places`."""
_FIELDS = ("ids", "lengths", "targets", "places", "spans", "unread")


class Batch(NamedTuple):
    """Padded rows. visible: what isn't padding. segments: 1 in the second text of a pair. targets: (B, T) or (B, …)."""

    ids_BT: Ids
    visible_BT: npt.NDArray[np.bool_]
    segments_BT: Ids
    targets: Array


def save(folder: Path, name: str, part: Labelled) -> None:
    """Write what `Rows` reads."""
    for field, values in _flat(part).items():
        np.save(_path(folder, name, field), values)


def _path(folder: Path, name: str, field: str) -> Path:
    return folder / f"{name}-{field}.npy"


def _flat(part: Labelled) -> Arrays:
    arrays: Arrays = {
        "ids": np.concatenate(part.ids).astype(np.int32),
        "lengths": part.lengths,
        "targets": _narrow(np.concatenate(part.targets)),
    }
    if part.places is not None:
        arrays["places"] = part.places
    if part.spans is not None:
        arrays["spans"] = np.concatenate(part.spans).astype(np.int32)
    if part.unread is not None:
        arrays["unread"] = part.unread
    return arrays


def _narrow(values: Array) -> Array:
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int32)


def _wide(values: Array) -> Array:
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int64)


def evenly(count: int, most: int) -> Ids:
    """At most so many of the numbers below `count`, from all over them."""
    return np.linspace(0, count - 1, min(most, count)).astype(np.int64)


class Rows:
    """Sequences and their targets. lengths: tokens of each. places, spans, unread: as of `Labelled`, of which there are
    (R, 3), (N, 2), (U, 3).
    """

    def __init__(self, arrays: Arrays, *, per_token: bool, pad: int) -> None:
        """per_token: whether a target is of a token or of a row. pad: id of what fills a batch."""
        self._ids, self._targets = arrays["ids"], arrays["targets"]
        self.lengths: Ids = np.asarray(arrays["lengths"], dtype=np.int64)
        alone = np.zeros((len(self.lengths), 3), np.int64)
        alone[:, EXAMPLE] = np.arange(len(alone))
        self.places: Ids = np.asarray(arrays.get("places", alone), dtype=np.int64)
        self.spans = arrays.get("spans", np.zeros((0, 2), np.int64))
        self.unread: Ids = np.asarray(arrays.get("unread", np.zeros((0, 3), np.int64)))
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._per_token, self._pad = per_token, pad

    @classmethod
    def load(cls, folder: Path, name: str, *, per_token: bool, pad: int) -> "Rows":
        """What `save` has written."""
        paths = {field: _path(folder, name, field) for field in _FIELDS}
        arrays: Arrays = {field: np.load(path, mmap_mode="r") for field, path in paths.items() if path.is_file()}
        return cls(arrays, per_token=per_token, pad=pad)

    @classmethod
    def of(cls, part: Labelled, *, per_token: bool, pad: int) -> "Rows":
        """The same, in memory."""
        return cls(_flat(part), per_token=per_token, pad=pad)

    def groups(self) -> list[range]:
        """The rows of each example."""
        bounds = [0, *(np.flatnonzero(np.diff(self.places[:, EXAMPLE])) + 1).tolist(), len(self)]
        return [range(start, stop) for start, stop in pairwise(bounds)]

    def occurrences(self, token: int) -> Ids:
        """How often a token is in each row."""
        return np.add.reduceat(np.asarray(self._ids) == token, self._starts[:-1], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def items(self) -> tuple[Ids, Array]:
        """What is scored: where each row's items begin, and the end of the last one's; the target of each."""
        if not self._per_token:
            return np.arange(len(self) + 1), _wide(self._targets)
        scored = np.asarray(self._targets) != IGNORED
        return np.concatenate([[0], np.cumsum(scored)])[self._starts], _wide(self._targets[scored])

    def spread(self, most: int) -> list[Row]:
        """At most so many rows, from all over the file."""
        return self.some(evenly(len(self), most))

    def some(self, rows_B: Ids) -> list[Row]:
        """Some rows, each by itself."""
        found = []
        for row in rows_B:
            span = slice(self._starts[row], self._starts[row + 1])
            ids = self._ids[span].astype(np.int64)
            targets = _wide(self._targets[span if self._per_token else slice(row, row + 1)])
            found.append(Row(ids, self._segments(row, len(ids)), targets))
        return found

    def batch(self, rows_B: Ids) -> Batch:
        """Some rows, as one batch."""
        spans = [slice(self._starts[row], self._starts[row + 1]) for row in rows_B]
        ids_BT = pad([self._ids[span].astype(np.int64) for span in spans], self._pad)
        visible_BT = np.arange(ids_BT.shape[1]) < self.lengths[rows_B, None]
        if self._per_token:
            targets = pad([self._targets[span].astype(np.int64) for span in spans], IGNORED)
        else:
            targets = _wide(self._targets[rows_B])
        segments_BT = pad([self._segments(row, int(self.lengths[row])) for row in rows_B], 0)
        return Batch(ids_BT, visible_BT, segments_BT, targets)

    def _segments(self, row: int, length: int) -> Ids:
        second = self.places[row, SECOND]
        return (np.arange(length) >= second).astype(np.int64) if second else np.zeros(length, np.int64)
