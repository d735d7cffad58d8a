"""Requests and replies of the protocol as bytes: JSON, followed by tensors in binary where a client wants that."""

import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from cloze_api.serving import INPUTS_MAX
from cloze_server.problems import ProblemError, ProblemType, invalid_request

Datatype = Literal["BYTES", "FP32", "INT64"]

_LENGTH = struct.Struct("<I")
_NUMPY: dict[str, Any] = {"FP32": "<f4", "INT64": "<i8"}
_DIMENSIONS_MAX = 3
_TENSORS_MAX = 16


class _Parameters(BaseModel):
    binary_data: bool = False
    binary_data_size: Annotated[int, Field(ge=0)] | None = None


class _Input(BaseModel):
    name: str
    datatype: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=_DIMENSIONS_MAX)]
    data: Any = None
    parameters: _Parameters = _Parameters()


class _Output(BaseModel):
    name: str
    parameters: _Parameters = _Parameters()


class InferenceRequest(BaseModel):
    """A request's JSON, beside which tensors may follow in binary."""

    id: Annotated[str, Field(max_length=128)] | None = None
    inputs: Annotated[list[_Input], Field(min_length=1, max_length=_TENSORS_MAX)]
    outputs: Annotated[list[_Output], Field(max_length=_TENSORS_MAX)] | None = None
    parameters: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array. values: in row-major order, texts for BYTES; as many as the shape says."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    values: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Inference:
    """What a client asks for.

    texts: the elements of each BYTES input, by its name. outputs: wanted ones in their order, and whether in binary;
    None: all. binary: whether those are wanted in binary that aren't named.
    """

    id: str | None
    texts: dict[str, list[str]]
    outputs: dict[str, bool] | None
    binary: bool
    parameters: dict[str, Any]


def read(body: bytes, header_length: int | None) -> Inference:
    """Take a request apart. header_length: bytes of its JSON, when tensors in binary follow.

    Raises ProblemError, whose text never repeats any of the body.
    """
    if header_length is not None and header_length > len(body):
        raise _invalid("inference-header-content-length is more than the body has")
    head, tail = (body, b"") if header_length is None else (body[:header_length], body[header_length:])
    try:
        request = InferenceRequest.model_validate_json(head)
    except ValidationError as error:
        raise _refusal(error) from error
    texts: dict[str, list[str]] = {}
    at = 0
    for each in request.inputs:
        if each.name in texts:
            raise _invalid("two inputs have one name")
        size = each.parameters.binary_data_size
        if size is not None and at + size > len(tail):
            raise _invalid(f"the body ends within the binary data of input {len(texts)}")
        texts[each.name] = _texts(each, None if size is None else tail[at : at + size], len(texts))
        at += size or 0
    if at != len(tail):
        raise _invalid(f"{len(tail) - at} bytes follow the last tensor")
    parameters = dict(request.parameters)
    binary = parameters.pop("binary_data_output", False) is True
    outputs = request.outputs and {each.name: each.parameters.binary_data for each in request.outputs}
    return Inference(request.id, texts, outputs or None, binary, parameters)


def _texts(tensor: _Input, data: bytes | None, place: int) -> list[str]:
    """The texts of a BYTES tensor of shape [n] or [n, 1]."""
    if tensor.datatype != "BYTES":
        raise _invalid(f"input {place} isn't BYTES: inputs are texts")
    if data is not None and tensor.data is not None:
        raise _invalid(f"input {place} has both data and binary_data_size: send one of them")
    count = math.prod(tensor.shape)
    if not tensor.shape or tensor.shape[1:] not in ([], [1]):
        raise _invalid(f"input {place} has the shape {tensor.shape}: give [n] or [n, 1]")
    if count > INPUTS_MAX:
        message = f"input {place} has {count} texts: send at most {INPUTS_MAX} in one request"
        raise ProblemError(ProblemType.TOO_MANY_INPUTS, message)
    values = list(_flat(tensor.data) if data is None else _elements(data, place))
    if len(values) != count:
        raise _invalid(f"input {place} has {len(values)} elements, and {count} by its shape")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise _invalid(f"element {index} of input {place} isn't a text in UTF-8")
    return values


def _flat(data: Any) -> Iterator[Any]:
    """The elements of lists of lists, no deeper than a shape may be."""
    levels: list[Iterator[Any]] = [iter(data if isinstance(data, list) else [])]
    while levels:
        for value in levels[-1]:
            if isinstance(value, list) and len(levels) < _DIMENSIONS_MAX:
                levels.append(iter(value))
                break
            yield value
        else:
            levels.pop()


def _elements(data: bytes, place: int) -> Iterator[str | None]:
    """The elements of BYTES in binary, each behind its length; None for one that isn't UTF-8."""
    at = 0
    while at < len(data):
        end = at + _LENGTH.size
        if end > len(data) or (stop := end + _LENGTH.unpack_from(data, at)[0]) > len(data):
            raise _invalid(f"the binary data of input {place} ends within an element")
        try:
            yield data[end:stop].decode()
        except UnicodeDecodeError:
            yield None
        at = stop


def write(head: dict[str, Any], tensors: Sequence[Tensor], wanted: Inference) -> tuple[bytes, int | None]:
    """A reply, and the length of its JSON when tensors in binary follow.

    head: members beside the outputs. Raises ProblemError for a wanted output that there isn't.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    outputs = dict.fromkeys(by_name, wanted.binary) if wanted.outputs is None else wanted.outputs
    if unknown := [place for place, name in enumerate(outputs) if name not in by_name]:
        raise _invalid(f"output {unknown[0]} isn't among those of the model: {', '.join(by_name)}")
    described: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, binary in outputs.items():
        tensor = by_name[name]
        entry: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": tensor.shape}
        if binary:
            parts.append(_packed(tensor))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = tensor.values
        described.append(entry)
    if wanted.id is not None:
        head = head | {"id": wanted.id}
    text = json.dumps(head | {"outputs": described}, ensure_ascii=False, separators=(",", ":")).encode()
    return b"".join((text, *parts)), len(text) if parts else None


def _packed(tensor: Tensor) -> bytes:
    """A tensor in binary: numbers as they are in memory, little-endian; each text behind its length in bytes."""
    if tensor.datatype != "BYTES":
        packed: bytes = np.asarray(tensor.values, _NUMPY[tensor.datatype]).tobytes()
        return packed
    texts = [value.encode() for value in tensor.values]
    return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))


def _refusal(error: ValidationError) -> ProblemError:
    """The problem of JSON that isn't a request. Its lists are tensors and sizes, which aren't inputs, nor words."""
    errors = error.errors(include_url=False, include_input=False)
    for each in errors:
        if each["type"] == "too_long":
            place = ".".join(str(part) for part in each["loc"])
            return _invalid(f"{place} has more than {each['ctx']['max_length']} elements")
    return invalid_request(errors)


def _invalid(message: str) -> ProblemError:
    return ProblemError(ProblemType.INPUT_INVALID, message)
