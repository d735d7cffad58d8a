"""The HTTP routes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse
from starlette.types import Receive

from cloze_api.task import Task
from cloze_server import paths
from cloze_server.lifecycle import Lifecycle, Stage, State
from cloze_server.middleware import ClientLeftError, Exchange
from cloze_server.problems import TABLE, Problem, ProblemError, ProblemType
from cloze_server.service import Service
from cloze_server.tasks import HANDLERS
from cloze_server.tasks.handler import AnyHandler, TaskRequest
from cloze_server.telemetry import Telemetry

_LOADING_RETRY_SECONDS = 5

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    entry.status: {"model": Problem, "description": "A problem document (RFC 9457)"}
    for kind, entry in TABLE.items()
    if kind not in (ProblemType.NOT_FOUND, ProblemType.METHOD_NOT_ALLOWED)
}


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
    """What is loaded: nothing before the server is ready, then one model."""

    models: list[ModelDescription]


class Room:
    """What the routes share: the process's state, and the service once there is one."""

    def __init__(self, lifecycle: Lifecycle, telemetry: Telemetry, revision: str = "") -> None:
        self.lifecycle = lifecycle
        self.telemetry = telemetry
        self.revision = revision
        self.service: Service | None = None

    def identity(self) -> tuple[str, str] | None:
        """Name and version of the loaded model."""
        return (self.service.model.name, self.service.model.version) if self.service else None

    def status(self) -> Status:
        """The state for probes and people."""
        lifecycle = self.lifecycle
        if lifecycle.state in (State.READY, State.DRAINING):
            return Status(state=lifecycle.state)
        progress = lifecycle.progress
        return Status(state=lifecycle.state, stage=progress.stage, reason=progress.reason, message=progress.message)

    def service_for(self, task: Task) -> Service:
        """The service. Raises ProblemError while there is none, or when its model has another task."""
        if self.service is None:
            raise ProblemError(
                ProblemType.MODEL_LOADING,
                "the model is being fetched, verified or warmed up: /readyz says when it answers",
                retry_after_seconds=_LOADING_RETRY_SECONDS,
            )
        loaded = self.service.model.task
        if loaded is not task:
            raise ProblemError(
                ProblemType.TASK_MISMATCH,
                f"this server has a {loaded} model and answers at {paths.TASK_PATHS[loaded]}",
                members={"loaded_task": loaded, "route": paths.TASK_PATHS[loaded]},
            )
        return self.service


def build_router(room: Room) -> APIRouter:
    """All routes, bound to one process's state."""
    router = APIRouter()

    for task, handler in HANDLERS.items():
        router.add_api_route(
            paths.TASK_PATHS[task],
            _endpoint(room, handler),
            methods=["POST"],
            name=task.value,
            description=handler.__doc__,
            response_model=handler.reply,
            responses=_PROBLEMS,
        )

    @router.get(paths.MODELS)
    async def models() -> Models:
        """What is loaded."""
        loaded = []
        if room.service:
            model = room.service.model
            loaded.append(
                ModelDescription(
                    name=model.name,
                    version=model.version,
                    digest=model.digest,
                    task=model.task,
                    architecture=model.architecture,
                    labels=model.labels,
                    max_length=model.max_length,
                    route=paths.TASK_PATHS[model.task],
                    revision=room.revision or None,
                )
            )
        return Models(**dict(room.status()), models=loaded)

    @router.get(paths.HEALTH)
    async def healthz() -> Response:
        """200 while the process can do its work; 503 when only a restart helps, as with a model that hangs."""
        failure = room.service.failure() if room.service else None
        return JSONResponse({"status": failure or "alive"}, 503 if failure else 200)

    @router.get(paths.READY)
    async def readyz() -> Response:
        """200 once the model is verified, loaded and warmed up, until the process is asked to end; else 503."""
        status = room.status()
        return JSONResponse(status.model_dump(mode="json"), 200 if status.state is State.READY else 503)

    @router.get(paths.METRICS, include_in_schema=False)
    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(room.telemetry.registry), media_type=content_type)

    return router


def _endpoint(room: Room, handler: type[AnyHandler]) -> Callable[..., Awaitable[Response]]:
    """The function that answers for one task."""

    async def endpoint(body: TaskRequest, request: Request) -> Response:
        return await _answer(room.service_for(handler.task), body, request)

    # The framework reads there how to check the body.
    endpoint.__annotations__["body"] = handler.request
    return endpoint


async def _answer(service: Service, body: TaskRequest, request: Request) -> Response:
    """Answer, or stop when the client leaves. Raises ProblemError and ClientLeftError."""
    exchange: Exchange = request.state.exchange
    work = asyncio.create_task(service.answer(body, exchange.measured))
    gone = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientLeftError
        return Response(work.result(), media_type="application/json")
    finally:
        work.cancel()
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
