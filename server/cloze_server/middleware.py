"""Around every request: its id, deadline, bounds of its body, headers of its reply, metrics, the last error handler."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloze_server import paths
from cloze_server.exchange import ClientLeftError, Endpoint, Exchange
from cloze_server.hosting import Room
from cloze_server.keys import KeyFile, presented
from cloze_server.lifecycle import State
from cloze_server.logs import fields, request_id_variable, trace_id_variable
from cloze_server.problems import ProblemError, ProblemType
from cloze_server.protocol import CROWDED
from cloze_server.refusals import Refusals
from cloze_server.settings import Settings

if TYPE_CHECKING:
    # Its library is loaded where it is used.
    from cloze_server.tracing import Tracing

_log = logging.getLogger(__name__)

_ID_HEADER = b"x-request-id"
_TIMEOUT_HEADER = b"x-cloze-timeout-ms"
_MILLISECONDS = re.compile(rb"[1-9][0-9]{0,8}")
_ID_PATTERN = re.compile(rb"[\x21-\x7e]{1,128}")
_JSON_PATTERN = re.compile(rb"application/(json|[^;,\s]+\+json)\s*(;.*)?", re.IGNORECASE)
_LENGTH_DIGITS_MAX = 20
_BINARY = b"application/octet-stream"
_CLIENT_CLOSED = 499
_RETRY_SECONDS = 1


def _authenticated(keys: KeyFile, headers: dict[bytes, bytes]) -> str:
    """The name of the request's key. Raises ProblemError."""
    key = presented(headers)
    if key is None:
        message = "send a key as `authorization: Bearer KEY` or as `x-api-key: KEY`"
        challenge = 'Bearer realm="cloze"'
    elif (name := keys.owner(key)) is None:
        message = "this key isn't known here, or not any more"
        challenge = 'Bearer realm="cloze", error="invalid_token"'
    else:
        return name
    raise ProblemError(ProblemType.UNAUTHORIZED, message, headers={"www-authenticate": challenge})


def _check_form(route: str, headers: dict[bytes, bytes]) -> None:
    """Whether a body is declared as what the route takes. Raises ProblemError."""
    if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
        message = "send the body as it is: content-encoding may only be identity"
        raise ProblemError(ProblemType.MEDIA_TYPE_UNSUPPORTED, message, headers={"accept-encoding": "identity"})
    declared = headers.get(b"content-type", b"").strip()
    if _JSON_PATTERN.fullmatch(declared):
        return
    if route == paths.OIP_INFER:
        # Triton's clients declare nothing.
        if declared in (b"", _BINARY):
            return
        message = "send content-type: application/json, or application/octet-stream"
        raise ProblemError(ProblemType.MEDIA_TYPE_UNSUPPORTED, message)
    raise ProblemError(ProblemType.MEDIA_TYPE_UNSUPPORTED, "send content-type: application/json")


