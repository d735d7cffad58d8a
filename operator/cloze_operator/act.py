"""Carries a verdict out: every write is idempotent, so doing half of it and coming back is fine."""

import hashlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cloze_api.names import ANNOTATION_ROLLOUT, API_VERSION, ERROR_FIELD_MANAGER, FIELD_MANAGER
from cloze_operator.cluster import Cluster, ClusterError
from cloze_operator.decide.fields import Object, condition, dig, format_time, is_going
from cloze_operator.decide.verdict import (
    RECONCILE_FAILED,
    Event,
    Finding,
    TagChange,
    Verdict,
    event_of,
    render_condition,
    render_status,
    transition_events,
)
from cloze_operator.desired.metadata import Manifest
from cloze_operator.registry import AliasMovedError, Registry, RegistryError
from cloze_operator.telemetry import EVENT_ERRORS, JOB_FAILURES, ROLLOUTS

logger = logging.getLogger(__name__)

_NOTE_LIMIT: Final = 1024


@dataclass(frozen=True, slots=True)
class Actor:
    """Everything that writes."""

    cluster: Cluster
    registry: Registry
    clock: Callable[[], datetime]

    async def act(self, resource: Object, verdict: Verdict, state: str) -> None:
        """Carry a verdict out, in the order in which it may be interrupted.

        Raises ClusterError, RegistryError or AliasMovedError: the resource is then to be looked at again. What the
        registry refused stands in the status by then.
        """
        if is_going(resource):
            return
        metadata, fields = resource["metadata"], fields_of(resource)
        namespace = metadata["namespace"]
        if verdict.delete_resource:
            logger.info("deleting after ttlSecondsAfterFinished", extra=fields)
            await self.cluster.delete(resource["kind"], namespace, metadata["name"], metadata["uid"])
            return
        for target in verdict.delete:
            await self.cluster.delete(target.kind, namespace, target.name, target.uid, with_pods=target.with_pods)
        await self._provide(resource, verdict, state)
        if verdict.remember:
            # After what it names, and only over the record that the decision was made from.
            await self.cluster.apply(verdict.remember)
            logger.info("rollout goes on: %s", verdict.remember["data"], extra=fields)
        if verdict.ended:
            ROLLOUTS.labels(namespace, metadata["name"], verdict.ended).inc()
        if verdict.obeyed:
            await self.cluster.annotate(resource, ANNOTATION_ROLLOUT, None)
        if verdict.tag:
            await self._tag(resource, verdict.tag)
        refusal: Exception | None = None
        if move := verdict.alias:
            try:
                await self.registry.move(move)
                logger.info("alias %s of %s: version %s", move.alias, move.model, move.version, extra=fields)
            except AliasMovedError as error:
                refusal = error
            except RegistryError as error:
                refusal = error
                verdict = verdict.find(move.condition, "False", "AliasRefused", str(error))
        if not verdict.start:
            await self._write_status(resource, verdict, state)
        if condition(resource, RECONCILE_FAILED):
            await self._apply_status(resource, {}, ERROR_FIELD_MANAGER)
        await self._tell(resource, verdict)
        if refusal:
            raise refusal

    async def _tag(self, resource: Object, change: TagChange) -> None:
        """Set a tag. What the registry refuses is tried again with the next look: nothing waits for it."""
        try:
            await self.registry.tag(change)
            logger.warning("tagged %s version %s", change.model, change.version, extra=fields_of(resource))
        except RegistryError as error:
            logger.warning("can't tag %s version %s: %s", change.model, change.version, error)

    async def _provide(self, resource: Object, verdict: Verdict, state: str) -> None:
        """Make the children. A run starts when all that it needs is there and nothing but the Job is missing."""
        jobs = [manifest for manifest in verdict.apply if manifest["kind"] == "Job"]
        for manifest in verdict.apply:
            if manifest not in jobs:
                await self._apply(resource, manifest)
        if verdict.start:
            for manifest in jobs:
                # A Job that the API server refuses must not freeze the spec that has to be corrected.
                await self.cluster.apply(manifest, dry_run=True)
            await self._write_status(resource, verdict, state, guarded=True)
        for manifest in jobs:
            await self._apply(resource, manifest)
        for change in verdict.change:
            await self.cluster.change(resource["metadata"]["namespace"], change.target, change.spec)

    async def _apply(self, resource: Object, manifest: Manifest) -> None:
        logger.info("applying %s %s", manifest["kind"], manifest["metadata"]["name"], extra=fields_of(resource))
        await self.cluster.apply(manifest)

    async def report_failure(self, resource: Object, reason: str, message: str, state: str) -> None:
        """Show on the resource itself that it couldn't be reconciled; the next success takes it away.

        Whatever else the status says by now is left as it is. Only one that says nothing yet is given a state.
        """
        found = Finding("True", reason, message[:_NOTE_LIMIT])
        entry = render_condition(resource, RECONCILE_FAILED, found, self.clock())
        if entry == condition(resource, RECONCILE_FAILED):
            return
        first = {} if dig(resource, "status", "state") else {"state": state}
        await self._apply_status(resource, {**first, "conditions": [entry]}, ERROR_FIELD_MANAGER)
        if event := event_of(resource, RECONCILE_FAILED, found):
            await self._record(resource, event)

    async def _write_status(self, resource: Object, verdict: Verdict, state: str, *, guarded: bool = False) -> None:
        status = render_status(resource, verdict, state, self.clock())
        old = dict(resource.get("status") or {})
        old["conditions"] = [entry for entry in old.get("conditions") or () if entry["type"] != RECONCILE_FAILED]
        if status != old:
            await self._apply_status(resource, status, FIELD_MANAGER, guarded=guarded)

    async def _apply_status(self, resource: Object, status: Object, manager: str, *, guarded: bool = False) -> None:
        # The uid: what is true of this resource may be false of another one of its name.
        keys = ("name", "namespace", "uid", *(("resourceVersion",) if guarded else ()))
        metadata = {key: resource["metadata"][key] for key in keys}
        body = {"apiVersion": API_VERSION, "kind": resource["kind"], "metadata": metadata, "status": status}
        await self.cluster.apply(body, "status", manager=manager)

    async def _tell(self, resource: Object, verdict: Verdict) -> None:
        if verdict.failure is not None:
            JOB_FAILURES.labels(resource["kind"], verdict.failure).inc()
            failed = verdict.findings["Succeeded"]
            logger.error("failed for good: %s: %s", failed.reason, failed.message, extra=fields_of(resource))
        for event in (*verdict.events, *transition_events(resource, verdict)):
            await self._record(resource, event)

    async def _record(self, resource: Object, event: Event) -> None:
        """Create an event. One that can't be had is counted and missed: what it tells stands in the status too."""
        try:
            await self.cluster.record(event_manifest(resource, event, self.clock()))
        except ClusterError as error:
            EVENT_ERRORS.inc()
            logger.warning("no event %s: %s", event.reason, error, extra=fields_of(resource))


def fields_of(resource: Object) -> dict[str, str]:
    """Which resource, for a log line."""
    metadata = resource["metadata"]
    return {"kind": resource["kind"], "namespace": metadata["namespace"], "object": metadata["name"]}


def event_manifest(resource: Object, event: Event, now: datetime) -> Manifest:
    """A core/v1 Event. Its name is made from what it says, so that what happens again is counted in one event."""
    metadata = resource["metadata"]
    text = "\n".join((metadata["uid"], event.type, event.reason, event.message))
    moment = format_time(now)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{hashlib.sha256(text.encode()).hexdigest()[:16]}",
            "namespace": metadata["namespace"],
        },
        "involvedObject": {
            "apiVersion": resource["apiVersion"],
            "kind": resource["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:_NOTE_LIMIT],
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
        "reportingInstance": socket.gethostname(),
    }
