"""Which ranks have come to which step: who is waited for is named, instead of a collective's bare time-out."""

import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Unanswered
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import Self

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from cloze_api.progress import ExitCode
from cloze_trainer.console import log
from cloze_trainer.errors import RankStuck, TrainerError
from cloze_trainer.gang import Gang

_BEAT_SECONDS = 2.0
# A process that has told nothing for so many beats is frozen, or its machine is gone.
_SILENT_BEATS = 4
# One that lives and doesn't come ends itself, and knows where it is: it is given time for that before others end.
_GRACE_BEATS = 3 * _SILENT_BEATS


class Part(IntEnum):
    """Where in a step a rank is."""

    DATA = 0
    BATCH = 1
    GRADIENT = 2


_DOING = {
    Part.DATA: "reads its share of",
    Part.BATCH: "waits for the others at",
    Part.GRADIENT: "computes its gradient of",
}


@dataclass(frozen=True, order=True, slots=True)
class Place:
    """How far a rank has come."""

    step: int
    part: Part

    def __str__(self) -> str:
        return f"{_DOING[self.part]} step {self.step}"


@dataclass(frozen=True, slots=True)
class Mark:
    """What a rank has told last. beat: grows as long as the process lives, whatever its training does."""

    place: Place
    beat: int

    def encode(self) -> str:
        """As the store holds it."""
        return f"{self.place.step} {int(self.place.part)} {self.beat}"

    @classmethod
    def decode(cls, text: str) -> "Mark":
        """What `encode` made."""
        step, part, beat = map(int, text.split())
        return cls(Place(step, Part(part)), beat)


def missing(before: Sequence[Mark], after: Sequence[Mark]) -> dict[int, str]:
    """The ranks that the others wait for, and what is wrong with each. Empty when all have come equally far.

    before, after: what each rank had told, with enough time in between for a process that lives to tell more.
    """
    furthest = max(mark.place for mark in after)
    found = {}
    for rank, (old, new) in enumerate(zip(before, after, strict=True)):
        if new.beat == old.beat:
            found[rank] = "doesn't respond"
        elif new.place < furthest:
            found[rank] = f"{new.place}"
    return found


class Attendance:
    """Tells the other ranks how far this one is, and ends it with a name once it has waited for too long.

    seconds: for how long a rank may stay at one place. end: takes the reason, and ends the process.
    """

    def __init__(self, gang: Gang, seconds: float, end: Callable[[TrainerError], None]) -> None:
        self._gang, self._seconds, self._end = gang, seconds, end
        self._interval = min(_BEAT_SECONDS, seconds / 4)
        self._place, self._since = Place(0, Part.DATA), time.monotonic()
        self._watched = False
        self._beat = 0
        self._over = threading.Event()

    def __enter__(self) -> Self:
        if self._gang.world > 1:
            # A connection of its own: others' long waits hold the shared one.
            self._store = _get_default_store().clone()
            self._tell()
            self._nodes = self._gang.from_all(socket.gethostname())
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="attendance-reader")
            self._watcher = threading.Thread(target=self._watch, name="attendance", daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        if self._gang.world > 1 and error is None:
            # The interpreter's end aborts a process with a thread within the store. One that hangs there is left.
            self._watcher.join(_SILENT_BEATS * self._interval)
            self._reader.shutdown(wait=False)

    def at(self, step: int, part: Part) -> None:
        """Say where this rank is; from now on it must not stay for too long."""
        self._place, self._since, self._watched = Place(step, part), time.monotonic(), True

    def rest(self) -> None:
        """What follows, such as an evaluation, may take as long as it does."""
        self._watched = False

    def _tell(self) -> None:
        self._beat += 1
        self._store.set(f"attendance/{self._gang.rank}", Mark(self._place, self._beat).encode())

    def _read(self) -> list[Mark]:
        keys = [f"attendance/{rank}" for rank in range(self._gang.world)]
        return [Mark.decode(value.decode()) for value in self._store.multi_get(keys)]

    def _watch(self) -> None:
        before: list[Mark] | None = None
        asked, silent = self._since, 0
        reading: Future[list[Mark]] | None = None
        gone = False
        while not self._over.wait(self._interval):
            if gone:
                if self._watched and time.monotonic() - self._since >= self._seconds:
                    self._stuck({0: "has ended"})
                continue
            try:
                if reading is None:
                    self._tell()
                if not self._watched or time.monotonic() - self._since < self._seconds or asked != self._since:
                    # Not here for long: whatever was found out before is about another place.
                    before, asked, silent = None, self._since, 0
                    continue
                reading = reading or self._reader.submit(self._read)
                marks = reading.result(timeout=self._interval)
                reading = None
            except Unanswered:
                silent += 1
                if silent >= _SILENT_BEATS:
                    self._stuck({0: "doesn't respond, and neither does the store in it"})
                continue
            except dist.DistError:
                # Rank 0 has ended. A training that waits for it notices by itself; one that hangs elsewhere doesn't.
                gone = True
                continue
            if before is None:
                before = marks
                continue
            beats = marks[self._gang.rank].beat - before[self._gang.rank].beat
            if beats >= _SILENT_BEATS:
                absent = missing(before, marks)
                lives = self._gang.rank not in absent and any(marks[rank].beat != before[rank].beat for rank in absent)
                if not lives or beats >= _GRACE_BEATS:
                    self._stuck(absent)

    def _stuck(self, absent: dict[int, str]) -> None:
        """End this rank, saying whom it has waited for; itself, it may be."""
        if self._over.is_set():
            return
        named = "; ".join(f"rank {rank} on {self._nodes[rank]} {what}" for rank, what in absent.items())
        named = named or "all have come to the same place, so that one of them or the network between them hangs"
        message = (
            f"after {self._seconds:g} s (failurePolicy.stuckSeconds) in which rank {self._gang.rank} on "
            f"{self._nodes[self._gang.rank]} {self._place}: {named}"
        )
        if self._gang.rank in absent:
            frame = sys._current_frames()[threading.main_thread().ident or 0]
            log("trace", rank=self._gang.rank, text="".join(traceback.format_stack(frame)[-8:]))
            self._end(TrainerError(RankStuck.REASON, message, ExitCode.INTERNAL))
        self._end(RankStuck(message))
