"""Labels and outcomes of former requests, handed on to whoever keeps them.

A request is answered as soon as its feedback is in a bounded queue; a task of its own sends what waits to the address,
in order, and tries again while that doesn't answer. What can't be kept or delivered is counted, never silent.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Protocol, Self

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import JSONResponse

from cloze_server import paths
from cloze_server.exchange import Exchange
from cloze_server.logs import fields
from cloze_server.problems import ProblemError, ProblemType
from cloze_server.segments import Metadata, Segments
from cloze_server.tasks.handler import Strict

_log = logging.getLogger(__name__)

QUEUE_MAX = 10_000
"""Feedback that waits to be sent."""
QUEUE_BYTES = 16 << 20
"""Their bytes, with those that are on their way."""
REMEMBERED_MAX = 100_000
"""Feedback that a repetition is recognised of."""

_BATCH_MAX = 100
_BATCH_BYTES = 1 << 20
_TRIES_MAX = 6
_BACKOFF_FIRST_SECONDS = 0.5
_TIMEOUT_SECONDS = 10.0
_FAREWELL_SECONDS = 5.0

Label = Annotated[str, Field(min_length=1, max_length=256)]


class Entity(Strict):
    """A stretch of the input, in characters, and what it is."""

    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=1)]
    label: Label

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.end <= self.start:
            raise ValueError("end comes behind start")
        return self


class Outcome(Strict):
    """What became of it, as a number or a word: `{"name": "refunded", "value": true}`."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,63}$")]
    value: bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | float | Annotated[str, Field(max_length=256)]


class FeedbackRequest(Strict):
    """What is known by now of a former request: exactly one of `label`, `labels`, `entities` and `outcome`."""

    request_id: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,128}$", examples=["5f0c7c1e"])]
    """The `x-request-id` of the reply that this is about."""
    key: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,128}$")] | None = None
    """Tells this from other feedback on the same request; when absent, its kind, and the name of an outcome."""
    label: Label | None = Field(default=None, examples=["spam"])
    """The right label of the request's only text."""
    labels: Annotated[list[Label], Field(min_length=1, max_length=8192)] | None = None
    """The right labels: one for each text or word, in their order."""
    entities: Annotated[list[Entity], Field(max_length=8192)] | None = None
    """The right entities of the request's only text."""
    outcome: Outcome | None = None
    metadata: Metadata | None = None
    """What the request said of itself, of the same keys and values; handed on."""
    correction: bool = False
    """Whether this replaces what was said before under the same request and key."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(each is not None for each in (self.label, self.labels, self.entities, self.outcome)) != 1:
            raise ValueError("give exactly one of label, labels, entities and outcome")
        return self

    def what(self) -> str:
        """The key, or what stands for it."""
        if self.key is not None:
            return self.key
        if self.outcome is not None:
            return f"outcome/{self.outcome.name}"
        return next(name for name in ("label", "labels", "entities") if getattr(self, name) is not None)


class FeedbackReply(BaseModel):
    """The feedback is taken. `id` is the same for every repetition."""

    id: str
    repeated: bool
    """Whether just this was taken before, and is not sent again."""


class SinkError(Exception):
    """The sink didn't take it. final: and won't take it either when asked again."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.final = final


