"""Logs as JSON lines on standard error. Users' text is never logged."""

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

request_id_variable: ContextVar[str] = ContextVar("request_id", default="")

trace_id_variable: ContextVar[str] = ContextVar("trace_id", default="")
"""Of a request that is traced."""

_NO_FIELDS: Mapping[str, str] = {}
model_variable: ContextVar[Mapping[str, str]] = ContextVar("model", default=_NO_FIELDS)
"""Name and version of the model that a request belongs to, where the process has several."""

_context: dict[str, str] = {}


def set_context(**values: str) -> None:
    """Fields that every later line carries, such as the model's name and version."""
    _context.update(values)


def fields(**values: Any) -> dict[str, Any]:
    """`extra=` of a log call."""
    return {"fields": values}


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, event, model, version, request_id, trace_id, then the call's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_context,
            **model_variable.get(),
        }
        if request_id := request_id_variable.get():
            line["request_id"] = request_id
        if trace_id := trace_id_variable.get():
            line["trace_id"] = trace_id
        line.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[0] is not None:
            # Type and frames only: an exception's message may quote the request.
            line["exception"] = record.exc_info[0].__name__
            line["frames"] = [
                f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(record.exc_info[2])[-8:]
            ]
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str) -> None:
    """Send all logs of the process through the formatter."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # These report each request; the server's own metrics do that.
    for chatty in ("httpx", "httpcore", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
