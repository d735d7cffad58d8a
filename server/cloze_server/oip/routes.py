"""The protocol's routes."""

import json
from importlib.metadata import version as distribution_version
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from starlette.responses import JSONResponse

from cloze_server import paths
from cloze_server.hosting import Hosted, Room
from cloze_server.lifecycle import State
from cloze_server.model import LoadedModel
from cloze_server.oip.outputs import OUTPUTS, asked, inputs, results
from cloze_server.oip.tensors import Inference, read, write
from cloze_server.problems import ProblemError, ProblemType, invalid_request
from cloze_server.routes import answer
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
        "content": {"application/json": {"schema": {"type": "object"}, "example": _EXAMPLE}},
    }
}


def build_router(room: Room) -> APIRouter:
    """All routes of the protocol, bound to one process's state."""
    router = APIRouter(prefix=paths.OIP)
    own_version = distribution_version("cloze-mlops")

    @router.get("")
    async def server() -> Any:
        """Name, version and extensions of the server (Open Inference Protocol)."""
        return {"name": "cloze", "version": own_version, "extensions": ["binary_tensor_data"]}

    @router.get("/health/live")
    async def live() -> Response:
        """200 while the process can do its work."""
        alive = room.failure() is None
        return JSONResponse({"live": alive}, 200 if alive else 503)

    @router.get("/health/ready")
    async def ready() -> Response:
        """200 once all models answer, until the process is asked to end."""
        ready = room.lifecycle.state is State.READY
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def metadata(name: str, version: str | None = None) -> Any:
        """A model's inputs and outputs; -1 is a dimension that depends on the request."""
        model = _named(room, name, version).service.model
        versions = [each.service.model.version for each in room.hosted if each.service.model.name == name]
        return {
            "name": model.name,
            "versions": versions,
            "platform": "cloze",
            "inputs": [{"name": each, "datatype": "BYTES", "shape": [-1]} for each in inputs(model.task)],
            "outputs": [
                {"name": each.name, "datatype": each.datatype, "shape": each.dimensions} for each in OUTPUTS[model.task]
            ],
        }

    async def model_ready(name: str, version: str | None = None) -> Response:
        """200 when the model answers."""
        model = _named(room, name, version).service.model
        ready = room.lifecycle.state is not State.DRAINING
        return JSONResponse({"name": model.name, "ready": ready}, 200 if ready else 503)

    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Answer for the texts in BYTES tensors; `parameters` are the options of the task's own route."""
        hosted = _named(room, name, version)
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

    for prefix in ("/models/{name}", "/models/{name}/versions/{version}"):
        router.add_api_route(prefix, metadata, methods=["GET"])
        router.add_api_route(prefix + "/ready", model_ready, methods=["GET"])
        router.add_api_route(prefix + "/infer", infer, methods=["POST"], openapi_extra=_BODY)
    return router


def _named(room: Room, name: str, version: str | None) -> Hosted:
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
    try:
        return wanted, handler.request.model_validate(asked(task, wanted.texts) | wanted.parameters)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_input=False)) from error


def _write(model: LoadedModel, reply: bytes, wanted: Inference) -> tuple[bytes, int | None]:
    found = results(model.task, json.loads(reply))
    tensors = [output.tensor(found) for output in OUTPUTS[model.task]]
    return write({"model_name": model.name, "model_version": model.version}, tensors, wanted)
