"""The operator's own HTTP port: metrics and probes."""

import time

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from cloze_operator.controller import RECONCILE_SECONDS, Controller
from cloze_operator.telemetry import QUEUE_DEPTH


def illness(controller: Controller, resync_seconds: float) -> str | None:
    """Why the process should be replaced; None for a healthy one."""
    stuck = controller.queue.longest_running()
    if stuck > 2 * RECONCILE_SECONDS:
        return f"a reconciliation has been running for {stuck:.0f} s"
    silent = time.monotonic() - controller.last_resync
    # An API server that is away is no reason to restart, and neither is a slow one.
    if silent > 10 * resync_seconds + 600:
        return f"the last resync is {silent:.0f} s ago"
    return None


async def serve(controller: Controller, port: int, resync_seconds: float) -> web.AppRunner:
    """Start serving. The caller cleans the runner up."""

    async def metrics(_: web.Request) -> web.Response:
        QUEUE_DEPTH.set(controller.queue.depth())
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: web.Request) -> web.Response:
        ill = illness(controller, resync_seconds)
        return web.Response(text=f"{ill or 'ok'}\n", status=503 if ill else 200)

    async def readyz(_: web.Request) -> web.Response:
        ready = controller.synced.is_set()
        return web.Response(text="ok\n" if ready else "not synced yet\n", status=200 if ready else 503)

    application = web.Application()
    application.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    # All addresses: in a pod the network policy, not the bind address, decides who may connect.
    await web.TCPSite(runner, "0.0.0.0", port).start()  # noqa: S104
    return runner
