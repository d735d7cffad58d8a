"""Carries a verdict out: every write is idempotent, so doing half of it and coming back is fine."""

import hashlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cloze_api.names import API_VERSION, FIELD_MANAGER
from cloze_operator.cluster import Cluster
from cloze_operator.decide.fields import Object, format_time, is_going
from cloze_operator.decide.verdict import (
    RECONCILE_FAILED,
    Event,
    Finding,
    Verdict,
    previous_findings,
    render_status,
    transition_events,
)
from cloze_operator.desired.metadata import Manifest
from cloze_operator.registry import Registry
from cloze_operator.telemetry import JOB_FAILURES

logger = logging.getLogger(__name__)

_NOTE_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class Actor:
    """Everything that writes."""

    cluster: Cluster
    registry: Registry
    clock: Callable[[], datetime]

    async def act(self, resource: Object, verdict: Verdict, state: str) -> None:
        """Carry a verdict out, in the order in which it may be interrupted.

        Raises ClusterError, RegistryError or AliasMovedError: the resource is then to be looked at again.
        """
        metadata = resource["metadata"]
        namespace = metadata["namespace"]
        if is_going(resource):
            return
        if verdict.delete_resource:
            logger.info("deleting after ttlSecondsAfterFinished", extra=_fields(resource))
            await self.cluster.delete(resource["kind"], namespace, metadata["name"], metadata["uid"])
            return
        if verdict.start:
            await self._write_status(resource, verdict, state, guarded=True)
        for target in verdict.delete:
            await self.cluster.delete(target.kind, namespace, target.name, target.uid)
        for manifest in verdict.apply:
            logger.info("applying %s %s", manifest["kind"], manifest["metadata"]["name"], extra=_fields(resource))
            await self.cluster.apply(manifest)
        for change in verdict.change:
            await self.cluster.change(namespace, change.target, change.spec)
        if verdict.alias is not None:
            await self.registry.move(verdict.alias)
            move = verdict.alias
            logger.info("alias %s of %s: version %s", move.alias, move.model, move.version, extra=_fields(resource))
        if not verdict.start:
            await self._write_status(resource, verdict, state)
        await self._tell(resource, verdict)

    async def report_failure(self, resource: Object, reason: str, message: str) -> None:
        """Show on the resource itself that it couldn't be reconciled; the next success takes it away."""
        findings = previous_findings(resource)
        findings[RECONCILE_FAILED] = Finding("True", reason, message[:_NOTE_LIMIT])
        status = {key: value for key, value in (resource.get("status") or {}).items() if key != "conditions"}
        verdict = Verdict(findings=findings, status=status)
        await self._write_status(resource, verdict, str(status.get("state", "")))

    async def _write_status(self, resource: Object, verdict: Verdict, state: str, *, guarded: bool = False) -> None:
        status = render_status(resource, verdict, state, self.clock())
        if status == resource.get("status"):
            return
        metadata = {key: resource["metadata"][key] for key in ("name", "namespace")}
        if guarded:
            metadata["resourceVersion"] = resource["metadata"]["resourceVersion"]
        await self.cluster.apply(
            {"apiVersion": API_VERSION, "kind": resource["kind"], "metadata": metadata, "status": status}, "status"
        )

    async def _tell(self, resource: Object, verdict: Verdict) -> None:
        if verdict.failure is not None:
            JOB_FAILURES.labels(resource["kind"], verdict.failure).inc()
            failed = verdict.findings["Succeeded"]
            logger.error("failed for good: %s: %s", failed.reason, failed.message, extra=_fields(resource))
        for event in (*verdict.events, *transition_events(resource, verdict)):
            await self.cluster.create_event(_event(resource, event, self.clock()))


def _fields(resource: Object) -> dict[str, Any]:
    metadata = resource["metadata"]
    return {"kind": resource["kind"], "namespace": metadata["namespace"], "object": metadata["name"]}


def _event(resource: Object, event: Event, now: datetime) -> Manifest:
    """A core/v1 Event. Its name is made from what it says, so the same thing is said once."""
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
