"""What waits for the model: pieces of requests, and how their answers come back."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloze_server.backend import Logits


@dataclass(frozen=True, slots=True)
class Piece:
    """One sequence for the model.

    ids: token ids. second: where the second text of a pair begins among them; None without one. keep: makes of the
    sequence's logits, (length, classes) or (classes,), what the answer needs. It runs in the inference thread as the
    batch ends, on the batch's own memory, of which it must keep nothing.
    """

    ids: list[int]
    keep: Callable[[Logits], Any]
    second: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was kept of a request's pieces, in their order, and where the time went.

    queue_seconds, infer_seconds: of the piece answered last.
    """

    kept: list[Any]
    queue_seconds: float
    infer_seconds: float


@dataclass(eq=False, slots=True)
class Request:
    """One request that waits. missing: pieces that are not answered yet."""

    future: asyncio.Future[Answer]
    loop: asyncio.AbstractEventLoop
    arrived: float
    kept: list[Any]
    missing: int


@dataclass(eq=False, slots=True)
class Entry:
    """One queued piece."""

    request: Request
    index: int
    piece: Piece
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.piece.ids)


def padded(part: Sequence[Entry]) -> int:
    """Tokens of a batch, with what fills its shorter sequences up."""
    return len(part) * max(entry.length for entry in part)


def halves(part: Sequence[Entry]) -> list[list[Entry]]:
    """A batch of two or more in two, the shorter sequences last."""
    ordered = sorted(part, key=lambda entry: entry.length)
    middle = len(ordered) // 2
    return [ordered[middle:], ordered[:middle]]


Outcome = tuple[Request, Answer | Exception]
"""What came of a request."""


def settle(outcomes: list[Outcome]) -> None:
    """Tell the event loops what came of their requests; each is woken once for all that a batch has ended."""
    for loop in {request.loop for request, _ in outcomes}:
        # The loop is closed only when nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_deliver, [each for each in outcomes if each[0].loop is loop])


def _deliver(outcomes: list[Outcome]) -> None:
    for request, outcome in outcomes:
        if request.future.done():
            continue
        if isinstance(outcome, Answer):
            request.future.set_result(outcome)
        else:
            request.future.set_exception(outcome)
