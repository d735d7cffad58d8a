"""Paths of the HTTP interface, for routes, metrics, messages and `--help`."""

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
HEALTH: Final = "/healthz"
READY: Final = "/readyz"
METRICS: Final = "/metrics"
SCHEMA: Final = "/openapi.json"

UNCOUNTED: Final = frozenset({HEALTH, READY, METRICS})
"""What asks about the process: neither counted, nor bounded, nor behind a key."""
WITHOUT_KEY: Final = UNCOUNTED | {SCHEMA}
"""What tells nothing of a model or of its users."""
