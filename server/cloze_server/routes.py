"""The HTTP routes."""

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse
from starlette.types import Receive

from cloze_api.task import Task
from cloze_server import paths
from cloze_server.hosting import Hosted, Room
from cloze_server.lifecycle import Lifecycle, Stage, State
from cloze_server.middleware import ClientLeftError, Exchange
from cloze_server.problems import PROBLEM_RESPONSES, ProblemError, ProblemType
from cloze_server.settings import Settings
from cloze_server.tasks import HANDLERS
from cloze_server.tasks.handler import AnyHandler, TaskRequest


class ModelDescription(BaseModel):
    """A loaded model."""

    name: str
    version: str
    digest: str
    task: Task
    architecture: str
    labels: list[str]
    max_length: int
    route: str
    mask: str | None = None
    """What stands for a blank in a text; of fill-mask models."""
    revision: str | None = Field(default=None, exclude_if=lambda revision: revision is None)
    """Of the ModelDeployment; absent outside a cluster."""


class Status(BaseModel):
    """The server's state; before it is ready, what it does, and what is in the way."""

    state: State
    stage: Stage | None = None
    reason: str = ""
    """CamelCase, such as `RegistryUnavailable`; empty while nothing is in the way."""
    message: str = ""


class Models(Status):
    """What is loaded: those that answer already; all of them once the server is ready."""

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
            _endpoint(room, handler),
            methods=["POST"],
            name=path.rpartition("/")[2],
            description=handler.__doc__,
            response_model=handler.reply,
            responses=PROBLEM_RESPONSES,
        )

    @router.get(paths.MODELS)
    async def models() -> Models:
        """What is loaded."""
        loaded = [
            ModelDescription(
                name=model.name,
                version=model.version,
                digest=model.digest,
                task=model.task,
                architecture=model.architecture,
                labels=model.labels,
                max_length=model.max_length,
                route=paths.TASK_PATHS[model.task],
                mask=hosted.service.handler.prefix.strip() or None,
                revision=settings.revision or None,
            )
            for hosted, model in ((hosted, hosted.service.model) for hosted in room.hosted)
        ]
        return Models(**dict(_status(room.lifecycle)), models=loaded)

    @router.get(paths.HEALTH)
    async def healthz() -> Response:
        """200 while the process can do its work; 503 when only a restart helps, as with a model that hangs."""
        failure = room.failure()
        return JSONResponse({"status": failure or "alive"}, 503 if failure else 200)

    @router.get(paths.READY)
    async def readyz() -> Response:
        """200 once all models are verified, loaded and warmed up, until the process is asked to end; else 503."""
        status = _status(room.lifecycle)
        return JSONResponse(status.model_dump(mode="json"), 200 if status.state is State.READY else 503)

    @router.get(paths.METRICS, include_in_schema=False)
    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(room.instruments.registry), media_type=content_type)

    return router


def _endpoint(room: Room, handler: type[AnyHandler]) -> Callable[..., Awaitable[Response]]:
    """The function that answers for one task."""

    async def endpoint(body: TaskRequest, request: Request) -> Response:
        hosted = room.select(handler.task, _wanted(body, request))
        return Response(await answer(room, hosted, body, request), media_type="application/json")

    # The framework reads there how to check the body.
    endpoint.__annotations__["body"] = handler.request
    return endpoint


def _wanted(body: TaskRequest, request: Request) -> str | None:
    """The model that a request names. Raises ProblemError when it names two."""
    header = request.headers.get("x-cloze-model")
    if body.model is not None and header not in (None, body.model):
        message = "the header x-cloze-model and the field model name different models: send one of them"
        raise ProblemError(ProblemType.INPUT_INVALID, message)
    return body.model if body.model is not None else header


async def answer(room: Room, hosted: Hosted, body: TaskRequest, request: Request) -> bytes:
    """The reply as JSON, unless the client leaves first. Raises ProblemError and ClientLeftError."""
    exchange: Exchange = request.state.exchange
    exchange.belongs_to(hosted)
    if body.timeout_ms is not None:
        exchange.shorten(body.timeout_ms)
    fallback = room.fallback(hosted)
    work = asyncio.create_task(
        hosted.service.answer(body, exchange.timing, exchange.tenant, fallback.service if fallback else None)
    )
    gone = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientLeftError
        return work.result()
    finally:
        work.cancel()
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
