"""Logs as JSON lines on standard error. Users' text is never logged."""

import contextlib
import json
import logging
import queue
import sys
import threading
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

_WAITING_MAX = 10_000
_FAREWELL_SECONDS = 1.0

request_id_variable: ContextVar[str] = ContextVar("request_id", default="")

trace_id_variable: ContextVar[str] = ContextVar("trace_id", default="")
"""Of a request that is traced."""

_NO_FIELDS: Mapping[str, str] = {}
model_variable: ContextVar[Mapping[str, str]] = ContextVar("model", default=_NO_FIELDS)
"""Name, version and digest of the model that a request belongs to, where the process has several."""

_context: dict[str, str] = {}


def set_context(**values: str) -> None:
    """Fields that every later line carries, such as the model's name, version and digest."""
    _context.update(values)


def fields(**values: Any) -> dict[str, Any]:
    """`extra=` of a log call."""
    return {"fields": values}


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, event, model, version, digest, request_id, trace_id, then the call's own
    fields.
    """

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


class QueuedHandler(logging.Handler):
    """Writes in a thread of its own: a request that is logged doesn't wait for whoever reads the stream.

    Lines are made where they are logged, as only there the request is known. Beyond `most` that wait they are lost, and
    the next one that is written is followed by how many were.
    """

    def __init__(self, stream: TextIO, most: int = _WAITING_MAX) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(most)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._lost += 1
        except Exception:  # noqa: BLE001 - as the standard handlers do
            self.handleError(record)

    def close(self) -> None:
        """Write what waits, but don't wait for ever for a stream that nobody reads."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_FAREWELL_SECONDS)
            self._thread.join(_FAREWELL_SECONDS)
        super().close()

    def _write(self) -> None:
        told = 0
        while (line := self._lines.get()) is not None:
            if (lost := self._lost) > told:
                line += "\n" + self.format(_loss(lost - told))
                told = lost
            # Whoever read it may have gone; there is nobody to tell.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(line + "\n")
                self._stream.flush()


def _loss(lines: int) -> logging.LogRecord:
    event = "log lines were lost: they were not read in time"
    level = {"levelno": logging.WARNING, "levelname": "WARNING"}
    return logging.makeLogRecord({"name": __name__, "msg": event, **level, **fields(lines=lines)})


def configure(level: str) -> None:
    """Send all logs of the process through the formatter."""
    handler = QueuedHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # These report each request; the server's own metrics do that.
    for chatty in ("httpx", "httpcore", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
