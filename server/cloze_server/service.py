"""One request's way: limits, tokens, truncation, queue, model, answer."""

import itertools
import logging
import math
import time
from array import array
from asyncio import sleep
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from cloze_server.backend import InferenceError, OutOfMemoryError
from cloze_server.budget import default_tokens, logits_bound
from cloze_server.engine import Engine, QueueFullError
from cloze_server.exits import ExitCode, FatalError
from cloze_server.faults import Faults
from cloze_server.limits import Limits
from cloze_server.logs import fields
from cloze_server.model import LoadedModel, identity, memory_too_small
from cloze_server.pieces import Piece
from cloze_server.problems import ProblemError, ProblemType
from cloze_server.providers import ON_DEVICE
from cloze_server.replies import Reply, ReplyCache, Tally, key_of
from cloze_server.segments import Segment, Segments, declared
from cloze_server.settings import Settings
from cloze_server.tasks import HANDLERS
from cloze_server.tasks.handler import AnyHandler, InputResult, Item, TaskRequest
from cloze_server.telemetry import Telemetry
from cloze_server.timing import Timing
from cloze_server.tokenization import Encoded, Inputs, Result, TokenizerPool, is_short
from cloze_server.turns import Turns

_log = logging.getLogger(__name__)

_TOKENIZER_THREADS_MAX = 4
_CHARACTERS_PER_QUEUE_TOKEN = 16
_WARM_UP_LENGTHS = (8, 32, 128, 512)
_FULL_BATCH_LENGTH = 64
# So many are written in about a tenth of a millisecond.
_FEW_PREDICTIONS = 256
# What doesn't change the answer.
_NOT_ASKED = {"model", "timeout_ms", "metadata", "user"}
# By then every request that a batch could belong to has got its timeout long ago.
_HANGING_TIMEOUTS = 3


@dataclass(frozen=True, slots=True)
class _Made:
    """One model's results for a request. longest: tokens of the longest input. tally: what was counted."""

    results: list[InputResult]
    longest: int
    tally: Tally


def _abstains(handler: AnyHandler, result: InputResult) -> bool:
    return any(each.abstained for each in handler.predictions(result))


