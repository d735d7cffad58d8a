"""kopf's part: watch streams of our resources and of their children, each event a key in the queue.

Only `kopf.on.event` handlers are registered: they put neither finalizers nor annotations on anybody's objects.
"""

import asyncio
import itertools
import logging
import signal
from collections.abc import Iterator, Mapping
from typing import Any, Final

import kopf

from cloze_api.names import GROUP, LABEL_KIND, LABEL_MANAGED_BY, LABEL_OWNER, MANAGED_BY, VERSION
from cloze_api.resources import KINDS
from cloze_operator.controller import Controller, Key
from cloze_operator.settings import Settings

logger = logging.getLogger(__name__)

_AGAIN_SECONDS: Final = 1.0

#: Children that tell of themselves. The others don't change by themselves: they are looked at with each resync.
_WATCHED: Final = (("batch", "v1", "jobs"), ("apps", "v1", "deployments"), ("", "v1", "pods"))

_KINDS: Final = frozenset(kind.kind_name() for kind in KINDS)


def key_of_child(labels: Mapping[str, str], namespace: str | None) -> Key | None:
    """The resource that a child belongs to, by its labels."""
    kind, name = labels.get(LABEL_KIND), labels.get(LABEL_OWNER)
    return Key(kind, namespace, name) if kind in _KINDS and name and namespace else None


def handlers(controller: Controller) -> kopf.OperatorRegistry:
    """kopf's registry with our handlers."""
    registry = kopf.OperatorRegistry()

    async def resource_changed(body: kopf.Body, **_: Any) -> None:
        controller.notice(dict(body))

    async def child_changed(labels: kopf.Labels, namespace: str | None, **_: Any) -> None:
        key = key_of_child(labels, namespace)
        if key is not None:
            controller.queue.add(key)

    for kind in KINDS:
        kopf.on.event(GROUP, VERSION, kind.plural, registry=registry)(resource_changed)
    for group, version, plural in _WATCHED:
        kopf.on.event(group, version, plural, registry=registry, labels={LABEL_MANAGED_BY: MANAGED_BY})(child_changed)

    @kopf.on.login(registry=registry)
    async def log_in(**options: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_kubeconfig(**options) or kopf.login_with_service_account(**options)

    return registry


class Backoffs:
    """Seconds between tries, without end: when the API server is back after an hour, it is noticed in seconds."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1.0, 2.0), itertools.repeat(4.0))


def kopf_settings() -> kopf.OperatorSettings:
    """No peering, no events of kopf's own, no discovery beyond what is served; streams that can't die unnoticed."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = Backoffs()
    for group, version, plural in _WATCHED:
        # Filtered by the API server, so that other people's pods cost neither traffic nor memory.
        settings.watching.label_selectors[group, version, plural] = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
    return settings


def hear(stopped: asyncio.Event) -> None:
    """Let the signals that end a process set the event. As process 1 of a pod it would otherwise never hear them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)


async def watch(controller: Controller, settings: Settings, stopped: asyncio.Event) -> None:
    """Watch until cancelled.

    What kopf takes for final isn't: an API server that starts or is overloaded answers a stream with 410, 401 or an
    error in its middle, too. The watches then begin anew, with a list, so that nothing is missed.
    """
    while True:
        others = asyncio.all_tasks()
        try:
            tasks = await kopf.spawn_tasks(
                registry=handlers(controller),
                settings=kopf_settings(),
                standalone=True,
                clusterwide=not settings.namespaces,
                namespaces=settings.namespaces,
            )
            # The last thing that kopf does there is to take the signals for itself.
            hear(stopped)
            await kopf.run_tasks(tasks, ignored=others)
        except Exception as error:  # noqa: BLE001 - its errors have no base of their own
            logger.warning("the watches have failed and begin anew: %s", error)
        else:
            # It returns when it is cancelled.
            return
        await asyncio.sleep(_AGAIN_SECONDS)
