"""The HTTP routes."""

import asyncio
import json
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse
from starlette.types import Receive, Send

from cloze_api.precision import Precision
from cloze_api.task import Task
from cloze_server import paths
from cloze_server.exchange import ClientLeftError, Endpoint, Exchange
from cloze_server.hosting import Hosted, Refusal, Room
from cloze_server.lifecycle import Lifecycle, Stage, State
from cloze_server.problems import ProblemError, ProblemType, checked
from cloze_server.providers import Provider
from cloze_server.settings import Settings
from cloze_server.tasks import HANDLERS
from cloze_server.tasks.embed import dimensions
from cloze_server.tasks.handler import AnyHandler, TaskRequest

# Before it, nobody looks whether a client has left.
_WATCH_SECONDS = 0.02


class RequestLimits(BaseModel):
    """What one request may have."""

    body_bytes: int
    inputs: int
    characters: int
    """Of one input."""
    tokens: int
    """Over all inputs, with what windows share."""
    seconds: float
    """From its arrival to its reply."""


class ModelDescription(BaseModel):
    """A loaded model."""

    name: str
    version: str
    digest: str
    task: Task
    architecture: str
    precision: Precision
    labels: list[str]
    max_length: int
    provider: Provider
    """Where it runs."""
    route: str
    dimensions: list[int] | None = Field(default=None, exclude_if=lambda dimensions: dimensions is None)
    """Of vectors, as many as a request may ask for; the last is what it gets unasked. Of embedding models alone."""
    mask: str | None = None
    """What stands for a blank in a text; of fill-mask models."""
    limits: RequestLimits | None = Field(default=None, exclude_if=lambda limits: limits is None)
    """Of a model that has some of its own, in place of the process's."""
    refused: Refusal | None = Field(default=None, exclude_if=lambda refused: refused is None)
    """Another artifact that was to take this one's place and could not; absent when there was none."""
    revision: str | None = Field(default=None, exclude_if=lambda revision: revision is None)
    """Of the ModelDeployment; absent outside a cluster."""


class Health(BaseModel):
    """`alive`, or why the process must be started anew."""

    status: str


class Status(BaseModel):
    """The server's state; before it is ready, what it does, and what is in the way."""

    state: State
    stage: Stage | None = None
    reason: str = ""
    """CamelCase, such as `RegistryUnavailable`; empty while nothing is in the way."""
    message: str = ""


class LoadedDigest(BaseModel):
    """A loaded model, exactly."""

    name: str
    version: str
    digest: str


class Readiness(Status):
    """The state, and the models that answer already, for who operates the server and has no key."""

    models: list[LoadedDigest]


class Models(Status):
    """What is loaded: those that answer already; all of them once the server is ready."""

    limits: RequestLimits
    models: list[ModelDescription]


def _status(lifecycle: Lifecycle) -> Status:
    """The state for probes and people."""
    if lifecycle.state in (State.READY, State.DRAINING):
        return Status(state=lifecycle.state)
    progress = lifecycle.progress
    return Status(state=lifecycle.state, stage=progress.stage, reason=progress.reason, message=progress.message)


def build_router(room: Room, settings: Settings) -> APIRouter:
    """All routes, bound to one process's state."""
    router = APIRouter()

    for path, handler in HANDLERS.items():
        router.add_api_route(
            path,
            _described(handler),
            methods=["POST"],
            name=path.rpartition("/")[2],
            description=handler.__doc__,
            response_model=handler.reply,
        )

    @router.get(paths.MODELS)
    async def models() -> Models:
        """What is loaded, and what a request may have."""
        loaded = [
            ModelDescription(
                name=model.name,
                version=model.version,
                digest=model.digest,
                task=model.task,
                architecture=model.architecture,
                precision=model.precision,
                labels=model.labels,
                max_length=model.max_length,
                route=paths.TASK_PATHS[model.task],
                dimensions=dimensions(model.embedding) if model.embedding else None,
                provider=model.provider,
                mask=hosted.service.handler.prefix.strip() or None,
                limits=None if (own := settings.of(model)) == settings else _limits(own),
                refused=hosted.refused,
                revision=settings.revision or None,
            )
            for hosted, model in ((hosted, hosted.service.model) for hosted in room.hosted)
        ]
        return Models(**dict(_status(room.lifecycle)), limits=_limits(settings), models=loaded)

    @router.get(paths.HEALTH, response_model=Health, responses={503: {"model": Health}})
    async def healthz() -> Response:
        """200 while the process can do its work; 503 when only a restart helps, as with a model that hangs."""
        failure = room.failure()
        return JSONResponse({"status": failure or "alive"}, 503 if failure else 200)

    @router.get(paths.READY, response_model=Readiness, responses={503: {"model": Readiness}})
    async def readyz() -> Response:
        """200 once all models are verified, loaded and warmed up, until the process is asked to end; else 503."""
        models = [hosted.service.model for hosted in room.hosted]
        loaded = [LoadedDigest(name=each.name, version=each.version, digest=each.digest) for each in models]
        status = Readiness(**dict(_status(room.lifecycle)), models=loaded)
        return JSONResponse(status.model_dump(mode="json"), 200 if status.state is State.READY else 503)

    @router.get(paths.METRICS, include_in_schema=False)
    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        # With several models it takes as long as many requests, which must not wait for it.
        text = await asyncio.to_thread(encode, room.instruments.registry)
        return Response(text, media_type=content_type)

    return router