class Sink(Protocol):
    """Who keeps feedback."""

    async def send(self, document: bytes) -> None:
        """Deliver a JSON document. Raises SinkError."""
        ...

    async def close(self) -> None:
        """Let connections go."""
        ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What is to be sent. content: a digest of what was said."""

    number: str
    content: bytes
    document: bytes


class Forwarder:
    """The queue, and the task that empties it. Belongs to one event loop."""

    def __init__(
        self, sink: Sink, count: Callable[[str, int], None], wait: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """count: told what became of how many, as one of `metrics.FEEDBACK_RESULTS`. wait: for so many seconds."""
        self._sink = sink
        self._count = count
        self._wait = wait
        self._queue: deque[_Waiting] = deque()
        self._bytes = 0
        self._filled, self._emptied = asyncio.Event(), asyncio.Event()
        self._emptied.set()
        self._taken: OrderedDict[str, bytes] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Send what waits in a few seconds, or count it as dropped."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self._emptied.wait()
        except TimeoutError:
            _log.warning("feedback was not sent before the end", extra=fields(count=len(self._queue)))
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._queue:
            self._count("dropped", len(self._queue))
        await self._sink.close()

    def take(self, feedback: FeedbackRequest, tenant: str) -> FeedbackReply:
        """Queue it, unless just this is known already. tenant: the name of the API key.

        Raises ProblemError when something else is known and this is no correction, or when there is no room.
        """
        identity = json.dumps([tenant, feedback.request_id, feedback.what()])
        number = hashlib.sha256(identity.encode()).hexdigest()[:32]
        said = feedback.model_dump(mode="json", exclude_none=True, exclude={"correction", "key"})
        content = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()
        known = self._taken.get(number)
        if known == content:
            self._count("repeated", 1)
            return FeedbackReply(id=number, repeated=True)
        if known is not None and not feedback.correction:
            message = "something else was said of this request before: send correction: true to replace it"
            raise ProblemError(ProblemType.FEEDBACK_CONFLICT, message)
        received = datetime.now(UTC).isoformat(timespec="milliseconds")
        facts = {"id": number, "received": received, "tenant": tenant, "correction": feedback.correction}
        document = json.dumps(facts | said, ensure_ascii=False).encode()
        if len(self._queue) >= QUEUE_MAX or self._bytes + len(document) > QUEUE_BYTES:
            self._count("dropped", 1)
            message = f"{len(self._queue)} are waiting to be sent, of {self._bytes} bytes: try again later"
            raise ProblemError(ProblemType.QUEUE_FULL, message, retry_after_seconds=5)
        self._taken[number] = content
        if len(self._taken) > REMEMBERED_MAX:
            self._taken.popitem(last=False)
        self._queue.append(_Waiting(number, content, document))
        self._bytes += len(document)
        self._filled.set()
        self._emptied.clear()
        return FeedbackReply(id=number, repeated=False)

    async def _work(self) -> None:
        while True:
            await self._filled.wait()
            batch = self._next()
            document = b'{"feedback": [%s]}' % b", ".join(each.document for each in batch)
            delivered = await self._deliver(document)
            self._count("sent" if delivered else "dropped", len(batch))
            for each in batch:
                self._queue.popleft()
                self._bytes -= len(each.document)
                # Whoever says it again is no repetition then.
                if not delivered and self._taken.get(each.number) == each.content:
                    del self._taken[each.number]
            if not self._queue:
                self._filled.clear()
                self._emptied.set()

    def _next(self) -> list[_Waiting]:
        """The oldest, at least one."""
        batch: list[_Waiting] = []
        size = 0
        for each in islice(self._queue, _BATCH_MAX):
            size += len(each.document)
            if batch and size > _BATCH_BYTES:
                break
            batch.append(each)
        return batch

    async def _deliver(self, document: bytes) -> bool:
        """Send a batch, again and again for a while. Whether it arrived."""
        for attempt in range(1, _TRIES_MAX + 1):
            try:
                await self._sink.send(document)
            except SinkError as error:
                given_up = error.final or attempt == _TRIES_MAX
                event = "feedback was dropped" if given_up else "feedback can't be sent: will try again"
                _log.warning(event, extra=fields(reason=str(error), attempt=attempt))
                if given_up:
                    return False
                await self._wait(_BACKOFF_FIRST_SECONDS * 2.0 ** (attempt - 1))
            else:
                return True
        return False


class HttpSink:
    """POSTs to an address, with a bearer token that is read anew each time, so that it may be replaced."""

    def __init__(self, url: str, token_file: Path | None) -> None:
        import httpx  # noqa: PLC0415 - most servers have no sink

        self._url = url
        self._token_file = token_file
        self._client = httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, follow_redirects=False)
        self._failure: type[Exception] = httpx.HTTPError

    async def send(self, document: bytes) -> None:
        """Deliver a JSON document. Raises SinkError, which names neither address nor token."""
        headers = {"content-type": "application/json"}
        try:
            if self._token_file is not None:
                token = (await asyncio.to_thread(self._token_file.read_text, "ascii")).strip()
                headers["authorization"] = f"Bearer {token}"
            response = await self._client.post(self._url, content=document, headers=headers)
        except (OSError, UnicodeDecodeError, self._failure) as error:
            raise SinkError(type(error).__name__, final=False) from error
        if not response.is_success:
            # A token may be on its way to be replaced.
            again = response.status_code in (401, 403, 408, 425, 429) or response.is_server_error
            raise SinkError(f"status {response.status_code}", final=not again)

    async def close(self) -> None:
        """Let connections go."""
        await self._client.aclose()


def build_router(forwarder: Forwarder | None, segments: Segments) -> APIRouter:
    """The route. forwarder: None where nobody keeps feedback. segments: what metadata may have."""
    router = APIRouter()

    @router.post(paths.FEEDBACK, status_code=202, response_model=FeedbackReply)
    async def feedback(body: FeedbackRequest, request: Request) -> Response:
        """What is known by now of a former request: its right label, or what became of it."""
        if forwarder is None:
            message = "this server hands no feedback on: it needs --feedback-url"
            raise ProblemError(ProblemType.FEEDBACK_UNAVAILABLE, message)
        segments.of(body.metadata)
        exchange: Exchange = request.state.exchange
        return JSONResponse(forwarder.take(body, exchange.tenant).model_dump(), 202)

    return router
