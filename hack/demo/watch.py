"""Follows training jobs and deployments until they are done, and shows how far they are."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kubectl import condition, get
from rich.console import Console
from rich.live import Live
from rich.table import Table

# An unattended log gets a line for each change, but no more often than this.
QUIET_SECONDS = 10.0
# A look that fails is repeated: an API server may be away for a moment.
PATIENCE = 10

Resource = dict[str, Any]
Key = tuple[str, str]


class DemoError(Exception):
    """A stage of the demo failed; the message says which, and where to look."""


def _figures(resource: Resource) -> tuple[str, str, str, str]:
    progress = resource.get("status", {}).get("progress") or {}
    loss, rate, eta = progress.get("loss"), progress.get("tokensPerSecond"), progress.get("etaSeconds")
    return (
        f"{progress.get('stage', '')} {progress.get('summary', '')}".strip(),
        "" if loss is None else f"{loss:.3f}",
        "" if rate is None else f"{rate:,.0f}",
        "" if eta is None else f"{eta // 60}:{eta % 60:02d}",
    )


def _explanation(resource: Resource) -> str:
    """The message of the first condition that isn't true, while the object isn't running."""
    conditions = resource.get("status", {}).get("conditions", [])
    return next((entry.get("message", "") for entry in conditions if entry["status"] != "True"), "")


def _table(resources: Iterable[Resource], started: float) -> Table:
    table = Table(title=f"{time.monotonic() - started:.0f} s", title_justify="left", box=None, pad_edge=False)
    for column in ("kind", "name", "state", "progress", "loss", "tokens/s", "ETA", ""):
        table.add_column(column, overflow="fold")
    for resource in resources:
        state = resource.get("status", {}).get("state", "")
        figures = _figures(resource)
        why = "" if state in ("Running", "Succeeded", "Ready") else _explanation(resource)
        table.add_row(resource["kind"], resource["metadata"]["name"], state, *figures, why)
    return table


def _line(resource: Resource) -> str:
    progress, loss, rate, eta = _figures(resource)
    parts = [f"{resource['kind']}/{resource['metadata']['name']}", resource.get("status", {}).get("state", "")]
    parts += [progress, f"loss {loss}" if loss else "", f"{rate} tokens/s" if rate else "", f"ETA {eta}" if eta else ""]
    if not progress:
        parts.append(_explanation(resource))
    return "  ".join(part for part in parts if part)


def succeeded(resource: Resource) -> bool:
    """Goal of a training job."""
    return bool(resource.get("status", {}).get("state") == "Succeeded")


def serving(version: str) -> Callable[[Resource], bool]:
    """Goal of a deployment: it is ready, and with this version, not with one from before."""

    def reached(resource: Resource) -> bool:
        status = resource.get("status", {})
        return bool(status.get("state") == "Ready" and (status.get("desired") or {}).get("version") == version)

    return reached


def _check(namespace: str, resource: Resource) -> None:
    if resource.get("status", {}).get("state") == "Failed":
        why = condition(resource, "Succeeded")
        name = f"{resource['kind'].lower()} {resource['metadata']['name']}"
        raise DemoError(
            f"{name} failed, {why.get('reason')}: {why.get('message')} (see `kubectl -n {namespace} describe {name}`)"
        )


def look(namespace: str) -> list[Resource]:
    """Jobs and deployments of a namespace. Raises RuntimeError when the API server stays away."""
    for attempt in range(PATIENCE):
        try:
            return get(namespace, "pretrainjobs,finetunejobs,modeldeployments")
        except RuntimeError:
            if attempt == PATIENCE - 1:
                raise
            time.sleep(1)
    raise AssertionError("unreachable")


def follow(namespace: str, goals: Mapping[Key, Callable[[Resource], bool]], timeout: float) -> dict[Key, Resource]:
    """Wait until every object has reached its goal, and return the objects as they were then.

    goals: what is waited for, by kind and name. timeout in seconds.
    Raises DemoError when one of them fails or time is up.
    """
    started = time.monotonic()
    reached: dict[Key, Resource] = {}
    shown: dict[Key, str] = {}
    spoke = 0.0
    console = Console()
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        while True:
            seen = {(resource["kind"], resource["metadata"]["name"]): resource for resource in look(namespace)}
            for key in goals.keys() & seen.keys():
                _check(namespace, seen[key])
                if key not in reached and goals[key](seen[key]):
                    reached[key] = seen[key]
            if console.is_terminal:
                live.update(_table(seen.values(), started))
            elif time.monotonic() - spoke > QUIET_SECONDS or len(reached) == len(goals):
                spoke = time.monotonic()
                for key, resource in seen.items():
                    line = _line(resource)
                    if shown.get(key) != line:
                        shown[key] = line
                        print(f"{spoke - started:6.0f} s  {line}", flush=True)
            if len(reached) == len(goals):
                break
            if time.monotonic() - started > timeout:
                missing = sorted("/".join(key) for key in goals.keys() - reached.keys())
                raise DemoError(
                    f"not done after {timeout:.0f} s: {', '.join(missing)}; "
                    f"`kubectl -n {namespace} describe {missing[0].lower()}` says more"
                )
            time.sleep(1)
    print(f"{time.monotonic() - started:6.0f} s  all done", flush=True)
    return reached
