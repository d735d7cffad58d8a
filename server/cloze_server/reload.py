"""Another artifact behind the same reference, without a gap.

A server looks at the digests of what it serves when it is asked to (SIGHUP), or every few seconds. Where one changed,
the new model is fetched, verified, loaded and warmed up beside the old one, takes its place between two requests, and
the old one is freed when its last request is answered. One that fails on the way is refused: the old one goes on.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field

from cloze_server import garbage, heap, logs
from cloze_server.cache import StoppedError
from cloze_server.exits import ExitCode, FatalError
from cloze_server.hosting import Hosted, Refusal, Room
from cloze_server.lifecycle import State
from cloze_server.logs import fields
from cloze_server.model import LoadedModel, Loader
from cloze_server.service import Service
from cloze_server.settings import Settings
from cloze_server.source import RegistryUnreachableError
from cloze_server.telemetry import Telemetry

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model comes from.

    digest: the digest of what the reference names now; None where it can't change. Raises FatalError, OSError and
    RegistryUnreachableError. load: gets it ready.
    """

    digest: Callable[[], str | None]
    load: Loader


@dataclass(frozen=True, slots=True)
class Reloading:
    """What a server needs for it. origins: in the order of its models. asked: gets an item to have it look now."""

    origins: Sequence[Origin]
    # `put` of this queue may be called by a signal handler, unlike that of an event or of another queue.
    asked: queue.SimpleQueue[bool] = field(default_factory=queue.SimpleQueue)


class Reloader:
    """Looks after one process's models in a thread of its own."""

    def __init__(self, room: Room, settings: Settings, reloading: Reloading, loop: asyncio.AbstractEventLoop) -> None:
        self._room = room
        self._settings = settings
        self._origins = reloading.origins
        self._asked = reloading.asked
        self._loop = loop
        self._stopped = False

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._watch, name="reload", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._stopped = True
        self._asked.put(False)

    def _watch(self) -> None:
        while not self._stopped:
            try:
                asked = self._asked.get(timeout=self._settings.reload_seconds or None)
            except queue.Empty:
                asked = False
            if self._room.lifecycle.state is not State.READY:
                # What is being loaded is as new as it gets.
                continue
            if self._settings.digest:
                if asked:
                    _log.info("the digest is pinned: there is nothing to reload")
                continue
            for index, origin in enumerate(self._origins):
                if self._look(index, origin, asked=asked):
                    garbage.set_aside()
                    heap.give_back()

    def _look(self, index: int, origin: Origin, *, asked: bool) -> bool:
        """Replace one model if it changed; whether it was.

        asked: try again what was refused before, and log that nothing changed.
        """
        hosted = self._room.hosted[index]
        former, found = hosted.service.model.digest, None
        try:
            found = origin.digest()
            if found is None or found == former:
                hosted.refused = None
                if asked:
                    _log.info("nothing to reload", extra=fields(digest=former))
                return False
            if not asked and hosted.refused is not None and hosted.refused.digest == found:
                return False
            _log.info("another artifact: it is loaded beside the present one", extra=fields(digest=found))
            model = origin.load()
            if model.digest != former:
                self._replace(index, hosted, model)
                return True
        except (StoppedError, CancelledError):
            # The process ends.
            pass
        except FatalError as error:
            self._refuse(hosted, Refusal(found or "", error.reason, str(error)))
        except (OSError, RegistryUnreachableError) as error:
            self._refuse(hosted, Refusal(found or "", "ReferenceUnavailable", str(error)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the former model goes on
            _log.exception("reloading failed")
            self._refuse(hosted, Refusal(found or "", "LoadFailed", f"{type(error).__name__}: see the log"))
        return False

    def _replace(self, index: int, former: Hosted, model: LoadedModel) -> None:
        """Warm the model up and let it take the other's place. Raises FatalError."""
        old = former.service.model
        if (model.name, model.version, model.task) != (old.name, old.version, old.task):
            message = (
                f"the artifact is now {model.name}/{model.version} ({model.task}), not {old.name}/{old.version} "
                f"({old.task}): start a server for it"
            )
            raise FatalError(ExitCode.ARTIFACT_INVALID, "ModelDiffers", message)
        telemetry = Telemetry(
            model.name,
            model.version,
            deployment=self._settings.deployment,
            revision=self._settings.revision,
            instruments=self._room.instruments,
        )
        service = Service(model, self._settings.of(model), telemetry, self._room.replies, self._room.turns)
        try:
            asyncio.run_coroutine_threadsafe(service.warm_up(), self._loop).result()
        except BaseException:
            service.close()
            raise
        new = Hosted(service, former.telemetry)
        asyncio.run_coroutine_threadsafe(self._swap(index, new, telemetry), self._loop).result()
        # Not before: two models at a time, never three.
        asyncio.run_coroutine_threadsafe(former.idle(), self._loop).result()
        former.service.close()
        _log.info("the former model is freed", extra=fields(digest=old.digest))

    async def _swap(self, index: int, hosted: Hosted, telemetry: Telemetry) -> None:
        """Between two requests. telemetry: counts what the new model does."""
        former = self._room.replace(index, hosted)
        old, new = former.service.model, hosted.service.model
        hosted.telemetry.replaced(old.digest, old.task)
        telemetry.bind(
            new.name, new.version, digest=new.digest, task=new.task, answers=hosted.service.handler.answers()
        )
        if self._room.only:
            logs.set_context(digest=new.digest)
        self._room.instruments.reloaded("loaded")
        _log.info("reloaded", extra=fields(digest=new.digest, former=old.digest))

    def _refuse(self, hosted: Hosted, refusal: Refusal) -> None:
        repeated, hosted.refused = hosted.refused == refusal, refusal
        if repeated:
            return
        self._room.instruments.reloaded("refused")
        _log.error(
            "not reloaded: the former model goes on",
            extra=fields(digest=refusal.digest, reason=refusal.reason, message=refusal.message),
        )
