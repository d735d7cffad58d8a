"""Answers for many rows at a time, in the order of the rows.

Many, so that the engine finds sequences of equal lengths for its batches; few enough that memory stays the same however
long the input is.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from itertools import islice
from typing import Any

from cloze_server.batch.rows import Outcome, Row
from cloze_server.batching import LOOKAHEAD

_BYTES = 2 << 20
_READ_ROWS = 64


async def scored(
    rows: Iterator[Row], answer: Callable[[Row], Coroutine[Any, Any, Outcome]], *, most_rows: int = LOOKAHEAD
) -> AsyncGenerator[tuple[Row, Outcome]]:
    """Each row with its outcome, once and in order.

    rows: read in a thread, a few at a time. answer: raises nothing that is a row's own fault. most_rows: that are
    answered at a time, by default as many as the engine looks at.
    """
    waiting: deque[tuple[Row, asyncio.Task[Outcome]]] = deque()
    size, ended = 0, False
    try:
        while True:
            while not ended and len(waiting) < most_rows and (size < _BYTES or not waiting):
                read = await asyncio.to_thread(_take, rows, min(_READ_ROWS, most_rows - len(waiting)))
                ended = not read
                waiting.extend((row, asyncio.create_task(answer(row))) for row in read)
                size += sum(row.size for row in read)
            if not waiting:
                return
            row, task = waiting[0]
            outcome = await task
            waiting.popleft()
            size -= row.size
            yield row, outcome
    finally:
        for _, task in waiting:
            task.cancel()
        for _, task in waiting:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


def _take(rows: Iterator[Row], count: int) -> list[Row]:
    """Some of the rows that are next; none at the end."""
    taken, size = [], 0
    for row in islice(rows, count):
        taken.append(row)
        size += row.size
        if size >= _BYTES // 4:
            break
    return taken
