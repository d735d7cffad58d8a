"""The least that an HTTP server in Python can do: a body of JSON in, the same out. uvicorn starlette_app:app."""

import json

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def echo(request: Request) -> Response:
    """Parse and write JSON, as every API does."""
    body = json.loads(await request.body())
    return Response(json.dumps(body), media_type="application/json")


async def ready(_: Request) -> Response:
    """Whoever waits for it may go on."""
    return Response()


app = Starlette(routes=[Route("/echo", echo, methods=["POST"]), Route("/", ready)])
