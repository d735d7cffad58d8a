"""Around every request: its id, the limit on its body, its reply's headers, its metrics, and the last error handler."""

import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloze_server.lifecycle import Lifecycle, State
from cloze_server.logs import fields, request_id_variable
from cloze_server.problems import ProblemError, ProblemType
from cloze_server.telemetry import Telemetry

_log = logging.getLogger(__name__)

_ID_HEADER = b"x-request-id"
_ID_PATTERN = re.compile(rb"[\x21-\x7e]{1,128}")
_CLIENT_CLOSED = 499
_UNCOUNTED = frozenset({"/healthz", "/readyz", "/metrics"})


class ClientLeftError(Exception):
    """Nobody waits for the reply any more."""


class RequestMiddleware:
    """Pure ASGI, so that a request costs no extra task.

    identity: the loaded model's name and version, for the headers; None before there is one.
    routes: paths that get a label of their own in metrics; a path that a client made up must not.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        telemetry: Telemetry,
        lifecycle: Lifecycle,
        identity: Callable[[], tuple[str, str] | None],
        routes: frozenset[str],
        max_body_bytes: int,
    ) -> None:
        self._app = app
        self._telemetry = telemetry
        self._lifecycle = lifecycle
        self._identity = identity
        self._routes = routes
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] in _UNCOUNTED:
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        headers = dict(scope["headers"])
        given = headers.get(_ID_HEADER, b"")
        request_id = given if _ID_PATTERN.fullmatch(given) else secrets.token_hex(16).encode()
        request_id_variable.set(request_id.decode("ascii"))
        status = _CLIENT_CLOSED

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._reply_headers(request_id)]
            await send(message)

        self._telemetry.request_started()
        try:
            await self._handle(scope, headers, receive, send_with_headers)
        except ClientLeftError:
            pass
        except Exception:  # noqa: BLE001 - a reply is owed whatever happened
            _log.exception("request failed", extra=fields(path=self._route(scope)))
            if status == _CLIENT_CLOSED:
                problem = ProblemError(ProblemType.INTERNAL, "an unexpected error; the log has it under the request id")
                await problem.response(request_id.decode("ascii"))(scope, receive, send_with_headers)
        finally:
            self._telemetry.request_finished(self._route(scope), status, time.monotonic() - started)

    async def _handle(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        try:
            body = await self._read_body(headers, receive)
        except ProblemError as problem:
            await problem.response(request_id_variable.get())(scope, receive, send)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replay, send)

    async def _read_body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body. Raises ProblemError as soon as it is known to be too large, and ClientLeftError."""
        limit = self._max_body_bytes
        too_large = ProblemError(
            ProblemType.BODY_TOO_LARGE, f"send at most {limit} bytes in one request", members={"limit": limit}
        )
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            raise too_large
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeftError
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise too_large
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _reply_headers(self, request_id: bytes) -> list[tuple[bytes, bytes]]:
        result = [(_ID_HEADER, request_id)]
        if identity := self._identity():
            result += [(b"x-cloze-model", identity[0].encode()), (b"x-cloze-version", identity[1].encode())]
        if self._lifecycle.state is State.DRAINING:
            # The client's next request dials anew and finds a server that stays.
            result.append((b"connection", b"close"))
        return result

    def _route(self, scope: Scope) -> str:
        path: str = scope["path"]
        return path if path in self._routes else "unmatched"
