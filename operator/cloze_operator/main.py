"""`cloze-operator`: reconciles PretrainJobs, FineTuneJobs and ModelDeployments."""

import argparse
import asyncio
import contextlib
import logging
import sys

from cloze_operator.cluster import Cluster, ClusterError
from cloze_operator.controller import Controller
from cloze_operator.endpoint import serve
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


async def operate(settings: Settings) -> None:
    """Run until a signal ends kopf, or until something that must not fail has failed."""
    cluster = await Cluster.connect()
    registry = Registry(settings.platform.tracking_uri)
    reports = Reports(Direct())
    controller = Controller(cluster, registry, reports, settings)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(cluster.close)
        stack.push_async_callback(registry.close)
        runner = await serve(controller, settings.port, settings.resync_seconds)
        stack.push_async_callback(runner.cleanup)
        await _await_definitions(cluster)
        scope = ", ".join(settings.namespaces) or "all namespaces"
        logger.info("started", extra={"scope": scope, "workers": settings.workers})
        watching = asyncio.create_task(watch(controller, settings), name="watch")
        working = asyncio.create_task(controller.run(), name="controller")
        done, pending = await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()
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