def _limits(settings: Settings) -> RequestLimits:
    return RequestLimits(
        body_bytes=settings.max_body_bytes,
        inputs=settings.max_inputs,
        characters=settings.max_characters,
        tokens=settings.max_queue_tokens,
        seconds=settings.timeout_seconds,
    )


def _described(handler: type[AnyHandler]) -> Callable[..., Awaitable[Response]]:
    """A function from which the framework describes a task's route; `build_endpoints` answers there."""

    async def described(body: TaskRequest) -> Response:
        raise NotImplementedError

    described.__annotations__["body"] = handler.request
    return described


def build_endpoints(room: Room) -> dict[str, Endpoint]:
    """What answers the tasks' requests, by path."""
    return {path: _endpoint(room, handler) for path, handler in HANDLERS.items()}


def _endpoint(room: Room, handler: type[AnyHandler]) -> Endpoint:
    async def endpoint(
        exchange: Exchange, headers: dict[bytes, bytes], body: bytes, receive: Receive, send: Send
    ) -> None:
        request = _read(handler, body)
        hosted = room.select(handler.task, _wanted(request, headers))
        reply = await answer(room, hosted, request, exchange, receive)
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(reply)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": reply})

    return endpoint


def _read(handler: type[AnyHandler], body: bytes) -> TaskRequest:
    """A task's request. Raises ProblemError."""
    try:
        # Not by pydantic, which takes what isn't text in a text (a lone surrogate) for what isn't JSON.
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProblemError(ProblemType.BODY_INVALID, "the body can't be parsed as JSON") from error
    return checked(handler.request, content, "body")


def _wanted(request: TaskRequest, headers: dict[bytes, bytes]) -> str | None:
    """The model that a request names. Raises ProblemError when it names two."""
    header = headers.get(b"x-cloze-model")
    named = None if header is None else header.decode("latin-1")
    if request.model is not None and named not in (None, request.model):
        message = "the header x-cloze-model and the field model name different models: send one of them"
        raise ProblemError(ProblemType.INPUT_INVALID, message)
    return request.model if request.model is not None else named


async def answer(room: Room, hosted: Hosted, request: TaskRequest, exchange: Exchange, receive: Receive) -> bytes:
    """The reply as JSON, unless the client leaves first. Raises ProblemError and ClientLeftError."""
    exchange.belongs_to(hosted)
    if request.timeout_ms is not None:
        exchange.shorten(request.timeout_ms)
    exchange.timing.until = exchange.arrived + exchange.limit
    fallback = room.fallback(hosted)
    if fallback is None:
        with _Watch(receive):
            return await hosted.service.answer(request, exchange.timing, exchange.tenant)
    # Another artifact may take its place meanwhile; it is freed only when nobody needs it any more.
    fallback.enter()
    try:
        with _Watch(receive):
            return await hosted.service.answer(request, exchange.timing, exchange.tenant, fallback.service)
    finally:
        fallback.leave()


class _Watch:
    """Cancels the task that enters it when the client leaves, which is then a ClientLeftError.

    It looks after a moment only: most answers are there by then, and a task for each would cost more than those of a
    small model.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._left = False
        self._looking: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._begin = asyncio.get_running_loop().call_later(_WATCH_SECONDS, self._look)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._begin.cancel()
        if self._looking is not None:
            self._looking.cancel()
        if self._left and kind is asyncio.CancelledError:
            assert self._task is not None
            self._task.uncancel()
            raise ClientLeftError

    def _look(self) -> None:
        self._looking = asyncio.create_task(self._await_leaving())

    async def _await_leaving(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        assert self._task is not None
        self._task.cancel()
