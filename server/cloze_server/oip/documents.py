"""The protocol's documents beside its inference requests, as they are described to clients."""

from typing import Any, Literal

from pydantic import BaseModel


class Failure(BaseModel):
    """An error in the protocol's form."""

    error: str


class ServerMetadata(BaseModel):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """Whether the process can do its work."""

    live: bool


class Ready(BaseModel):
    """Whether all models answer."""

    ready: bool


class ModelReady(Ready):
    """Whether one model answers."""

    name: str


class TensorMetadata(BaseModel):
    """A tensor that a model takes or gives; -1 is a dimension that depends on the request."""

    name: str
    datatype: Literal["BYTES", "FP32", "INT64"]
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model's inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ResponseOutput(TensorMetadata):
    """A tensor of a reply. data: in row-major order; absent where it follows in binary."""

    parameters: dict[str, Any] = {}
    data: list[str | float | int | None] | None = None


class InferenceReply(BaseModel):
    """The tensors that were asked for."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]
