"""Errors as RFC 9457 problem documents, from one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse

from cloze_server import paths
from cloze_server.bounds import ERRORS_MAX

MEDIA_TYPE = "application/problem+json"

_LISTS_OF_INPUTS = frozenset({"inputs", "input", "words", "sentences", "pairs"})


class ProblemType(StrEnum):
    """The last part of a problem's `type`."""

    REQUEST_INVALID = "request-invalid"
    BODY_INVALID = "body-invalid"
    BODY_TOO_LARGE = "body-too-large"
    INPUT_INVALID = "input-invalid"
    TOO_MANY_INPUTS = "too-many-inputs"
    INPUT_TOO_LONG = "input-too-long"
    MASK_MISSING = "mask-missing"
    REQUEST_TOO_LARGE = "request-too-large"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not-found"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    HEAD_TIMEOUT = "head-timeout"
    BODY_TIMEOUT = "body-timeout"
    MEDIA_TYPE_UNSUPPORTED = "media-type-unsupported"
    TASK_MISMATCH = "task-mismatch"
    MODEL_AMBIGUOUS = "model-ambiguous"
    MODEL_UNKNOWN = "model-unknown"
    FEEDBACK_UNAVAILABLE = "feedback-unavailable"
    FEEDBACK_CONFLICT = "feedback-conflict"
    QUEUE_FULL = "queue-full"
    HEAD_TOO_LARGE = "head-too-large"
    TOO_MANY_CONNECTIONS = "too-many-connections"
    MODEL_LOADING = "model-loading"
    SHUTTING_DOWN = "shutting-down"
    OUT_OF_MEMORY = "out-of-memory"
    TIMEOUT = "timeout"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class _Entry:
    status: int
    title: str


TABLE: Mapping[ProblemType, _Entry] = {
    ProblemType.REQUEST_INVALID: _Entry(400, "This is not HTTP"),
    ProblemType.BODY_INVALID: _Entry(400, "The body is not JSON"),
    ProblemType.UNAUTHORIZED: _Entry(401, "The request has no key that is known"),
    ProblemType.NOT_FOUND: _Entry(404, "There is no such route"),
    ProblemType.MODEL_UNKNOWN: _Entry(404, "There is no such model"),
    ProblemType.FEEDBACK_UNAVAILABLE: _Entry(404, "Nobody keeps feedback"),
    ProblemType.METHOD_NOT_ALLOWED: _Entry(405, "The route doesn't take this method"),
    ProblemType.HEAD_TIMEOUT: _Entry(408, "The headers took too long to arrive"),
    ProblemType.BODY_TIMEOUT: _Entry(408, "The body took too long to arrive"),
    ProblemType.TASK_MISMATCH: _Entry(409, "The loaded model has another task"),
    ProblemType.FEEDBACK_CONFLICT: _Entry(409, "Other feedback is known"),
    ProblemType.MODEL_AMBIGUOUS: _Entry(409, "Several models could answer"),
    ProblemType.BODY_TOO_LARGE: _Entry(413, "The body is too large"),
    ProblemType.TOO_MANY_INPUTS: _Entry(413, "The request has too many inputs"),
    ProblemType.REQUEST_TOO_LARGE: _Entry(413, "The request asks for too much at once"),
    ProblemType.MEDIA_TYPE_UNSUPPORTED: _Entry(415, "The body has a form that the route doesn't take"),
    ProblemType.INPUT_INVALID: _Entry(422, "The request doesn't fit the schema"),
    ProblemType.INPUT_TOO_LONG: _Entry(422, "An input is too long"),
    ProblemType.MASK_MISSING: _Entry(422, "An input has no mask token"),
    ProblemType.QUEUE_FULL: _Entry(429, "The server has too much to do"),
    ProblemType.HEAD_TOO_LARGE: _Entry(431, "The headers are too large"),
    ProblemType.INTERNAL: _Entry(500, "The server failed"),
    ProblemType.TOO_MANY_CONNECTIONS: _Entry(503, "The server has too many connections"),
    ProblemType.MODEL_LOADING: _Entry(503, "The model is not loaded yet"),
    ProblemType.SHUTTING_DOWN: _Entry(503, "The server ends"),
    ProblemType.OUT_OF_MEMORY: _Entry(503, "An input needs more memory than the server has"),
    ProblemType.TIMEOUT: _Entry(504, "The request took too long"),
}


