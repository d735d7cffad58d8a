"""Lines of text files, packed or not: numbered, bounded, and counted where they are broken."""

import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, cast

from cloze_trainer.errors import InputError

LONGEST: Final = 4 << 20
"""Bytes of the longest line without its end, and characters of the longest document: what is read at once, whatever a
file's size.
"""

_GZIP, _ZSTANDARD = ".gz", ".zst"
COMPRESSIONS: Final = (_GZIP, _ZSTANDARD)
"""Ends of the names of compressed files."""

# So many broken lines are named; the others are counted.
_NAMED = 10


@dataclass(slots=True)
class BrokenLines:
    """Lines that are passed over, up to a number.

    allowed: how many; None where no line may be broken and no setting changes that. setting: its name.
    counts: how many were passed over, by reason. places: file, line and reason of the first few.
    """

    allowed: int | None = None
    setting: str = "corpus.maxBrokenLines"
    counts: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)

    def add(self, place: str, reason: str, what: str) -> None:
        """Count one more. Raises InputError with the reason, the place and what is wrong, once there are too many."""
        if self.allowed is None:
            raise InputError(reason, f"{place} {what}")
        self.counts[reason] += 1
        if len(self.places) < _NAMED:
            self.places.append(f"{place} {reason}")
        if (count := self.counts.total()) > self.allowed:
            raise InputError(
                reason,
                f"{place} {what}; broken lines so far: {count}, {self.setting} allows {self.allowed}",
            )


class Meter:
    """How many bytes of files have been read, as they are: packed, where they are packed."""

    def __init__(self) -> None:
        self._whole = 0
        self._file: IO[bytes] | None = None

    @property
    def done(self) -> int:
        """Of those that are read whole, and of the one that is being read."""
        return self._whole + (0 if self._file is None else os.lseek(self._file.fileno(), 0, os.SEEK_CUR))

    @contextmanager
    def reading(self, file: IO[bytes]) -> Iterator[None]:
        """While this block of code reads a file from its begin to its end."""
        self._file = file
        try:
            yield
        finally:
            self._file = None

    def finished(self, path: Path) -> None:
        """Count a file as read."""
        # One that is gone now is told of elsewhere.
        with suppress(FileNotFoundError):
            self._whole += path.stat().st_size


def compression(path: Path) -> str:
    """`.gz`, `.zst`, or nothing for a file that isn't compressed: its name tells."""
    return path.suffix if path.suffix in COMPRESSIONS else ""


@contextmanager
def opened(path: Path, meter: Meter | None = None) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked. Raises InputError, also while it is read, where it is gone or can't be unpacked."""
    try:
        with path.open("rb") as file, nullcontext() if meter is None else meter.reading(file):
            if compression(path) == _ZSTANDARD:
                import pyarrow as pa  # noqa: PLC0415 - a tenth of a second, for few

                with pa.input_stream(file, compression="zstd") as packed, io.BufferedReader(packed) as stream:
                    yield cast(IO[bytes], stream)
            elif compression(path) == _GZIP:
                with gzip.open(file, "rb") as unpacked:
                    yield cast(IO[bytes], unpacked)
            else:
                yield file
    except FileNotFoundError as error:
        raise InputError(
            "SourceGone", f"{path} was there when the run began and is gone: put it back and start a new job"
        ) from error
    except (EOFError, zlib.error, OSError) as error:
        # The system's own errors have a number; those of the unpackers have none.
        if compression(path) and getattr(error, "errno", None) is None:
            raise InputError(
                "SourceDamaged",
                f"{path} can't be unpacked: it is cut off, damaged or not {compression(path)}; make or copy it again",
            ) from error
        raise


def raw_lines(stream: IO[bytes], path: Path, broken: BrokenLines) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 stream with their ends, broken ones left out. Raises InputError as `broken` does."""
    number = 0
    while raw := stream.readline(LONGEST + len(b"\r\n")):
        number += 1
        place = f"{path}:{number}"
        if len(raw) > LONGEST and len(raw.removesuffix(b"\n").removesuffix(b"\r")) > LONGEST:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(LONGEST)
            broken.add(place, "LineTooLong", f"is longer than {LONGEST >> 20} MiB: put line ends between documents")
        elif b"\x00" in raw:
            broken.add(place, "SourceBinary", "holds a zero byte: the file isn't text")
        else:
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                broken.add(place, "SourceNotUTF8", f"isn't UTF-8 at byte {error.start + 1}: convert the file")
            else:
                yield number, text


def lines(path: Path, broken: BrokenLines | None = None, meter: Meter | None = None) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, without their ends. Raises InputError with the line for other bytes."""
    with opened(path, meter) as stream:
        for number, text in raw_lines(stream, path, broken or BrokenLines()):
            yield number, text.rstrip("\r\n")


def objects(
    path: Path, broken: BrokenLines | None = None, meter: Meter | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered objects of a JSON-lines file; blank lines are passed over. Raises InputError with the line."""
    broken = broken or BrokenLines()
    for number, line in lines(path, broken, meter):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            broken.add(place, "SourceNotJSON", f"isn't JSON at column {error.colno}: one object a line is expected")
            continue
        except (ValueError, RecursionError):  # a number of thousands of digits, brackets within brackets
            broken.add(place, "SourceNotJSON", "is JSON that can't be read: one object of plain fields is expected")
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            broken.add(place, "SourceNotJSON", "isn't a JSON object")
