"""The end-to-end tests' edge to the cluster: kubectl, conditions awaited, port-forwards."""

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Resource = dict[str, Any]
T = TypeVar("T")


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Standard output of one call; fails the test with kubectl's own words."""
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def apply(namespace: str, *resources: Resource) -> None:
    """Apply objects in a namespace."""
    _send("apply", namespace, resources)


def create(namespace: str, *resources: Resource) -> None:
    """Create objects that are too large for the annotation of an apply, or have what the server's apply refuses: it
    reads YAML, in which a mail's DEL may not be.
    """
    _send("create", namespace, resources)


def _send(verb: str, namespace: str, resources: Sequence[Resource]) -> None:
    body = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(resources)})
    # JSON takes it as it is, and kubectl reads YAML, too.
    kubectl("--namespace", namespace, verb, "--filename", "-", stdin=body.replace("\x7f", "\\u007f"))


def get(namespace: str, kind: str, name: str) -> Resource:
    """One object."""
    found: Resource = json.loads(kubectl("--namespace", namespace, "get", kind, name, "--output", "json"))
    return found


def items(namespace: str, kinds: str, selector: str = "") -> list[Resource]:
    """Objects of these kinds, by label."""
    arguments = ["--namespace", namespace, "get", kinds, "--output", "json", "--selector", selector]
    found: list[Resource] = json.loads(kubectl(*arguments))["items"]
    return found


def condition(resource: Resource, kind: str) -> Resource:
    """The condition of this type; an empty one when there is none yet."""
    conditions = resource.get("status", {}).get("conditions", [])
    return next((entry for entry in conditions if entry["type"] == kind), {})


def until(look: Callable[[], T], wanted: Callable[[T], bool], timeout: float, what: str) -> T:
    """Look again until what is seen is wanted. timeout in seconds."""
    deadline = time.monotonic() + timeout
    while not wanted(seen := look()):
        assert time.monotonic() < deadline, (
            f"{what}: not within {timeout:.0f} s; last seen: {json.dumps(seen, default=str)}"
        )
        time.sleep(0.5)
    return seen


def state(resource: Resource) -> str:
    """The derived state."""
    return str(resource.get("status", {}).get("state", ""))


def is_ready(pod: Resource) -> bool:
    """Whether a pod gets traffic."""
    return condition(pod, "Ready").get("status") == "True" and "deletionTimestamp" not in pod["metadata"]


def finished(namespace: str, kind: str, name: str, timeout: float) -> Resource:
    """The training job when it has succeeded; fails the test at once when it fails."""

    def wanted(resource: Resource) -> bool:
        assert state(resource) != "Failed", condition(resource, "Succeeded")
        return state(resource) == "Succeeded"

    return until(lambda: get(namespace, kind, name), wanted, timeout, f"{kind} {name} succeeds")


@contextlib.contextmanager
def forwarded(namespace: str, service: str, port: int) -> Iterator[str]:
    """Base URL of a Service, or of pod/NAME, on this machine while the block runs."""
    target = service if "/" in service else f"service/{service}"
    command = ["kubectl", "--namespace", namespace, "port-forward", target, f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            match = re.search(r"127\.0\.0\.1:(\d+)", line)
            assert match, f"port-forward to {service} didn't start: {line!r}"
            yield f"http://127.0.0.1:{match[1]}"
        finally:
            process.terminate()