class RequestMiddleware:
    """Pure ASGI, so that a request costs no extra task."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        room: Room,
        endpoints: Mapping[str, Endpoint],
        keys: KeyFile | None,
        tracing: "Tracing | None" = None,
    ) -> None:
        """endpoints: by path, what the application doesn't answer: its own steps cost more time than a small model.

        keys: who may ask; None: everybody. tracing: None where no request is traced.
        """
        self._endpoints = endpoints
        self._tracing = tracing
        self._app = app
        self._keys = keys
        self._settings = settings
        self._room = room
        self._lifecycle = room.lifecycle
        self._held = 0
        self._refusals = Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            # The same without a body, which the connection leaves out.
            scope = {**scope, "method": "GET"}
        if scope["type"] != "http" or scope["path"] in paths.UNCOUNTED:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(_ID_HEADER, b"")
        exchange = Exchange(
            given if _ID_PATTERN.fullmatch(given) else b"%032x" % random.getrandbits(128),
            paths.route(scope["path"]),
            self._room.counter,
            self._room.only,
            self._settings.timeout_seconds,
            time.monotonic(),
        )
        scope["state"] = {**scope.get("state", {}), "exchange": exchange}
        request_id_variable.set(exchange.request_id.decode("ascii"))
        if self._tracing is not None:
            traceparent = headers.get(b"traceparent")
            exchange.trace = self._tracing.begin(scope["method"], exchange.route, traceparent, exchange.arrived)
            trace_id_variable.set(exchange.trace.id if exchange.trace else "")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._reply_headers(exchange)]
            await send(message)

        exchange.counter.request_started()
        if exchange.hosted is not None:
            exchange.hosted.enter()
        try:
            problem = await self._handle(exchange, scope, headers, receive, send_with_headers)
            if problem is not None and problem.kind is ProblemType.QUEUE_FULL:
                await self._wait_with(exchange)
            if problem is not None and exchange.status is None:
                await problem.response(request_id_variable.get(), path=scope["path"])(scope, receive, send_with_headers)
        finally:
            self._held -= exchange.held
            now, status = time.monotonic(), exchange.status or _CLIENT_CLOSED
            timing = exchange.timing
            if exchange.hosted is not None:
                exchange.hosted.leave()
            exchange.counter.request_finished(
                *(exchange.route, status, now - exchange.arrived, timing.longest),
                exemplar=exchange.exemplar(),
                segments=timing.segments,
            )
            exchange.end_trace(now, status)

    async def _wait_with(self, exchange: Exchange) -> None:
        """Hold a refusal back until its turn, within the request's time; its body counts no more."""
        self._held -= exchange.held
        exchange.held = 0
        left = exchange.arrived + exchange.limit - time.monotonic()
        if (seconds := min(self._refusals.delay(), left)) > 0:
            await asyncio.sleep(seconds)

    async def _handle(
        self, exchange: Exchange, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> ProblemError | None:
        """Answer a request within its time; what is left to answer, when something was in the way."""
        try:
            async with asyncio.timeout(exchange.limit) as deadline:
                exchange.deadline = deadline
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
                limit = f"{exchange.limit:g} s"
                if exchange.body_complete:
                    return ProblemError(ProblemType.TIMEOUT, f"no answer within {limit}: send less, or later")
                return ProblemError(ProblemType.BODY_TIMEOUT, f"the body was not complete within {limit}")
            _log.exception("request failed", extra=fields(path=exchange.route))
            return ProblemError(ProblemType.INTERNAL, "an unexpected error; the log has it under the request id")
        return None

    async def _answer(
        self, exchange: Exchange, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        if CROWDED in scope["state"]:
            raise ProblemError(
                ProblemType.TOO_MANY_CONNECTIONS,
                f"{self._settings.max_connections} connections are open and all have a request: try again in "
                f"{_RETRY_SECONDS} s",
                retry_after_seconds=_RETRY_SECONDS,
                headers={"connection": "close"},
            )
        if self._keys is not None and scope["path"] not in paths.WITHOUT_KEY:
            exchange.tenant = _authenticated(self._keys, headers)
        if (given := headers.get(_TIMEOUT_HEADER)) is not None:
            if not _MILLISECONDS.fullmatch(given):
                raise ProblemError(ProblemType.INPUT_INVALID, "x-cloze-timeout-ms: give whole milliseconds, 1 or more")
            exchange.shorten(int(given))
        if scope["method"] == "POST" and (paths.of_task(exchange.route) or scope["path"] == paths.FEEDBACK):
            _check_form(exchange.route, headers)
        body = await self._read_body(exchange, headers, receive)
        exchange.body_complete = True
        if scope["method"] == "POST" and (endpoint := self._endpoints.get(scope["path"])) is not None:
            await endpoint(exchange, headers, body, receive, send)
            return
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
        # Python reads no number of thousands of digits, zeros though they be.
        if declared.isdigit() and (len(declared) > _LENGTH_DIGITS_MAX or int(declared) > limit):
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
        if hosted := exchange.hosted or self._room.only:
            result += hosted.headers
        if paths.of_task(exchange.route):
            total = time.monotonic() - exchange.arrived
            result.append((b"server-timing", exchange.timing.header(total).encode()))
        if exchange.timing.cached is not None:
            result.append((b"x-cloze-cache", exchange.timing.cached.encode()))
        # While draining, the client's next request dials anew and finds a server that stays. What is left of a body
        # that came too slowly nobody wants.
        if self._lifecycle.state is State.DRAINING or exchange.status == 408:
            result.append((b"connection", b"close"))
        return result
