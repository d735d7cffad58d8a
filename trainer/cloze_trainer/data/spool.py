"""Texts on disk, of which no more than one is in memory."""

import hashlib
import os
import tempfile
from abc import abstractmethod
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Digests = npt.NDArray[np.uint64]
"""Shape (N, 2): the first 128 bits of hashes, in their order as numbers."""


class Digesting:
    """Collects digests, sixteen bytes each."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, text: str) -> None:
        """The digest of one more text (SHA-256, cut)."""
        self._bytes += hashlib.sha256(text.encode()).digest()[:16]

    def extend(self, others: bytes) -> None:
        """The digests that another has collected."""
        self._bytes += others

    def __bytes__(self) -> bytes:
        return bytes(self._bytes)

    def all(self) -> Digests:
        """Of all texts so far."""
        return np.frombuffer(bytes(self._bytes), dtype=">u8").astype(np.uint64).reshape(-1, 2)


class Texts(Sequence[str]):
    """A sequence of texts; a part of it is a list."""

    @abstractmethod
    def size(self) -> int:
        """Bytes of all texts, as UTF-8."""

    def measured(self, done: int) -> tuple[int, int]:
        """How far a pass over them is that has done so many bytes of them: that, and all."""
        return done, self.size()

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._at(each) for each in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._at(index)

    @abstractmethod
    def _at(self, index: int) -> str: ...


class Spool(Texts):
    """Texts in a file without a name, which is gone with the process. Methods raise OSError when the volume is full."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._ends = array("Q", [0])
        self._characters = array("Q")

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, text: str) -> None:
        """Add a text."""
        data = text.encode()
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))
        self._characters.append(len(text))

    def __len__(self) -> int:
        return len(self._characters)

    def _at(self, index: int) -> str:
        self._file.flush()
        return os.pread(self._file.fileno(), self._ends[index + 1] - self._ends[index], self._ends[index]).decode()

    def size(self) -> int:
        """As in Texts."""
        return self._ends[-1]

    def sizes(self) -> npt.NDArray[np.uint64]:
        """Bytes of each text."""
        ends = np.frombuffer(self._ends, dtype=np.uint64)
        return ends[1:] - ends[:-1]

    def characters(self, mask: Mask) -> int:
        """How many characters those have."""
        return int(np.frombuffer(self._characters, dtype=np.uint64)[mask].sum()) if len(self) else 0


class Chosen(Texts):
    """Some texts of another sequence, by their indices."""

    def __init__(self, texts: Sequence[str], indices: npt.NDArray[np.int64]) -> None:
        self._texts, self._indices = texts, indices
        self._size: int | None = None

    def size(self) -> int:
        """As in Texts."""
        if self._size is None:
            if isinstance(self._texts, Spool):
                self._size = int(self._texts.sizes()[self._indices].sum())
            else:
                self._size = sum(len(text.encode()) for text in self)
        return self._size

    def __len__(self) -> int:
        return len(self._indices)

    def _at(self, index: int) -> str:
        return self._texts[int(self._indices[index])]


def sorted_order(digests: Digests) -> npt.NDArray[np.int64]:
    """Indices that sort digests; equal ones stay in their order."""
    return np.lexsort((digests[:, 1], digests[:, 0]))


def first_of_each(digests: Digests) -> Mask:
    """True for the first of equal digests."""
    order = sorted_order(digests)
    found = np.zeros(len(digests), dtype=bool)
    ranked = digests[order]
    fresh = np.ones(len(digests), dtype=bool)
    fresh[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    found[order[fresh]] = True
    return found


def at_most(digests: Digests, bound: Digests) -> Mask:
    """Which digests come before the bound (of shape (2,)) or are it."""
    upper, lower = digests[:, 0], digests[:, 1]
    found: Mask = (upper < bound[0]) | ((upper == bound[0]) & (lower <= bound[1]))
    return found
