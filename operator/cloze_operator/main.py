"""`cloze-operator`: reconciles PretrainJobs, FineTuneJobs and ModelDeployments."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Coroutine
from typing import Any

from cloze_operator.cluster import Cluster, ClusterError, unfenced
from cloze_operator.controller import Controller, utc_now
from cloze_operator.endpoint import serve
from cloze_operator.lease import Lease, Place, identity
from cloze_operator.observe.evidence import EvidenceObserver
from cloze_operator.prometheus import Prometheus
from cloze_operator.registry import Registry
from cloze_operator.reports import Direct, Reports
from cloze_operator.settings import VARIABLES, Settings, SettingsError, read
from cloze_operator.telemetry import configure_logs
from cloze_operator.watch import watch

logger = logging.getLogger(__name__)

_DEFINITIONS_SECONDS = 5.0


def _parser() -> argparse.ArgumentParser:
    lines = [
        f"  {variable.name}\n      {variable.help}"
        + ("" if variable.default is None else f" (default: {variable.default or 'empty'})")
        for variable in VARIABLES
    ]
    return argparse.ArgumentParser(
        prog="cloze-operator",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Reconcile PretrainJobs, FineTuneJobs and ModelDeployments of the cluster that KUBECONFIG names, "
        "or of the one\nthat this pod runs in.",
        epilog="environment:\n" + "\n".join(lines) + "\n\nHTTP: /metrics, /healthz, /readyz.",
    )


async def _await_definitions(cluster: Cluster) -> None:
    """Wait until the API server knows our resources: kopf looks once, at its start."""
    while True:
        try:
            if await cluster.has_definitions():
                return
            logger.warning("the API server doesn't know the cloze.dev resources: install the definitions in crds/")
        except ClusterError as error:
            logger.warning("the API server doesn't answer: %s", error)
        await asyncio.sleep(_DEFINITIONS_SECONDS)


async def _first_of(*work: Coroutine[Any, Any, object]) -> None:
    """Wait for the first to end, end the others, and raise what it raised."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _reconcile(cluster: Cluster, controller: Controller, lease: Lease | None, settings: Settings) -> None:
    """Once this process leads, work until it is told to stop, or until something that must not fail has failed."""
    await _await_definitions(cluster)
    if lease is not None:
        await lease.acquire()
    scope = ", ".join(settings.namespaces) or "all namespaces"
    logger.info("started", extra={"scope": scope, "workers": settings.workers})
    # A standby hasn't synced for as long as it has waited.
    controller.last_resync = time.monotonic()
    await _first_of(controller.run(), watch(controller, settings))


def _prometheus(settings: Settings) -> Prometheus | None:
    """The Prometheus that judges canaries, if there is one."""
    if not settings.prometheus_url:
        return None
    return Prometheus(
        settings.prometheus_url,
        settings.prometheus_token_file,
        settings.prometheus_timeout_seconds,
        settings.prometheus_headers,
    )


async def operate(settings: Settings) -> None:
    """Run until a signal ends the process, or until something that must not fail has failed."""
    stopped = asyncio.Event()
    # As process 1 of a pod it would otherwise never hear them.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    lease = None
    if settings.leader_election:
        place = Place(
            namespace=settings.lease_namespace, name=settings.lease_name, identity=identity(settings.pod_name)
        )
        lease = Lease(place)
    fence = lease.fence if lease is not None else unfenced
    cluster = await Cluster.connect(fence=fence)
    registry = Registry(settings.platform.tracking_uri, fence=fence)
    reports = Reports(Direct())
    prometheus = _prometheus(settings)
    evidence = EvidenceObserver(prometheus, settings.gateway_counter, utc_now)
    controller = Controller(cluster, registry, reports, evidence, settings)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(cluster.close)
        stack.push_async_callback(registry.close)
        if prometheus is not None:
            stack.push_async_callback(prometheus.close)
        runner = await serve(controller, lease, settings.port, settings.resync_seconds)
        stack.push_async_callback(runner.cleanup)
        if lease is not None:
            stack.push_async_callback(asyncio.to_thread, lease.release)
        await _first_of(_reconcile(cluster, controller, lease, settings), stopped.wait())
    logger.info("stopped")


def main() -> None:
    """Entry point."""
    _parser().parse_args()
    try:
        settings = read()
    except SettingsError as error:
        sys.exit(f"cloze-operator: {error}")
    configure_logs(settings.log_level)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(operate(settings))
