"""The OpenAPI document: what the framework can't know of errors, headers and keys. Pure."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from cloze_server import paths
from cloze_server.oip.documents import Failure
from cloze_server.problems import MEDIA_TYPE, TABLE, Problem, ProblemType

Document = dict[str, Any]

_REFERENCE = "#/components/schemas/{model}"

_UNREADABLE: Final = {ProblemType.REQUEST_INVALID, ProblemType.HEAD_TIMEOUT, ProblemType.HEAD_TOO_LARGE}
"""Before there is a request: of every path, and never in the protocol's form."""
_COUNTED: Final = {
    *(ProblemType.BODY_TIMEOUT, ProblemType.BODY_TOO_LARGE, ProblemType.INPUT_INVALID, ProblemType.QUEUE_FULL),
    *(ProblemType.INTERNAL, ProblemType.TOO_MANY_CONNECTIONS, ProblemType.SHUTTING_DOWN, ProblemType.TIMEOUT),
}
_POSTED: Final = {ProblemType.BODY_INVALID, ProblemType.MEDIA_TYPE_UNSUPPORTED}
_FEEDBACK: Final = {ProblemType.FEEDBACK_UNAVAILABLE, ProblemType.FEEDBACK_CONFLICT}
_NAMED: Final = {ProblemType.MODEL_UNKNOWN, ProblemType.MODEL_LOADING}
_ASKED: Final = {
    *(ProblemType.MODEL_AMBIGUOUS, ProblemType.TASK_MISMATCH, ProblemType.TOO_MANY_INPUTS),
    *(ProblemType.INPUT_TOO_LONG, ProblemType.MASK_MISSING, ProblemType.REQUEST_TOO_LARGE, ProblemType.OUT_OF_MEMORY),
}

_HEADERS: Final[Mapping[str, tuple[str, Document]]] = {
    "x-request-id": ("The request's own id where it brought one, else a new one.", {"type": "string"}),
    "x-cloze-model": ("The model that answered.", {"type": "string"}),
    "x-cloze-version": ("Its version.", {"type": "string"}),
    "x-cloze-digest": ("SHA-256 of its manifest.", {"type": "string"}),
    "server-timing": (
        "Milliseconds of each stage that was reached, and of all (W3C Server Timing).",
        {"type": "string"},
    ),
    "x-cloze-cache": (
        "Whether the reply was among those that are kept, where any are.",
        {"type": "string", "enum": ["hit", "miss", "shared"]},
    ),
    "retry-after": ("Seconds until the request may be tried again.", {"type": "integer", "minimum": 1}),
    "www-authenticate": ("How a key is sent.", {"type": "string"}),
}
_OF_MODEL: Final = ("x-cloze-model", "x-cloze-version", "x-cloze-digest", "server-timing", "x-cloze-cache")

_PARAMETERS: Final[Mapping[str, tuple[str, Document]]] = {
    "x-request-id": (
        "1 to 128 visible ASCII characters, which the reply repeats; anything else is replaced.",
        {"type": "string"},
    ),
    "x-cloze-timeout-ms": (
        "Milliseconds after which the answer is of no use, at most the server's own limit.",
        {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    ),
    "x-cloze-model": (
        "`name` or `name/version` of the model that is to answer; as the field `model`.",
        {"type": "string"},
    ),
}


def complete(document: Document) -> Document:
    """The framework's document with all that replies may be. Changes and gives the same one."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for model in (Problem, Failure):
        schemas[model.__name__] = model.model_json_schema(ref_template=_REFERENCE)
    # The framework's own errors, which nobody sees.
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["headers"] = {name: {"description": text, "schema": form} for name, (text, form) in _HEADERS.items()}
    components["parameters"] = {
        name: {"name": name, "in": "header", "required": False, "description": text, "schema": form}
        for name, (text, form) in _PARAMETERS.items()
    }
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A key, where the server asks for one."},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same."},
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _describe(path, method, operation)
    return document


def _describe(path: str, method: str, operation: Document) -> None:
    counted = path not in paths.UNCOUNTED
    asks_model = path in paths.INFERENCE or path.endswith("/infer")
    if counted:
        names = ["x-request-id", "x-cloze-timeout-ms", *(["x-cloze-model"] if path in paths.INFERENCE else [])]
        operation.setdefault("parameters", []).extend({"$ref": f"#/components/parameters/{each}"} for each in names)
    if path not in paths.WITHOUT_KEY:
        # With none of them where the server has no keys.
        operation["security"] = [{"bearer": []}, {"key": []}, {}]
    responses = operation["responses"]
    # Ours is among the problems.
    responses.pop("422", None)
    if counted:
        for response in responses.values():
            response["headers"] = _references("x-request-id", *(_OF_MODEL if asks_model else ()))
    by_status: dict[int, list[ProblemType]] = {}
    for kind in TABLE:
        if kind in problems_of(path, method):
            by_status.setdefault(TABLE[kind].status, []).append(kind)
    for status, kinds in by_status.items():
        responses.setdefault(str(status), {}).update(_response(path, status, kinds))
    operation["responses"] = dict(sorted(responses.items()))


def problems_of(path: str, method: str) -> Collection[ProblemType]:
    """What may be in the way of a request to a described path."""
    found = set(_UNREADABLE)
    if path in paths.UNCOUNTED:
        return found
    found |= _COUNTED
    if path not in paths.WITHOUT_KEY:
        found.add(ProblemType.UNAUTHORIZED)
    if method == "post":
        found |= _POSTED
    if path == paths.FEEDBACK:
        return found | _FEEDBACK
    if path in paths.INFERENCE or "{" in path:
        found |= _NAMED
        found |= _ASKED if method == "post" else {ProblemType.MODEL_AMBIGUOUS}
    return found


def _response(path: str, status: int, kinds: list[ProblemType]) -> Document:
    content: Document = {}
    of_protocol = [kind for kind in kinds if paths.of_protocol(path) and kind not in _UNREADABLE]
    if of_protocol:
        content["application/json"] = {"schema": {"$ref": _REFERENCE.format(model=Failure.__name__)}}
    if of_problem := [kind for kind in kinds if kind not in of_protocol]:
        examples = {kind.value: {"value": _example(kind)} for kind in of_problem}
        content[MEDIA_TYPE] = {"schema": {"$ref": _REFERENCE.format(model=Problem.__name__)}, "examples": examples}
    names = ["x-request-id"]
    if status in (429, 503):
        names.append("retry-after")
    if status == 401:
        names.append("www-authenticate")
    described = "; ".join(f"`{kind}`: {TABLE[kind].title}" for kind in kinds)
    return {"description": described, "headers": _references(*names), "content": content}


def _example(kind: ProblemType) -> Document:
    entry = TABLE[kind]
    return {
        "type": f"tag:cloze.dev,2025:problems/{kind}",
        "title": entry.title,
        "status": entry.status,
        "detail": f"{entry.title}: what was wrong, and what to do",
        "request_id": "5f0c7c1e",
    }


def _references(*names: str) -> dict[str, Document]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def schema_of(model: Any) -> Document:
    """A pydantic model's schema, whole in itself, for bodies that the framework doesn't read."""
    document: Document = model.model_json_schema()
    definitions = document.pop("$defs", {})

    def inlined(part: Any) -> Any:
        if isinstance(part, dict):
            if reference := part.get("$ref"):
                name = str(reference).rpartition("/")[2]
                return inlined(definitions[name]) | {key: value for key, value in part.items() if key != "$ref"}
            return {key: inlined(value) for key, value in part.items()}
        return [inlined(each) for each in part] if isinstance(part, list) else part

    whole: Document = inlined(document)
    return whole
