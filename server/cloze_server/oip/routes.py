"""The protocol's routes."""

import json
from importlib.metadata import version as distribution_version
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from cloze_server import paths
from cloze_server.hosting import Hosted, Room
from cloze_server.lifecycle import State
from cloze_server.model import LoadedModel
from cloze_server.oip.documents import (
    InferenceReply,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    TensorMetadata,
)
from cloze_server.oip.outputs import OUTPUTS, asked, inputs, results
from cloze_server.oip.tensors import Inference, InferenceRequest, read, write
from cloze_server.problems import ProblemError, ProblemType, checked
from cloze_server.routes import answer
from cloze_server.schema import schema_of
from cloze_server.tasks.handler import AnyHandler, TaskRequest

_HEADER_LENGTH = "inference-header-content-length"
# Options of a request that tensors take the place of, or the path.
_NO_PARAMETERS = frozenset({"inputs", "input", "words", "question", "context", "model", "encoding_format", "user"})

_EXAMPLE = {
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["My card was charged twice."]}],
    "parameters": {"truncate": "right"},
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": schema_of(InferenceRequest), "example": _EXAMPLE}},
    }
}
_REPLIES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}
_MODEL = "/models/{name}"
_VERSION = _MODEL + "/versions/{version}"


def build_router(room: Room) -> APIRouter:
    """All routes of the protocol, bound to one process's state."""
    router = APIRouter(prefix=paths.OIP)
    own_version = distribution_version("cloze-mlops")

    @router.get("")
    async def server() -> ServerMetadata:
        """Name, version and extensions of the server (Open Inference Protocol)."""
        return ServerMetadata(name="cloze", version=own_version, extensions=["binary_tensor_data"])

    @router.get("/health/live", response_model=Live, responses={503: {"model": Live}})
    async def live() -> Response:
        """200 while the process can do its work."""
        alive = room.failure() is None
        return JSONResponse({"live": alive}, 200 if alive else 503)

    @router.get("/health/ready", response_model=Ready, responses={503: {"model": Ready}})
    async def ready() -> Response:
        """200 once all models answer, until the process is asked to end."""
        ready = room.lifecycle.state is State.READY
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    @router.get(_MODEL)
    async def metadata(name: str) -> ModelMetadata:
        """A model's inputs and outputs; -1 is a dimension that depends on the request."""
        return _metadata(room, _named(room, name).service.model)

    @router.get(_VERSION)
    async def metadata_of_version(name: str, version: str) -> ModelMetadata:
        """The same of a version."""
        return _metadata(room, _named(room, name, version).service.model)

    @router.get(_MODEL + "/ready", response_model=ModelReady, responses={503: {"model": ModelReady}})
    async def model_ready(name: str) -> Response:
        """200 when the model answers."""
        return _ready(room, _named(room, name).service.model)

    @router.get(_VERSION + "/ready", response_model=ModelReady, responses={503: {"model": ModelReady}})
    async def version_ready(name: str, version: str) -> Response:
        """200 when the version answers."""
        return _ready(room, _named(room, name, version).service.model)

    @router.post(_MODEL + "/infer", response_model=InferenceReply, responses=_REPLIES, openapi_extra=_BODY)
    async def infer(request: Request, name: str) -> Response:
        """Answer for the texts in BYTES tensors; `parameters` are the options of the task's own route."""
        return await _infer(room, _named(room, name), request)

    @router.post(_VERSION + "/infer", response_model=InferenceReply, responses=_REPLIES, openapi_extra=_BODY)
    async def infer_by_version(request: Request, name: str, version: str) -> Response:
        """The same by a version."""
        return await _infer(room, _named(room, name, version), request)

    return router


def _metadata(room: Room, model: LoadedModel) -> ModelMetadata:
    return ModelMetadata(
        name=model.name,
        versions=[each.service.model.version for each in room.hosted if each.service.model.name == model.name],
        platform="cloze",
        inputs=[TensorMetadata(name=each, datatype="BYTES", shape=[-1]) for each in inputs(model.task)],
        outputs=[
            TensorMetadata(name=each.name, datatype=each.datatype, shape=list(each.dimensions))
            for each in OUTPUTS[model.task]
        ],
    )


def _ready(room: Room, model: LoadedModel) -> Response:
    ready = room.lifecycle.state is not State.DRAINING
    return JSONResponse({"name": model.name, "ready": ready}, 200 if ready else 503)


async def _infer(room: Room, hosted: Hosted, request: Request) -> Response:
    request.state.exchange.belongs_to(hosted)
    service = hosted.service
    body = await request.body()
    length = _header_length(request)
    wanted, asked = await service.run(lambda: _read(service.handler, body, length))
    reply = await answer(room, hosted, asked, request.state.exchange, request.receive)
    content, head = await service.run(lambda: _write(service.model, reply, wanted))
    if head is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={_HEADER_LENGTH: str(head)}, media_type="application/octet-stream")


def _named(room: Room, name: str, version: str | None = None) -> Hosted:
    return room.select(None, name if version is None else f"{name}/{version}")


def _header_length(request: Request) -> int | None:
    given = request.headers.get(_HEADER_LENGTH)
    if given is None:
        return None
    if not given.isascii() or not given.isdigit() or len(given) > 12:
        raise ProblemError(ProblemType.INPUT_INVALID, f"{_HEADER_LENGTH} isn't a number of bytes")
    return int(given)


def _read(handler: AnyHandler, body: bytes, header_length: int | None) -> tuple[Inference, TaskRequest]:
    """A request as the task's own route would get it. Raises ProblemError."""
    wanted = read(body, header_length)
    task = handler.task
    names = inputs(task)
    if wanted.texts.keys() != set(names):
        message = f"the inputs of the model are {', '.join(names)}: send each, and no others"
        raise ProblemError(ProblemType.INPUT_INVALID, message)
    if len({len(texts) for texts in wanted.texts.values()}) > 1:
        raise ProblemError(ProblemType.INPUT_INVALID, f"{' and '.join(names)} have different lengths")
    options = [name for name in handler.request.model_fields if name not in _NO_PARAMETERS]
    if not wanted.parameters.keys() <= set(options):
        raise ProblemError(ProblemType.INPUT_INVALID, f"unknown parameter; the parameters are {', '.join(options)}")
    return wanted, checked(handler.request, asked(task, wanted.texts) | wanted.parameters)


def _write(model: LoadedModel, reply: bytes, wanted: Inference) -> tuple[bytes, int | None]:
    found = results(model.task, json.loads(reply))
    tensors = [output.tensor(found) for output in OUTPUTS[model.task]]
    return write({"model_name": model.name, "model_version": model.version}, tensors, wanted)
