"""The pages for people: the playground at `/`, and the reference of the API at `/docs`.

Each is one document that holds its styles and its script, so that nothing else is fetched. Its policy names the two by
their hashes: what gets into a page by any other way, a browser doesn't run.
"""

import base64
import hashlib
from functools import partial
from importlib.resources import files

from fastapi import APIRouter, Response

from cloze_server import paths

# What a page has beside its own style.
_BASE = "base.css"


def page(name: str) -> tuple[bytes, str]:
    """A page, and its content security policy (https://www.w3.org/TR/CSP3/)."""
    folder = files(__name__)
    style = "".join((folder / each).read_text(encoding="utf-8") for each in (_BASE, f"{name}.css"))
    script = (folder / f"{name}.js").read_text(encoding="utf-8")
    frame = (folder / f"{name}.html").read_text(encoding="utf-8")
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )
    return frame.replace("/*style*/", style).replace("/*script*/", script).encode(), policy


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def build_router() -> APIRouter:
    """The pages' routes."""
    router = APIRouter(include_in_schema=False)
    for path, name in ((paths.PLAYGROUND, "playground"), (paths.REFERENCE, "reference")):
        content, policy = page(name)
        headers = {
            "content-security-policy": policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            # Asked for anew after an upgrade.
            "cache-control": "no-cache",
        }
        router.add_api_route(path, partial(_reply, content, headers), methods=["GET"])
    return router


async def _reply(content: bytes, headers: dict[str, str]) -> Response:
    return Response(content, headers=headers, media_type="text/html")
