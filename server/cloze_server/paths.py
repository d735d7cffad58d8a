"""Paths of the HTTP interface, for routes, metrics, messages and `--help`."""

import re
from collections.abc import Mapping
from typing import Final

from cloze_api.task import Task

#: Where a model of each task answers.
TASK_PATHS: Final[Mapping[Task, str]] = {
    Task.FILL_MASK: "/v1/fill-mask",
    Task.SEQUENCE_CLASSIFICATION: "/v1/classify",
    Task.TOKEN_CLASSIFICATION: "/v1/token-classify",
    Task.QUESTION_ANSWERING: "/v1/answer",
    Task.EMBEDDING: "/v1/embeddings",
    Task.ECHO: "/v1/echo",
}
SIMILARITY: Final = "/v1/similarity"
INFERENCE: Final = (*TASK_PATHS.values(), SIMILARITY)
"""All routes that a model answers at."""
MODELS: Final = "/v1/models"
FEEDBACK: Final = "/v1/feedback"
HEALTH: Final = "/healthz"
READY: Final = "/readyz"
METRICS: Final = "/metrics"
SCHEMA: Final = "/openapi.json"
PLAYGROUND: Final = "/"
REFERENCE: Final = "/docs"

OIP: Final = "/v2"
"""Below it are the routes of the Open Inference Protocol."""
OIP_INFER: Final = f"{OIP}/models/{{model}}/infer"
_OIP_INFER = re.compile(rf"{OIP}/models/[^/]+(/versions/[^/]+)?/infer")

UNCOUNTED: Final = frozenset({HEALTH, READY, METRICS, f"{OIP}/health/live", f"{OIP}/health/ready"})
"""What asks about the process: neither counted, nor bounded, nor behind a key."""
WITHOUT_KEY: Final = UNCOUNTED | {SCHEMA, PLAYGROUND, REFERENCE}
"""What tells nothing of a model or of its users."""

_TASK_ROUTES = frozenset(INFERENCE)


def route(path: str) -> str:
    """The route of a path, as metrics have it: one that a client made up must not get a label of its own."""
    if path in _TASK_ROUTES or path == MODELS:
        return path
    return OIP_INFER if _OIP_INFER.fullmatch(path) else "unmatched"


def of_task(route: str) -> bool:
    """Whether a model answers at a route."""
    return route in _TASK_ROUTES or route == OIP_INFER


def of_protocol(path: str) -> bool:
    """Whether a path belongs to the Open Inference Protocol, whose errors have another form."""
    return path == OIP or path.startswith(OIP + "/")
