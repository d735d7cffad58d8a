"""The queue and the threads that run batches.

Work-conserving: whenever a thread is free and something waits, a batch runs. What arrives meanwhile makes the next.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Sequence

import numpy as np

from cloze_server.backend import Backend, InferenceError, Logits, OutOfMemoryError
from cloze_server.batching import plan_batch
from cloze_server.budget import Budget
from cloze_server.logs import fields
from cloze_server.pieces import Answer, Entry, Outcome, Piece, Request, halves, padded, settle
from cloze_server.telemetry import Telemetry
from cloze_server.turns import Turns

_log = logging.getLogger(__name__)

_RATE_WEIGHT = 0.2
_RETRY_MAX_SECONDS = 60
# Batches' worth of tokens.
_SHORT_QUEUE = 2


class QueueFullError(Exception):
    """No room for the request now. `retry_after_seconds`: when there should be, at the measured rate."""

    def __init__(self, why: str, retry_after_seconds: int) -> None:
        super().__init__(f"{why}: try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


def _patience(seconds: float) -> int:
    return min(max(math.ceil(seconds), 1), _RETRY_MAX_SECONDS)


class Engine:
    """Runs pieces through a backend in batches under a budget of padded tokens.

    The queue belongs to a lock: the event loop adds and withdraws, the inference threads take.
    """

    def __init__(
        self,
        backend: Backend,
        telemetry: Telemetry,
        *,
        pad: int,
        max_batch_tokens: int,
        max_queue_tokens: int,
        max_wait_seconds: float = math.inf,
        parallel: int = 1,
        turns: Turns | None = None,
    ) -> None:
        """max_wait_seconds: expected before a request's first batch. parallel: batches that run at the same time, each
        in a thread of its own. turns: shared with other engines; None: this one is alone.
        """
        self._backend = backend
        self._telemetry = telemetry
        self._pad = pad
        self._budget = Budget(max_batch_tokens)
        self.max_queue_tokens = max_queue_tokens
        self._max_wait_seconds = max_wait_seconds
        self._changed = threading.Condition()
        self._queue: list[Entry] = []
        self._queued_tokens = 0
        self._closing = False
        self._tokens_per_second = 0.0
        self._parallel = parallel
        self._turns = turns or Turns(parallel)
        self._running: dict[int, float] = {}
        """When each batch began that runs now, by its thread."""
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"inference-{number}", daemon=True)
            for number in range(parallel)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a batch."""
        return self._queued_tokens

    def refuse_when_full(self, tokens: int, until: float = math.inf) -> None:
        """Raises QueueFullError when so many more tokens don't fit, or would wait for longer than any may.

        until: when nobody waits for them any more, on the monotonic clock. Who would be late is refused at once: with a
        queue of just that length all that is computed would come just too late.
        """
        # Until the first batch is measured there is no rate.
        waiting, rate = self._queued_tokens, self._tokens_per_second
        if (excess := waiting + tokens - self.max_queue_tokens) > 0:
            why = f"the request needs room for {tokens} tokens, {waiting} of at most {self.max_queue_tokens} wait"
            raise QueueFullError(why, _patience(excess / rate if rate else 1))
        # So much may always wait: without it the threads would never show how fast they are. The request itself doesn't
        # count: however long it is, it may begin on an empty queue.
        short = _SHORT_QUEUE * self._budget.tokens
        if not rate or waiting <= short:
            return
        if (seconds := waiting / rate) > self._max_wait_seconds:
            why = f"the request would wait for {seconds:.1f} s, and at most {self._max_wait_seconds:g} s are allowed"
            raise QueueFullError(why, _patience(seconds - self._max_wait_seconds))
        # What runs already, and what the estimate may be wrong by.
        needed, left = (waiting + tokens + short) / rate, max(0.0, until - time.monotonic())
        if needed > left:
            why = f"the answer would take {needed:.1f} s, and the request's time ends in {left:.1f} s"
            raise QueueFullError(why, _patience(needed - left))

    async def submit(self, pieces: Sequence[Piece], until: float = math.inf) -> Answer:
        """Queue the pieces of one request and wait for all of them. until: as in `refuse_when_full`.

        Cancelling withdraws what is not yet in a batch. Raises QueueFullError and InferenceError.
        """
        loop = asyncio.get_running_loop()
        tokens = sum(len(piece.ids) for piece in pieces)
        request = Request(loop.create_future(), loop, time.monotonic(), [None] * len(pieces), len(pieces))
        with self._changed:
            self.refuse_when_full(tokens, until)
            self._queue.extend(Entry(request, index, piece) for index, piece in enumerate(pieces))
            self._queue_changed(tokens)
            self._changed.notify(len(pieces))
        try:
            return await request.future
        finally:
            if request.missing:
                self._withdraw(request)

    def failure(self, patience_seconds: float) -> str | None:
        """Why answers will be missing from now on: a thread is dead, or its batch runs for longer than that."""
        if not self._closing and not all(thread.is_alive() for thread in self._threads):
            return "an inference thread is dead"
        with self._changed:
            seconds = time.monotonic() - min(self._running.values(), default=math.inf)
        return f"a batch has been running for {seconds:.0f} s" if seconds > patience_seconds else None

    def close(self) -> None:
        """Stop the threads after the batches that are running; what still waits is never answered."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)

    def _withdraw(self, request: Request) -> None:
        with self._changed:
            kept = [entry for entry in self._queue if entry.request is not request]
            self._queue_changed(sum(entry.length for entry in kept) - self._queued_tokens)
            self._queue = kept

    def _queue_changed(self, tokens: int) -> None:
        self._queued_tokens += tokens
        self._telemetry.queue_tokens(self._queued_tokens)

    def _work(self, number: int) -> None:
        while self._wait():
            began = time.monotonic()
            with self._turns.turn():
                # What came while others had their turn belongs to it too.
                if batch := self._take(number):
                    tokens = sum(entry.length for entry in batch)
                    full = max(2 * padded(batch), self._queued_tokens) > self._budget.tokens
                    self._run(batch)
                    del batch
                    with self._changed:
                        del self._running[number]
                        if full:
                            self._measure(tokens, time.monotonic() - began)

    def _run(self, batch: list[Entry]) -> None:
        """Run a batch and settle its requests; in halves, and those in halves, where memory is too small for it."""
        parts = [batch]
        while parts:
            part = parts.pop()
            if len(part) > 1 and padded(part) > self._budget.tokens:
                # It is known by now that this doesn't fit.
                parts += halves(part)
                continue
            started = time.monotonic()
            try:
                logits = self._infer(part)
            except (OutOfMemoryError, MemoryError):
                if len(part) > 1:
                    self._note_failure(padded(part))
                    parts.append(part)
                    continue
                # That one alone is too long says nothing about batches.
                tokens = part[0].length
                _log.warning("there is not enough memory for one sequence", extra=fields(tokens=tokens))
                error: InferenceError = OutOfMemoryError(f"an input of {tokens} tokens needs more memory than there is")
                outcomes: list[Outcome] = [(part[0].request, error)]
            except Exception:  # noqa: BLE001 - its requests get a problem document, the others go on
                _log.exception("inference failed")
                error = InferenceError("the model failed on this batch")
                outcomes = [(request, error) for request in {entry.request for entry in part}]
            else:
                outcomes = self._kept(part, logits, started)
                # Else they stay until the next part has its own.
                del logits
                with self._changed:
                    self._budget.fitted(padded(part))
            settle(outcomes)
            del outcomes

    def _note_failure(self, tokens: int) -> None:
        """There was no memory for a batch of so many tokens: the next ones are smaller."""
        with self._changed:
            self._budget.failed(tokens)
            budget = self._budget.tokens
        self._telemetry.split()
        _log.warning("a batch is divided: there is not enough memory for it", extra=fields(batch_tokens=budget))

    def _kept(self, part: list[Entry], logits: Logits, started: float) -> list[Outcome]:
        """What came of the requests that this was the last of."""
        seconds = time.monotonic() - started
        kept = []
        for row, entry in enumerate(part):
            own = logits[row, : entry.length] if logits.ndim == 3 else logits[row]
            kept.append(self._keep(entry, own, started, seconds))
        return [outcome for outcome in kept if outcome is not None]

    def _measure(self, tokens: int, seconds: float) -> None:
        """Note how fast a long queue drains, other models' turns included.

        For batches that are small because little waits it says nothing.
        """
        rate = self._parallel * tokens / max(seconds, 1e-6)
        weight = _RATE_WEIGHT if self._tokens_per_second else 1.0
        self._tokens_per_second += (rate - self._tokens_per_second) * weight

    def _keep(self, entry: Entry, logits: Logits, started: float, seconds: float) -> Outcome | None:
        """Note what the answer needs of one sequence; only its own request fails with it. What comes of the request, if
        this was its last."""
        request = entry.request
        if request.future.done():
            return None
        try:
            request.kept[entry.index] = entry.piece.keep(logits)
        except Exception:  # noqa: BLE001 - the request gets a problem document, the others of the batch go on
            _log.exception("an output of the model can't be used")
            return request, InferenceError("the model gave no usable answer for an input")
        with self._changed:
            request.missing -= 1
            complete = request.missing == 0
        return (request, Answer(request.kept, started - request.arrived, seconds)) if complete else None

    def _wait(self) -> bool:
        """Wait for work; False when closing."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            return not self._closing

    def _take(self, number: int) -> list[Entry]:
        """Take the next batch off the queue; an empty one when another thread was faster, or when closing.

        What waits is shared with the other threads that are free: two halves at once are done before a whole.
        """
        with self._changed:
            if self._closing or not self._queue:
                return []
            free = self._parallel - len(self._running)
            self._running[number] = time.monotonic()
            chosen = plan_batch(self._queue, min(self._budget.tokens, math.ceil(self._queued_tokens / free)))
            batch = [self._queue[index] for index in chosen]
            taken = set(chosen)
            self._queue = [entry for index, entry in enumerate(self._queue) if index not in taken]
            self._queue_changed(-sum(entry.length for entry in batch))
            return batch

    def _infer(self, batch: list[Entry]) -> Logits:
        """Logits of a batch, padded to its longest sequence."""
        longest = max(entry.length for entry in batch)
        ids_BL = np.full((len(batch), longest), self._pad, np.int64)  # noqa: N806 - B batch, L length
        mask_BL = np.zeros((len(batch), longest), np.int64)  # noqa: N806
        pairs = any(entry.piece.second is not None for entry in batch)
        segments_BL = np.zeros((len(batch), longest), np.int64) if pairs else None  # noqa: N806
        for row, entry in enumerate(batch):
            ids_BL[row, : entry.length] = entry.piece.ids
            mask_BL[row, : entry.length] = 1
            if segments_BL is not None and entry.piece.second is not None:
                segments_BL[row, entry.piece.second : entry.length] = 1
        logits = self._backend.infer(ids_BL, mask_BL, segments_BL)
        self._telemetry.batch((entry.length for entry in batch), ids_BL.size)
        return logits
