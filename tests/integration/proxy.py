"""A real HTTP proxy in front of the API server, which does harm on demand: the one place where faults are made up."""

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

_HOP_BY_HOP = ("Host", "Connection", "Transfer-Encoding", "Content-Length", "Content-Encoding", "Accept-Encoding")


@dataclass(frozen=True)
class Request:
    """One request, and when it came by the monotonic clock."""

    at: float
    method: str
    path: str
    is_watch: bool


@dataclass(frozen=True)
class Reply:
    """What is answered instead of forwarding."""

    status: int
    reason: str
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "reason": self.reason,
            "message": f"{self.reason}, says the test",
            "code": self.status,
        }


class Proxy:
    """Forwards to the API server with what the client sends, its token included.

    harm: asked about each request; what it returns is answered, None forwards.
    """

    def __init__(self, server: str, ca: str) -> None:
        self.harm: Callable[[Request], Reply | None] = lambda _: None
        self.requests: list[Request] = []
        self.address = ""
        self._server = server
        self._tls = ssl.create_default_context(cafile=ca)
        self._down = False
        self._streams: dict[web.StreamResponse, web.Request] = {}
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    @contextmanager
    def running(self) -> Iterator["Proxy"]:
        """Listen."""
        self._thread.start()
        assert self._up.wait(10)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Like an API server that restarts: all streams break, and no request gets an answer."""
        self._down = True
        self.break_streams()
        try:
            yield
        finally:
            self._down = False

    def watches(self) -> set[str]:
        """Paths of the watches that stream now."""
        return {request.path for request in list(self._streams.values())}

    def tell_watches(self, reply: Reply, plural: str = "") -> int:
        """Put an error into each watch (of a kind) that streams now, and end it. How many there were."""
        event = {"type": "ERROR", "object": reply.body()}
        line = json.dumps(event).encode() + b"\n"
        return asyncio.run_coroutine_threadsafe(self._tell(line, plural), self._loop).result(10)

    def break_streams(self) -> None:
        """End each watch that streams now, without a word."""
        self._loop.call_soon_threadsafe(self._abort)

    async def _tell(self, line: bytes, plural: str) -> int:
        streams = [item for item in self._streams.items() if item[1].path.endswith(plural)]
        for stream, request in streams:
            await stream.write(line)
            await stream.write_eof()
            assert request.transport
            request.transport.close()
        return len(streams)

    def _abort(self) -> None:
        for request in self._streams.values():
            if request.transport:
                request.transport.abort()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        application = web.Application(client_max_size=2**24)
        application.router.add_route("*", "/{path:.*}", self._handle)
        # What it doesn't ask for compressed needn't be said to be.
        plain = {"skip_auto_headers": ["Accept-Encoding"], "auto_decompress": False}
        async with aiohttp.ClientSession(**plain) as self._session:
            runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._up.set()
            await self._stop.wait()
            self._abort()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        seen = Request(time.monotonic(), request.method, request.path, request.query.get("watch") == "true")
        self.requests.append(seen)
        if self._down:
            assert request.transport
            request.transport.abort()
            return web.Response()
        if reply := self.harm(seen):
            return web.json_response(reply.body(), status=reply.status, headers=reply.headers)
        headers = {key: value for key, value in request.headers.items() if key not in _HOP_BY_HOP}
        timeout = aiohttp.ClientTimeout(total=None)
        url, data = f"{self._server}{request.raw_path}", await request.read() or None
        async with self._session.request(
            request.method, url, data=data, headers=headers, ssl=self._tls, timeout=timeout
        ) as answer:
            kept = {key: value for key, value in answer.headers.items() if key not in _HOP_BY_HOP}
            stream = web.StreamResponse(status=answer.status, headers=kept)
            # A client that was killed reads nothing any more.
            with suppress(ConnectionError):
                await stream.prepare(request)
                if seen.is_watch:
                    self._streams[stream] = request
                try:
                    async for chunk in answer.content.iter_any():
                        await stream.write(chunk)
                    await stream.write_eof()
                finally:
                    self._streams.pop(stream, None)
            return stream