class Service:
    """A loaded model behind its tokenizers and its queue."""

    def __init__(
        self,
        model: LoadedModel,
        settings: Settings,
        telemetry: Telemetry,
        replies: ReplyCache | None = None,
        turns: Turns | None = None,
    ) -> None:
        """replies: kept ones, of all models; None: every request is work. turns: of all models; None: there is one."""
        self.model = model
        self._replies = replies
        handlers = [handler(model) for handler in HANDLERS.values() if handler.task is model.task]
        self.handler: AnyHandler = handlers[0]
        self._handlers = {handler.request: handler for handler in handlers}
        self._settings = settings
        self._limits = Limits(
            inputs=settings.max_inputs,
            characters=settings.max_characters,
            tokens=settings.max_queue_tokens,
            length=model.max_length,
        )
        self._segments = Segments(declared(settings.metadata))
        # An echo model's, once it has warmed up: they are for clients.
        self._faults: Faults | None = None
        self._numbers = itertools.count()
        self._telemetry = telemetry
        self._tokenizers = TokenizerPool(
            model.tokenizer,
            in_text=self.handler.special_in_text,
            threads=min(settings.threads, _TOKENIZER_THREADS_MAX),
        )
        bound = min(settings.max_batch_tokens or math.inf, logits_bound(model.task, len(model.vocabulary)))
        usual = default_tokens(settings.batch_threads, device=model.provider in ON_DEVICE)
        self._budget = int(min(bound, settings.max_batch_tokens or min(usual, settings.max_queue_tokens)))
        if model.max_length > bound:
            # It runs alone then; what the bound promises about memory doesn't hold for it.
            _log.warning(
                "the longest input exceeds a batch",
                extra=fields(max_length=model.max_length, batch_tokens=bound),
            )
        self._engine = Engine(
            model.backend,
            telemetry,
            pad=model.special_tokens.pad,
            max_batch_tokens=self._budget,
            max_queue_tokens=settings.max_queue_tokens,
            max_wait_seconds=settings.max_wait_seconds,
            parallel=settings.parallel_batches,
            turns=turns,
        )

    async def warm_up(self) -> None:
        """Answer a request of each length and one full batch, so that no client pays for memory and threads.

        Raises FatalError: ARTIFACT_INVALID when the model fails, CONFIGURATION when there is not enough memory.
        """
        settings = self._settings
        # A request that the bounds refuse warms nothing.
        longest = min(self.model.max_length, settings.max_queue_tokens, settings.max_characters // 4)
        lengths = sorted({min(length, longest) for length in (*_WARM_UP_LENGTHS, longest)})
        requests = [[length] for length in lengths]
        length = min(_FULL_BATCH_LENGTH, longest)
        inputs = min(self._budget, settings.max_queue_tokens) // max(length, 1)
        requests.append([length] * max(1, min(inputs, settings.max_inputs)))
        with self._telemetry.muted():
            for each in requests:
                try:
                    await self._make(self.handler.sample(each), Timing())
                except ProblemError as problem:
                    if problem.kind is ProblemType.OUT_OF_MEMORY:
                        raise memory_too_small(each[0]) from problem
                    if problem.kind is not ProblemType.INTERNAL:
                        _log.warning("warm-up skipped", extra=fields(detail=problem.detail))
                        continue
                    message = f"the model fails on {len(each)} sequences of {each[0]} tokens: {problem.detail}"
                    raise FatalError(ExitCode.ARTIFACT_INVALID, "GraphInvalid", message) from problem
        self._faults = self.model.faults

    def failure(self) -> str | None:
        """Why the process can't answer any more and must be started anew; None while it can."""
        return self._engine.failure(_HANGING_TIMEOUTS * self._settings.timeout_seconds)

    async def run(self, work: Callable[[], Result]) -> Result:
        """Do other short work for a request off the event loop."""
        return await self._tokenizers.run(work)

    def close(self) -> None:
        """Stop the threads; call when no request is left."""
        self._engine.close()
        self._tokenizers.close()

    async def answer(
        self,
        request: TaskRequest,
        timing: Timing | None = None,
        tenant: str = "",
        fallback: "Service | None" = None,
    ) -> bytes:
        """The reply as JSON. Raises ProblemError. Cancelling withdraws the request from the queue.

        timing: told what is known as soon as it is. tenant: the name of the API key; what one has asked, another can't
        tell from how fast an answer comes. fallback: answers the inputs that this model abstains on.
        """
        timing = timing or Timing()
        timing.segments = self._segments.of(request.metadata)
        if self._replies is None:
            return (await self._make(request, timing, fallback)).body
        # A text that isn't one has no key.
        self._check_size(request)
        asked = request.model_dump_json(exclude=_NOT_ASKED)
        models = [self.model, *([fallback.model] if fallback else [])]
        named = [part for model in models for part in (model.name, model.version, model.digest, model.precision)]
        key = key_of(tenant, *named, type(request).__name__, asked)
        timing.cached = "miss"
        # Who joins may have more time than the first: all that bounds the wait for them is what bounds everybody's.
        timing.until = math.inf
        reply, timing.cached = await self._replies.get(key, lambda: self._make(request, timing, fallback))
        timing.longest = reply.longest
        self._telemetry.cached(timing.cached)
        if timing.cached != "miss":
            await self._tokenizers.run(lambda: self._count_again(reply, timing.segments, fallback))
        return reply.body

    async def _make(self, request: TaskRequest, timing: Timing, fallback: "Service | None" = None) -> Reply:
        """The model's reply, which is counted. Raises ProblemError."""
        try:
            return await self._answer(request, timing, fallback)
        except QueueFullError as error:
            raise ProblemError(
                ProblemType.QUEUE_FULL, str(error), retry_after_seconds=error.retry_after_seconds
            ) from error
        except OutOfMemoryError as error:
            message = f"{error}: send a shorter one, or ask for a server with more"
            raise ProblemError(ProblemType.OUT_OF_MEMORY, message) from error
        except InferenceError as error:
            raise ProblemError(ProblemType.INTERNAL, str(error)) from error

    def _check_size(self, request: TaskRequest) -> Inputs:
        """The texts. Raises ProblemError for more than one request may have."""
        handler = self._handlers[type(request)]
        inputs = handler.inputs(request)
        self._limits.check_size(inputs, handler.texts_per_input)
        return inputs

    async def _answer(self, request: TaskRequest, timing: Timing, fallback: "Service | None") -> Reply:
        handler = self._handlers[type(request)]
        if fallback is None:
            return await self._infer(request, timing, partial(self._reply, handler, request))
        first = await self._infer(request, timing, lambda made: made)
        unsure = [place for place, result in enumerate(first.results) if _abstains(handler, result)]
        second = await fallback.stand_in(handler.narrowed(request, unsure), timing) if unsure else None
        return await self._tokenizers.run(lambda: self._merge(request, first, unsure, second, fallback))

    async def stand_in(self, request: TaskRequest, timing: Timing) -> _Made | None:
        """The answers to what another model abstained on; None where that can't be had, so that the other's stay."""
        try:
            return await self._infer(request, timing, lambda made: made)
        except (QueueFullError, InferenceError, ProblemError) as error:
            reason = error.kind if isinstance(error, ProblemError) else type(error).__name__
            # Counted as well; under overload it would be a line for each request.
            _log.debug("a fallback can't answer", extra=fields(reason=reason))
            return None

    async def _infer(self, request: TaskRequest, timing: Timing, then: Callable[[_Made], Result]) -> Result:
        """What `then` makes of the results, which are counted; off the event loop unless the texts are short."""
        handler = self._handlers[type(request)]
        inputs = self._check_size(request)
        # Before work is spent on tokens that couldn't wait anyway.
        self._engine.refuse_when_full(1, timing.until)
        waiting = self._tokenizers.pending_characters
        if waiting > (most := self._engine.max_queue_tokens * _CHARACTERS_PER_QUEUE_TOKEN):
            raise QueueFullError(f"{waiting} characters wait to be tokenized, at most {most} may", 1)

        started = time.monotonic()
        items = await self._tokenizers.encode(
            inputs, offsets=handler.needs_offsets, then=lambda encoded: self._prepare(handler, request, encoded)
        )
        self._stage(timing, "tokenize", started, time.monotonic() - started)
        timing.longest = max(timing.longest or 0, *(item.tokens for item in items))
        if self._faults is not None:
            await self._disturb(self._faults)

        started = time.monotonic()
        answer = await self._engine.submit(
            [
                Piece(
                    item.ids(window),
                    partial(handler.keep, request, item, window),
                    len(item.lead) if item.paired else None,
                )
                for item in items
                for window in item.windows
            ],
            timing.until,
        )
        self._stage(timing, "queue", started, answer.queue_seconds)
        self._stage(timing, "infer", started + answer.queue_seconds, answer.infer_seconds)

        started = time.monotonic()

        def work() -> Result:
            return then(self._results(handler, request, items, answer.kept, timing.segments))

        short = is_short(inputs) and handler.most(request, items) <= _FEW_PREDICTIONS
        result = work() if short else await self._tokenizers.run(work)
        self._stage(timing, "post", started, time.monotonic() - started)
        return result

    def _stage(self, timing: Timing, name: str, began: float, seconds: float) -> None:
        timing.stage(name, began, seconds)
        self._telemetry.stage(name, seconds)

    async def _disturb(self, faults: Faults) -> None:
        """Hold a request up, and fail it, as its echo model was made to. Raises InferenceError."""
        fails = faults.fails(next(self._numbers))
        await sleep(faults.delay_seconds)
        if fails:
            raise InferenceError("the echo model was made to fail this request")

    def _prepare(self, handler: AnyHandler, request: TaskRequest, encoded: list[Encoded]) -> list[Item]:
        """What the model reads, and where it answers. Not for the event loop unless the texts are short."""
        items = []
        for whole in handler.items(request, encoded):
            item = self._limits.cut(whole, request.truncate, request.stride)
            items.append(item.answering(handler.positions(request, item)))
        self._limits.check_tokens(sum(item.tokens for item in items))
        handler.check(request, items)
        return items

    def _results(
        self,
        handler: AnyHandler,
        request: TaskRequest,
        items: list[Item],
        kept: list[Any],
        segments: Sequence[Segment],
    ) -> _Made:
        """The results, whose predictions are counted. Not for the event loop unless the texts are short."""
        remaining = iter(kept)
        results = [handler.result(request, item, list(islice(remaining, len(item.windows)))) for item in items]
        predictions = [each for result in results for each in handler.predictions(result)]
        unknown = self.model.special_tokens.unk
        tally = Tally(
            unknown=0 if unknown is None else sum(item.count(unknown) for item in items),
            truncated=sum(item.truncated for item in items),
            labels=Counter(each.label for each in predictions if each.label is not None),
            confidences=array("d", (each.confidence for each in predictions)),
            abstained=sum(each.abstained for each in predictions),
        )
        self._count(tally, segments)
        return _Made(results, max(item.tokens for item in items), tally)

    def _reply(self, handler: AnyHandler, request: TaskRequest, made: _Made) -> Reply:
        """The reply. Not for the event loop: it may be a megabyte of JSON."""
        results = made.results
        facts = {
            "model": self.model.name,
            "version": self.model.version,
            "digest": self.model.digest,
            "tokens": sum(result.tokens for result in results),
            "truncated": sum(result.truncated for result in results),
            "windows": sum(result.windows for result in results),
        }
        reply = handler.compose(request, results, facts)
        return Reply(reply.model_dump_json().encode(), made.longest, made.tally)

    def _merge(
        self, request: TaskRequest, first: _Made, unsure: list[int], second: _Made | None, fallback: "Service"
    ) -> Reply:
        """The reply of both models. unsure: places of the inputs that the second has results for."""
        handler = self._handlers[type(request)]
        own, others = {"model": identity(self.model)}, {"model": identity(fallback.model), "fallback": True}
        results = [result.model_copy(update=own) for result in first.results]
        did: Counter[str] = Counter()
        if second is None:
            did["failed"] = len(unsure)
        else:
            for place, result in zip(unsure, second.results, strict=True):
                results[place] = result.model_copy(update=others)
                did["abstained" if _abstains(handler, result) else "answered"] += 1
        self._telemetry.fell_back(did)
        longest = max(first.longest, second.longest if second else 0)
        reply = self._reply(handler, request, _Made(results, longest, first.tally))
        return replace(reply, fallback=second.tally if second else None, fallbacks=did)

    def _count_again(self, reply: Reply, segments: Sequence[Segment], fallback: "Service | None") -> None:
        """Count what was made for another request. Not for the event loop."""
        self._count(reply.tally, segments)
        self._telemetry.fell_back(reply.fallbacks)
        if fallback is not None and reply.fallback is not None:
            fallback._count(reply.fallback, segments)

    def _count(self, tally: Tally, segments: Sequence[Segment]) -> None:
        """Count an answer. Not for the event loop: a request may have a prediction for each of its tokens."""
        self._telemetry.answered(unknown=tally.unknown, truncated=tally.truncated)
        self._telemetry.predicted(tally.labels, tally.confidences, tally.abstained, segments)