class Problem(BaseModel):
    """A problem document (RFC 9457). Further members depend on the type."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["tag:cloze.dev,2025:problems/queue-full"])
    title: str
    status: int
    detail: str
    request_id: str


class ProblemError(Exception):
    """Ends a request with a problem document. `detail` never holds the user's text."""

    def __init__(
        self,
        kind: ProblemType,
        detail: str,
        *,
        retry_after_seconds: int | None = None,
        members: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.members = dict(members or {})
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        """HTTP status."""
        return TABLE[self.kind].status

    @property
    def type(self) -> str:
        """A tag URI (RFC 4151): problem types are names here, not pages that somebody must host."""
        return f"tag:cloze.dev,2025:problems/{self.kind}"

    def response(self, request_id: str, headers: Mapping[str, str] | None = None, *, path: str) -> JSONResponse:
        """The reply for this problem on a path: the Open Inference Protocol has documents of its own."""
        entry = TABLE[self.kind]
        sent = {**self.headers, **(headers or {})}
        if self.retry_after_seconds is not None:
            sent["retry-after"] = str(self.retry_after_seconds)
        if paths.of_protocol(path):
            return JSONResponse({"error": self.detail}, entry.status, sent)
        problem = Problem(
            type=self.type,
            title=entry.title,
            status=entry.status,
            detail=self.detail,
            request_id=request_id,
            **self.members,
        )
        return JSONResponse(problem.model_dump(), entry.status, sent, media_type=MEDIA_TYPE)


ModelT = TypeVar("ModelT", bound=BaseModel)


def checked(schema: type[ModelT], content: object, *within: str) -> ModelT:
    """What a client sent, as the schema has it. Raises ProblemError.

    within: the names that lead to it, for the message.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        raise invalid_request([{**each, "loc": (*within, *each["loc"])} for each in errors]) from error


def invalid_request(errors: Sequence[Mapping[str, Any]]) -> ProblemError:
    """The problem of a body that doesn't fit the schema, from pydantic's errors."""
    errors = errors[:ERRORS_MAX]
    # The deepest error is the one that helps: a list with a wrong item, or with too many or none, is also "not a text".
    first = max(errors, key=lambda each: (len(each["loc"]), each["type"] in ("too_long", "too_short")))
    if first["type"] == "json_invalid":
        return ProblemError(ProblemType.BODY_INVALID, "the body can't be parsed as JSON")
    if first["type"] == "too_long" and (problem := _too_many(first)):
        return problem
    found = [{"location": ".".join(str(part) for part in each["loc"]), "message": _said(each)} for each in errors]
    detail = f"{'.'.join(str(part) for part in first['loc'])}: {_said(first)}"
    return ProblemError(ProblemType.INPUT_INVALID, detail, members={"errors": found})


def _too_many(error: Mapping[str, Any]) -> ProblemError | None:
    """The problem of too many inputs, or of too many words of one; None where it is another list that is too long."""
    limit = int(error["ctx"]["max_length"])
    field = next(part for part in error["loc"] if part != "body")
    places = [part for part in error["loc"] if isinstance(part, int)]
    if places and field == "words":
        message = f"input {places[0]} has more than {limit} words: send fewer"
        return ProblemError(ProblemType.INPUT_TOO_LONG, message, members={"input": places[0], "limit": limit})
    if not places and field in _LISTS_OF_INPUTS:
        message = f"more than {limit} inputs: send fewer in one request"
        return ProblemError(ProblemType.TOO_MANY_INPUTS, message, members={"limit": limit})
    return None


def _said(error: Mapping[str, Any]) -> str:
    """What is wrong, in words for who sent it."""
    if error["type"] in ("model_type", "model_attributes_type"):
        return "give a JSON object"
    return str(error["msg"]).removeprefix("Value error, ")
