"""kopf's part: watch streams of our resources and of their children, each event a key in the queue.

Only `kopf.on.event` handlers are registered: they put neither finalizers nor annotations on anybody's objects.
"""

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import kopf

from cloze_api.names import GROUP, LABEL_KIND, LABEL_MANAGED_BY, LABEL_OWNER, MANAGED_BY, VERSION
from cloze_api.resources import KINDS
from cloze_operator.controller import Controller, Key
from cloze_operator.settings import Settings

logger = logging.getLogger(__name__)

_AGAIN_SECONDS: Final = 1.0
#: For the tasks of watches that have failed or are no longer wanted; what hangs beyond it is left behind.
_END_SECONDS: Final = 5.0

#: Children that tell of themselves. The others don't change by themselves: they are looked at with each resync.
_WATCHED: Final = (("batch", "v1", "jobs"), ("apps", "v1", "deployments"), ("", "v1", "pods"))

_KINDS: Final = frozenset(kind.kind_name() for kind in KINDS)


def key_of_child(labels: Mapping[str, str], namespace: str | None) -> Key | None:
    """The resource that a child belongs to, by its labels."""
    kind, name = labels.get(LABEL_KIND), labels.get(LABEL_OWNER)
    return Key(kind, namespace, name) if kind in _KINDS and name and namespace else None


def handlers(controller: Controller, tell: Callable[..., object]) -> kopf.OperatorRegistry:
    """kopf's registry with our handlers.

    tell: calls what it is given where the controller lives, like `call_soon_threadsafe` of its event loop.
    """
    registry = kopf.OperatorRegistry()

    async def resource_changed(body: kopf.Body, **_: Any) -> None:
        tell(controller.notice, dict(body))

    async def child_changed(labels: kopf.Labels, namespace: str | None, **_: Any) -> None:
        key = key_of_child(labels, namespace)
        if key is not None:
            tell(controller.queue.add, key)

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
    # Without it kopf kills the process ten minutes after watches that have failed, though others run by then.
    settings.process.ultimate_exiting_timeout = None
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


class Streams:
    """One life of kopf, in a thread and an event loop of its own.

    When one of its watches fails, kopf ends all tasks of its event loop that began after it, whoever owns them, and
    waits for them without end, its own among them that can no longer be woken. So none of ours is in its loop, and it
    is not asked to end itself.
    """

    def __init__(self, registry: kopf.OperatorRegistry, namespaces: Collection[str]) -> None:
        self._registry, self._namespaces = registry, namespaces
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._owner = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._owner.create_future()
        # Whatever hangs in it must not keep the process.
        threading.Thread(target=self._live, name="watches", daemon=True).start()

    async def run(self) -> None:
        """Wait until they fail; raises what they failed with. When cancelled, ends them."""
        try:
            await asyncio.shield(self._ended)
        finally:
            if not self._ended.done():
                self._ended.add_done_callback(asyncio.Future.exception)
                # The thread may have closed it in this moment, and an error would take the cancellation's place.
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._stopped.set)
                await asyncio.wait([self._ended], timeout=2 * _END_SECONDS)

    def _live(self) -> None:
        error: Exception | None = None
        try:
            self._loop.run_until_complete(self._watch())
        except asyncio.CancelledError:
            error = RuntimeError("kopf has cancelled one of its tasks")
        except Exception as failure:  # noqa: BLE001 - kopf's errors have no base of their own
            error = failure
        finally:
            try:
                self._clear()
            finally:
                # Whatever happens, the owner must hear of the end, or there would never be watches again. It may have
                # gone itself, where watches hang beyond the process' own end.
                with suppress(RuntimeError):
                    self._owner.call_soon_threadsafe(self._end, error)

    def _end(self, error: Exception | None) -> None:
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    async def _watch(self) -> None:
        tasks = await kopf.spawn_tasks(
            registry=self._registry,
            settings=kopf_settings(),
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
        )
        stopped = asyncio.create_task(self._stopped.wait())
        done, _ = await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task

    def _clear(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=_END_SECONDS))
        if not asyncio.all_tasks(self._loop):
            self._loop.close()


async def watch(controller: Controller, settings: Settings) -> None:
    """Watch until cancelled.

    What kopf takes for final isn't: an API server that starts or is overloaded answers a stream with 410, 401 or an
    error in its middle, too. The watches then begin anew, with a list, so that nothing is missed.
    """
    tell = asyncio.get_running_loop().call_soon_threadsafe
    while True:
        try:
            await Streams(handlers(controller, tell), settings.namespaces).run()
        except Exception as error:  # noqa: BLE001 - kopf's errors have no base of their own
            logger.warning("the watches have failed and begin anew: %s", error)
        else:
            logger.warning("the watches have ended and begin anew")
        await asyncio.sleep(_AGAIN_SECONDS)
