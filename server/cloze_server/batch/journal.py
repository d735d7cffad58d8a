"""How far a run is, kept beside its output.

While a run lasts, `OUTPUT.parts/` holds the finished parts and `state.json`, which is written after each part and says
how many count. A process that dies leaves at most a part that doesn't count yet, and the next one makes it again. In
the end the parts become the output in one step, and `OUTPUT.run.json` tells what it was made from.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from cloze_server.batch.store import Store, read_json
from cloze_server.exits import ExitCode, FatalError


@dataclass(frozen=True, slots=True)
class Progress:
    """What is done. position: in the input, in its format's units."""

    parts: int = 0
    rows: int = 0
    position: int = 0
    errors: int = 0
    tokens: int = 0


class Journal:
    """The state of one run. Methods raise OSError."""

    def __init__(self, output: Store, identity: dict[str, Any]) -> None:
        """identity: what the run is made from; another one is another run."""
        self._output = output
        self._identity = identity
        self._state = output.beside(".parts/state.json")
        self._receipt = output.beside(".run.json")
        self.lock = output.beside(".parts/lock")
        self.progress = Progress()

    def begin(self, *, overwrite: bool) -> bool:
        """Find out what there is; whether anything is left to be done.

        Raises FatalError (CONFIGURATION) for an output, or an unfinished run, that is made from something else and may
        not be overwritten.
        """
        if (state := read_json(self._state)) is not None:
            differing = _differences(state["identity"], self._identity)
            if not differing:
                self.progress = Progress(**state["progress"])
                return True
            # One that has done nothing yet, such as one that was refused for its parameters, is in nobody's way.
            if state["progress"]["parts"] and not overwrite:
                raise FatalError(
                    ExitCode.CONFIGURATION,
                    "RunDiffers",
                    f"an unfinished run of {self._output.uri} had another {' and '.join(differing)}: give "
                    "--overwrite to begin anew, or another --output",
                )
        if self._output.exists():
            receipt = read_json(self._receipt)
            if receipt is not None and not _differences(receipt["identity"], self._identity):
                self.progress = Progress(**receipt["progress"])
                self._forget_parts()
                return False
            if not overwrite:
                self._forget_parts()
                raise FatalError(
                    ExitCode.CONFIGURATION,
                    "OutputExists",
                    f"{self._output.uri} exists and is not what this run would make: give --overwrite, or another "
                    "--output",
                )
        self._note(self.progress)
        return True

    def commit(self, part: bytes, progress: Progress) -> None:
        """Keep one more part. progress: after it, without the count of parts."""
        self._part(self.progress.parts).write(part)
        self._note(replace(progress, parts=self.progress.parts + 1))

    def parts(self) -> Iterator[bytes]:
        """All parts in order."""
        return (self._part(number).read() for number in range(self.progress.parts))

    def finish(self) -> None:
        """Tell what the output was made from, now that it is there, and forget the parts."""
        record = {"identity": self._identity, "progress": asdict(self.progress)}
        self._receipt.write(_document(record))
        self._forget_parts()

    def _note(self, progress: Progress) -> None:
        self._state.write(_document({"identity": self._identity, "progress": asdict(progress)}))
        self.progress = progress

    def _forget_parts(self) -> None:
        # First what makes them count.
        self._state.remove()
        self._output.beside(".parts").remove(folder=True)

    def _part(self, number: int) -> Store:
        return self._output.beside(f".parts/{number:08d}")


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def _document(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()
