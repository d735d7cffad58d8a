"""Follows training jobs and deployments until they are done, and shows how far they are."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from kubectl import condition, get
from rich.console import Console
from rich.live import Live
from rich.table import Table

# An unattended log gets a line for each change, but no more often than this.
QUIET_SECONDS = 10.0


class DemoError(Exception):
    """A stage of the demo failed; the message says which, and where to look."""


def _figures(resource: dict[str, Any]) -> tuple[str, str, str, str]:
    progress = resource.get("status", {}).get("progress") or {}
    loss, rate, eta = progress.get("loss"), progress.get("tokensPerSecond"), progress.get("etaSeconds")
    return (
        f"{progress.get('stage', '')} {progress.get('summary', '')}".strip(),
        "" if loss is None else f"{loss:.3f}",
        "" if rate is None else f"{rate:,.0f}",
        "" if eta is None else f"{eta // 60}:{eta % 60:02d}",
    )


def _explanation(resource: dict[str, Any]) -> str:
    """The message of the first condition that isn't true, while the object isn't running."""
    conditions = resource.get("status", {}).get("conditions", [])
    return next((entry.get("message", "") for entry in conditions if entry["status"] != "True"), "")


def _table(resources: Iterable[dict[str, Any]], started: float) -> Table:
    table = Table(title=f"{time.monotonic() - started:.0f} s", title_justify="left", box=None, pad_edge=False)
    for column in ("kind", "name", "state", "progress", "loss", "tokens/s", "ETA", ""):
        table.add_column(column, overflow="fold")
    for resource in resources:
        state = resource.get("status", {}).get("state", "")
        figures = _figures(resource)
        why = "" if state in ("Running", "Succeeded", "Ready") else _explanation(resource)
        table.add_row(resource["kind"], resource["metadata"]["name"], state, *figures, why)
    return table


def _line(resource: dict[str, Any]) -> str:
    progress, loss, rate, eta = _figures(resource)
    parts = [f"{resource['kind']}/{resource['metadata']['name']}", resource.get("status", {}).get("state", "")]
    parts += [progress, f"loss {loss}" if loss else "", f"{rate} tokens/s" if rate else "", f"ETA {eta}" if eta else ""]
    if not progress:
        parts.append(_explanation(resource))
    return "  ".join(part for part in parts if part)


def _check(resource: dict[str, Any]) -> None:
    if resource.get("status", {}).get("state") == "Failed":
        why = condition(resource, "Succeeded")
        name = f"{resource['kind'].lower()} {resource['metadata']['name']}"
        raise DemoError(f"{name} failed, {why.get('reason')}: {why.get('message')} (see `kubectl describe {name}`)")


def follow(namespace: str, goals: dict[tuple[str, str], str], timeout: float) -> dict[tuple[str, str], float]:
    """Wait until every object has reached its goal state.

    goals: state wanted, keyed by kind and name. timeout in seconds. Returns the seconds until each goal.
    Raises DemoError when one fails or time is up.
    """
    started = time.monotonic()
    reached: dict[tuple[str, str], float] = {}
    shown: dict[str, str] = {}
    spoke = 0.0
    console = Console()
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        while len(reached) < len(goals):
            resources = get(namespace, "pretrainjobs,finetunejobs,modeldeployments")
            for resource in resources:
                key = (resource["kind"], resource["metadata"]["name"])
                _check(resource)
                if key in goals and key not in reached and resource.get("status", {}).get("state") == goals[key]:
                    reached[key] = time.monotonic() - started
            if console.is_terminal:
                live.update(_table(resources, started))
            elif time.monotonic() - spoke > QUIET_SECONDS or len(reached) == len(goals):
                spoke = time.monotonic()
                for resource in resources:
                    line = _line(resource)
                    if shown.get(resource["metadata"]["name"] + resource["kind"]) != line:
                        shown[resource["metadata"]["name"] + resource["kind"]] = line
                        print(f"{spoke - started:6.0f} s  {line}", flush=True)
            if time.monotonic() - started > timeout:
                missing = ", ".join("/".join(key) for key in goals.keys() - reached.keys())
                raise DemoError(f"not done after {timeout:.0f} s: {missing}; see `kubectl describe -n {namespace}`")
            time.sleep(1)
    print(f"{time.monotonic() - started:6.0f} s  all done", flush=True)
    sys.stdout.flush()
    return reached
