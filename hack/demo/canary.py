"""Follows the canary of one version to its end, and shows how it goes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubectl import condition
from rich.console import Console
from watch import DemoError, Resource, look

#: A canary of the demo is judged in one or two minutes, of which its pods need a part to start.
TIMEOUT_SECONDS = 420.0

Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Decision:
    """How a rollout ended. promoted: else it was rolled back. reason, message: what the status says of a rollback."""

    promoted: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Course:
    """A rollout from the proposal of a version to the decision. steps: weights in per cent. seconds: until decided."""

    decision: Decision
    steps: tuple[int, ...]
    seconds: float


def decided(status: Status, version: str) -> Decision | None:
    """What was decided about a version; None while its rollout goes on."""
    if (status.get("stable") or {}).get("version") == version:
        return Decision(promoted=True)
    # The newest first; a version may have had several, with other settings.
    tried = next((one for one in status.get("revisions", []) if one["version"] == version), None)
    if tried and tried.get("role") == "Rejected" and not tried.get("weight"):
        return Decision(promoted=False, reason=tried["reason"], message=tried["message"])
    return None


def is_settled(status: Status) -> bool:
    """Whether a rollout is over for its pods, too: the stable version has all of them, and all are ready."""
    return status.get("state") in ("Ready", "RolledBack") and not status.get("rollout")


def is_held(status: Status, version: str) -> bool:
    """Whether the rollout of a version waits for a person; for a moment one from before may still do so."""
    tried = (status.get("rollout") or {}).get("canaryVersion") or (status.get("desired") or {}).get("version")
    return status.get("state") in ("Paused", "Blocked") and tried == version


def canary_weight(status: Status, version: str) -> int | None:
    """Per cent of the requests that a version gets as a canary, once that is in force."""
    rollout = status.get("rollout") or {}
    ours = rollout.get("canaryVersion") == version and rollout.get("state") == "CanaryStep"
    return int(rollout["weight"]) if ours else None


def describe(status: Status, version: str) -> str:
    """Where the rollout is, in a line; without figures that change all the time."""
    rollout = status.get("rollout") or {}
    if rollout.get("canaryVersion") != version:
        return f"version {(status.get('stable') or {}).get('version')} serves: {status.get('state')}"
    checks = ", ".join(f"{check['name']} {check['result'].lower()}" for check in rollout.get("checks", []))
    line = f"version {version}: {rollout['state']} {rollout['step']}, {rollout['weight']} % of the requests"
    return f"{line}; {checks}" if checks else line


def _figures(status: Status) -> str:
    checks = (status.get("rollout") or {}).get("checks", [])
    return "".join(f"\n  {check['name']}: {check['message']}" for check in checks)


def _status(namespace: str, name: str) -> tuple[Status, Resource]:
    resource = next(
        one for one in look(namespace) if (one["kind"], one["metadata"]["name"]) == ("ModelDeployment", name)
    )
    return resource.get("status", {}), resource


def follow_canary(namespace: str, name: str, version: str, began: float, console: Console) -> Course:
    """Watch a ModelDeployment until it is decided about a version and its pods have settled.

    began: when the version was proposed, on the monotonic clock. Raises DemoError when the rollout is held, or takes
    too long.
    """
    steps: list[int] = []
    course: Course | None = None
    shown = ""
    with console.status("") as live:
        while True:
            status, resource = _status(namespace, name)
            seconds = time.monotonic() - began
            weight = canary_weight(status, version)
            if weight is not None and weight not in steps:
                steps.append(weight)
            line = describe(status, version)
            if line != shown:
                shown = line
                console.print(f"{seconds:6.0f} s  {line}", markup=False, highlight=False, soft_wrap=True)
            live.update(f"{line}{_figures(status)}")
            if course is None and (decision := decided(status, version)):
                course = Course(decision, (*steps, 100) if decision.promoted else tuple(steps), seconds)
            if course and is_settled(status):
                return course
            if is_held(status, version):
                why = condition(resource, "Progressing")
                raise DemoError(f"the rollout of version {version} is held: {why.get('message')}")
            if seconds > TIMEOUT_SECONDS:
                raise DemoError(
                    f"the rollout of version {version} isn't over after {TIMEOUT_SECONDS:.0f} s ({line}); "
                    f"`kubectl -n {namespace} describe modeldeployment {name}` says more"
                )
            time.sleep(0.5)
