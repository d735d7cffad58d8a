"""Around every request: its id, deadline, bounds of its body, headers of its reply, metrics, the last error handler."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloze_server import paths
from cloze_server.lifecycle import Lifecycle, State
from cloze_server.logs import fields, request_id_variable
from cloze_server.problems import ProblemError, ProblemType
from cloze_server.settings import Settings
from cloze_server.telemetry import Telemetry

_log = logging.getLogger(__name__)

_ID_HEADER = b"x-request-id"
_ID_PATTERN = re.compile(rb"[\x21-\x7e]{1,128}")
_JSON_PATTERN = re.compile(rb"application/(json|[^;,\s]+\+json)\s*(;.*)?", re.IGNORECASE)
_CLIENT_CLOSED = 499
_RETRY_SECONDS = 1

_UNCOUNTED = frozenset({paths.HEALTH, paths.READY, paths.METRICS})
_TAKING_BODIES = frozenset(paths.TASK_PATHS.values())
# Paths that get a label of their own in metrics; one that a client made up must not.
_LABELLED = _TAKING_BODIES | {paths.MODELS}


class ClientLeftError(Exception):
    """Nobody waits for the reply any more."""


@dataclass(slots=True)
class Exchange:
    """One request: how far it is. Its route finds it in the scope's state.

    held: bytes of its body that count against the bound over all requests. longest: tokens of its longest input, once
    it was tokenized.
    """

    request_id: bytes
    status: int | None = None
    body_complete: bool = False
    held: int = 0
    longest: int | None = None

    def measured(self, longest: int) -> None:
        """Note the tokens of the longest input."""
        self.longest = longest


class RequestMiddleware:
    """Pure ASGI, so that a request costs no extra task.

    identity: the loaded model's name and version, for the headers; None before there is one.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        telemetry: Telemetry,
        lifecycle: Lifecycle,
        identity: Callable[[], tuple[str, str] | None],
    ) -> None:
        self._app = app
        self._settings = settings
        self._telemetry = telemetry
        self._lifecycle = lifecycle
        self._identity = identity
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] in _UNCOUNTED:
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        headers = dict(scope["headers"])
        given = headers.get(_ID_HEADER, b"")
        exchange = Exchange(given if _ID_PATTERN.fullmatch(given) else secrets.token_hex(16).encode())
        scope["state"] = {**scope.get("state", {}), "exchange": exchange}
        request_id_variable.set(exchange.request_id.decode("ascii"))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._reply_headers(exchange)]
            await send(message)

        self._telemetry.request_started()
        try:
            problem = await self._handle(exchange, scope, headers, receive, send_with_headers)
            if problem is not None and exchange.status is None:
                await problem.response(request_id_variable.get())(scope, receive, send_with_headers)
        finally:
            self._held -= exchange.held
            self._telemetry.request_finished(
                self._route(scope), exchange.status or _CLIENT_CLOSED, time.monotonic() - started, exchange.longest
            )

    async def _handle(
        self, exchange: Exchange, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> ProblemError | None:
        """Answer a request within its time; what is left to answer, when something was in the way."""
        limit = self._settings.timeout_seconds
        try:
            async with asyncio.timeout(limit) as deadline:
                await self._answer(exchange, scope, headers, receive, send)
        except ClientLeftError:
            return None
        except ProblemError as problem:
            return problem
        except asyncio.CancelledError:
            if self._lifecycle.state is not State.DRAINING:
                raise
            # The time for draining is over. Swallowed, so that the client is told.
            self._lifecycle.abandoned += 1
            return ProblemError(
                ProblemType.SHUTTING_DOWN,
                "the server ends before it could answer: send the request again",
                retry_after_seconds=_RETRY_SECONDS,
            )
        except Exception as error:  # noqa: BLE001 - a reply is owed whatever happened
            if isinstance(error, TimeoutError) and deadline.expired():
                if exchange.body_complete:
                    return ProblemError(ProblemType.TIMEOUT, f"no answer within {limit:g} s: send less, or later")
                return ProblemError(ProblemType.BODY_TIMEOUT, f"the body was not complete within {limit:g} s")
            _log.exception("request failed", extra=fields(path=self._route(scope)))
            return ProblemError(ProblemType.INTERNAL, "an unexpected error; the log has it under the request id")
        return None

    async def _answer(
        self, exchange: Exchange, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        if scope["method"] == "POST" and scope["path"] in _TAKING_BODIES:
            declared = headers.get(b"content-type", b"")
            if not _JSON_PATTERN.fullmatch(declared.strip()):
                raise ProblemError(ProblemType.MEDIA_TYPE_UNSUPPORTED, "send content-type: application/json")
        body = await self._read_body(exchange, headers, receive)
        exchange.body_complete = True
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        del body

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replay, send)

    async def _read_body(self, exchange: Exchange, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body. Raises ProblemError as soon as there is too much of it, and ClientLeftError."""
        limit = self._settings.max_body_bytes
        too_large = ProblemError(
            ProblemType.BODY_TOO_LARGE, f"send at most {limit} bytes in one request", members={"limit": limit}
        )
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            raise too_large
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeftError
            part = message.get("body", b"")
            exchange.held += len(part)
            self._held += len(part)
            if exchange.held > limit:
                raise too_large
            if self._held > self._settings.max_bodies_bytes:
                raise ProblemError(
                    ProblemType.QUEUE_FULL,
                    f"bodies of {self._held} bytes are being handled, at most {self._settings.max_bodies_bytes} may "
                    f"be: try again in {_RETRY_SECONDS} s",
                    retry_after_seconds=_RETRY_SECONDS,
                )
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _reply_headers(self, exchange: Exchange) -> list[tuple[bytes, bytes]]:
        result = [(_ID_HEADER, exchange.request_id)]
        if identity := self._identity():
            result += [(b"x-cloze-model", identity[0].encode()), (b"x-cloze-version", identity[1].encode())]
        # While draining, the client's next request dials anew and finds a server that stays. What is left of a body
        # that came too slowly nobody wants.
        if self._lifecycle.state is State.DRAINING or exchange.status == 408:
            result.append((b"connection", b"close"))
        return result

    def _route(self, scope: Scope) -> str:
        path: str = scope["path"]
        return path if path in _LABELLED else "unmatched"
