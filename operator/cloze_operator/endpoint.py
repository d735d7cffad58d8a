"""The operator's own HTTP port: metrics and probes."""

import time
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from cloze_operator.controller import RECONCILE_SECONDS, Controller
from cloze_operator.lease import Lease
from cloze_operator.telemetry import QUEUE_DEPTH

#: The lease's thread tells that it lives every few seconds, whatever the API server does.
_LEASE_SECONDS: Final = 60.0


def illness(controller: Controller, lease: Lease | None, resync_seconds: float) -> str | None:
    """Why the process should be replaced; None for a healthy one."""
    if lease is not None:
        if lease.silence() > _LEASE_SECONDS:
            return f"nobody has looked at the lease for {lease.silence():.0f} s"
        if not lease.is_held:
            return None
    stuck = controller.queue.longest_running()
    if stuck > 2 * RECONCILE_SECONDS:
        return f"a reconciliation has been running for {stuck:.0f} s"
    silent = time.monotonic() - controller.last_resync
    # An API server that is away is no reason to restart, and neither is a slow one.
    if silent > 10 * resync_seconds + 600:
        return f"the last resync is {silent:.0f} s ago"
    return None


def readiness(controller: Controller, lease: Lease | None) -> tuple[bool, str]:
    """Whether the process does its part, and which: a standby's is to wait."""
    if lease is not None and not lease.is_held:
        return (True, "standby") if lease.has_looked else (False, "the lease can't be read yet")
    return (True, "ok") if controller.synced.is_set() else (False, "not synced yet")


async def serve(controller: Controller, lease: Lease | None, port: int, resync_seconds: float) -> web.AppRunner:
    """Start serving. The caller cleans the runner up. lease: None without leader election."""

    async def metrics(_: web.Request) -> web.Response:
        QUEUE_DEPTH.set(controller.queue.depth())
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: web.Request) -> web.Response:
        ill = illness(controller, lease, resync_seconds)
        return web.Response(text=f"{ill or 'ok'}\n", status=503 if ill else 200)

    async def readyz(_: web.Request) -> web.Response:
        ready, text = readiness(controller, lease)
        return web.Response(text=f"{text}\n", status=200 if ready else 503)

    application = web.Application()
    application.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    # All addresses: in a pod the network policy, not the bind address, decides who may connect.
    await web.TCPSite(runner, "0.0.0.0", port).start()  # noqa: S104
    return runner
