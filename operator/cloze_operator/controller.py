"""The loop around one resource: observe, decide, act; and the workers and the resync that drive it."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from cloze_api.resources import KINDS
from cloze_operator.act import Actor, fields_of
from cloze_operator.cluster import Cluster, ClusterError
from cloze_operator.decide.fields import Object, dig
from cloze_operator.decide.figures import figures
from cloze_operator.decide.serving import decide_serving
from cloze_operator.decide.training import decide_training
from cloze_operator.decide.verdict import Verdict
from cloze_operator.observe.evidence import EvidenceObserver
from cloze_operator.observe.serving import ServingObserver
from cloze_operator.observe.training import TrainingObserver
from cloze_operator.queue import Queue
from cloze_operator.registry import AliasMovedError, Registry, RegistryError
from cloze_operator.reports import Reports
from cloze_operator.settings import Settings
from cloze_operator.telemetry import RECONCILE_DURATION, RECONCILES, RolloutGauges, StateGauge

logger = logging.getLogger(__name__)

#: One look at one resource; a call that hangs must not hold a worker for ever.
RECONCILE_SECONDS: Final = 90.0

#: State of a resource that nothing could be decided about yet.
_UNDECIDED: Final = "Pending"

#: Fields of the metadata that change with what others do to a resource.
_FACE: Final = ("uid", "generation", "labels", "annotations", "deletionTimestamp")

_CONFLICT: Final = 409


class Key(NamedTuple):
    """Which resource."""

    kind: str
    namespace: str
    object: str


class ConflictError(Exception):
    """What a decision was made from has changed: decide again."""


def _goes_on() -> bool:
    """Whether the current task hasn't been cancelled.

    The exception alone doesn't tell: what waits for several things at once (asyncio.gather) raises the error of one
    that failed just then, and the cancellation is lost.
    """
    task = asyncio.current_task()
    return task is None or not task.cancelling()


def utc_now() -> datetime:
    """The clock of the running operator."""
    return datetime.now(UTC)


class Controller:
    """Reconciles resources, one worker per resource at a time."""

    def __init__(
        self,
        cluster: Cluster,
        registry: Registry,
        reports: Reports,
        evidence: EvidenceObserver,
        settings: Settings,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.queue: Queue[Key] = Queue()
        self.synced = asyncio.Event()
        self.last_resync = time.monotonic()
        self._cluster = cluster
        self._settings = settings
        self._actor = Actor(cluster, registry, clock)
        self._training = TrainingObserver(cluster, registry, reports, settings.platform, clock)
        self._serving = ServingObserver(
            cluster,
            registry,
            reports,
            evidence,
            platform=settings.platform,
            clock=clock,
            namespaces=settings.namespaces,
        )
        self._states = StateGauge()
        self._rollouts = RolloutGauges()
        #: FineTuneJobs by the PretrainJob that they wait for.
        self._dependents: dict[Key, set[Key]] = {}
        #: What others have made of each resource, as last seen.
        self._faces: dict[Key, list[object]] = {}

    def notice(self, resource: Object) -> None:
        """Somebody tells of one of our resources."""
        metadata = resource["metadata"]
        key = Key(resource["kind"], metadata["namespace"], metadata["name"])
        base = dig(resource, "spec", "base", "pretrainJob", "name")
        if base:
            self._dependents.setdefault(Key("PretrainJob", key.namespace, base), set()).add(key)
        # The status is ours: what it says is no news, and no reason to retry earlier what has just failed.
        face = [metadata.get(field) for field in _FACE]
        self.queue.add(key, news=self._faces.get(key) != face)
        self._faces[key] = face
        for dependent in self._dependents.get(key, ()):
            self.queue.add(dependent, news=False)

    async def run(self) -> None:
        """Work and resync until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._resync(), name="resync")
            for number in range(self._settings.workers):
                group.create_task(self._work(), name=f"worker {number}")

    async def _resync(self) -> None:
        """Look at everything now and then, whatever the watches tell or fail to."""
        while _goes_on():
            try:
                for kind in KINDS:
                    for namespace in self._settings.namespaces or ("",):
                        for resource in await self._cluster.list(kind.kind_name(), namespace):
                            self.notice(resource)
                self.last_resync = time.monotonic()
                self.synced.set()
            except ClusterError as error:
                logger.warning("can't list the resources: %s", error)
            await asyncio.sleep(self._settings.resync_seconds if self.synced.is_set() else 1.0)

    async def _work(self) -> None:
        while _goes_on():
            key = await self.queue.get()
            result, again = "error", None
            with RECONCILE_DURATION.labels(key.kind).time():
                try:
                    again = await self._reconcile(key)
                    result = "success"
                except ConflictError as error:
                    logger.info("%s", error, extra=key._asdict())
                    result = "conflict"
                except Exception:
                    # Whatever went wrong with one resource must not end the worker: it is logged and tried again.
                    logger.exception("reconciliation failed", extra=key._asdict())
                finally:
                    RECONCILES.labels(key.kind, result).inc()
                    self.queue.done(key, failed=result != "success", again=again)

    async def _reconcile(self, key: Key) -> float | None:
        """Seconds until the next look; None when something will tell.

        Raises ConflictError when something has changed meanwhile, and what went wrong otherwise, which stands in the
        resource's status by then.
        """
        resource = await self._cluster.get(key.kind, key.namespace, key.object)
        if resource is None:
            self._forget(key)
            return None
        state = str(dig(resource, "status", "state") or _UNDECIDED)
        try:
            async with asyncio.timeout(RECONCILE_SECONDS):
                verdict, state = await self._decide(resource)
                await self._actor.act(resource, verdict, state)
        except AliasMovedError as error:
            raise ConflictError(str(error)) from error
        except RegistryError:
            # Its own condition tells of it.
            raise
        except ClusterError as error:
            if error.status == _CONFLICT:
                raise ConflictError(str(error)) from error
            await self._report(resource, error.reason, str(error), state)
            raise
        except TimeoutError:
            text = f"one look took longer than {RECONCILE_SECONDS:g} s: the API server or the registry is slow"
            await self._report(resource, "Timeout", text, state)
            raise
        except Exception as error:
            text = f"a mistake of the operator's, see its log: {type(error).__name__}: {error}"
            await self._report(resource, "InternalError", text, state)
            raise
        finally:
            self._states.show(key, state)
        return verdict.requeue

    async def _report(self, resource: Object, reason: str, message: str, state: str) -> None:
        try:
            await self._actor.report_failure(resource, reason, message, state)
        except ClusterError as error:
            logger.warning("the failure can't be shown in the status: %s", error, extra=fields_of(resource))

    async def _decide(self, resource: Object) -> tuple[Verdict, str]:
        if resource["kind"] == "ModelDeployment":
            snapshot = await self._serving.observe(resource)
            verdict, state = decide_serving(snapshot)
            metadata = resource["metadata"]
            self._rollouts.show((metadata["namespace"], metadata["name"]), figures(snapshot, verdict))
            return verdict, state
        return decide_training(await self._training.observe(resource))

    def _forget(self, key: Key) -> None:
        self._states.show(key, None)
        if key.kind == "ModelDeployment":
            self._rollouts.show((key.namespace, key.object), {})
        self._faces.pop(key, None)
        self.queue.forget(key)
        for dependents in self._dependents.values():
            dependents.discard(key)
