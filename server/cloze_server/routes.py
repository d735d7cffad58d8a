"""The HTTP routes."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel
from starlette.responses import JSONResponse
from starlette.types import Receive

from cloze_api.task import Task
from cloze_server.lifecycle import Lifecycle, State
from cloze_server.middleware import ClientLeftError
from cloze_server.problems import Problem, ProblemError, ProblemType
from cloze_server.service import Service
from cloze_server.tasks import ROUTES
from cloze_server.tasks.classify import ClassifyReply, ClassifyRequest
from cloze_server.tasks.fill_mask import FillMaskReply, FillMaskRequest
from cloze_server.tasks.handler import TaskRequest
from cloze_server.tasks.token_classify import TokenClassifyReply, TokenClassifyRequest
from cloze_server.telemetry import Telemetry

MODELS_ROUTE = "/v1/models"
_LOADING_RETRY_SECONDS = 5

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": "A problem document (RFC 9457)"}
    for status in (400, 409, 413, 422, 429, 500, 503, 504)
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


class Models(BaseModel):
    """The server's state and what it has loaded: nothing while loading, then one model."""

    state: State
    models: list[ModelDescription]


class Room:
    """What the routes share: the process's state, and the service once there is one."""

    def __init__(self, lifecycle: Lifecycle, telemetry: Telemetry) -> None:
        self.lifecycle = lifecycle
        self.telemetry = telemetry
        self.service: Service | None = None

    def identity(self) -> tuple[str, str] | None:
        """Name and version of the loaded model."""
        return (self.service.model.name, self.service.model.version) if self.service else None

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
                f"this server has a {loaded} model and answers at {ROUTES[loaded]}",
                members={"loaded_task": loaded, "route": ROUTES[loaded]},
            )
        return self.service


def build_router(room: Room) -> APIRouter:
    """All routes, bound to one process's state."""
    router = APIRouter()

    @router.post(ROUTES[Task.FILL_MASK], response_model=FillMaskReply, responses=_PROBLEMS)
    async def fill_mask(body: FillMaskRequest, request: Request) -> Response:
        """The most likely tokens at each mask of each input."""
        return await _answer(room.service_for(Task.FILL_MASK), body, request)

    @router.post(ROUTES[Task.SEQUENCE_CLASSIFICATION], response_model=ClassifyReply, responses=_PROBLEMS)
    async def classify(body: ClassifyRequest, request: Request) -> Response:
        """Probabilities of labels for each input."""
        return await _answer(room.service_for(Task.SEQUENCE_CLASSIFICATION), body, request)

    @router.post(ROUTES[Task.TOKEN_CLASSIFICATION], response_model=TokenClassifyReply, responses=_PROBLEMS)
    async def token_classify(body: TokenClassifyRequest, request: Request) -> Response:
        """Labels of words, or the entities that they make up."""
        return await _answer(room.service_for(Task.TOKEN_CLASSIFICATION), body, request)

    @router.get(MODELS_ROUTE)
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
                    route=ROUTES[model.task],
                )
            )
        return Models(state=room.lifecycle.state, models=loaded)

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """200 while the process and its event loop live, whatever the model does."""
        return {"status": "alive"}

    @router.get("/readyz")
    async def readyz() -> Response:
        """200 once the model is verified, loaded and warmed up, until the process is asked to end; else 503."""
        state = room.lifecycle.state
        return JSONResponse({"state": state}, 200 if state is State.READY else 503)

    @router.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(room.telemetry.registry), media_type=content_type)

    return router


async def _answer(service: Service, body: TaskRequest, request: Request) -> Response:
    """Answer, or stop when the client leaves. Raises ProblemError and ClientLeftError."""
    work = asyncio.create_task(service.answer(body))
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
