"""A thin edge to the cluster: kubectl, with the KUBECONFIG of the environment."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Standard output of one call. Raises RuntimeError with kubectl's own words."""
    if shutil.which("kubectl") is None:
        raise RuntimeError(
            'kubectl is missing: `make demo` brings one, or run `eval "$(python3 hack/cluster env)"` first'
        )
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"kubectl {' '.join(arguments[:4])}: {done.stderr.strip()}")
    return done.stdout


def get(namespace: str, kinds: str) -> list[dict[str, Any]]:
    """Objects of these kinds (comma separated) in a namespace."""
    items: list[dict[str, Any]] = json.loads(kubectl("--namespace", namespace, "get", kinds, "--output", "json"))[
        "items"
    ]
    return items


def condition(resource: dict[str, Any], kind: str) -> dict[str, Any]:
    """The condition of this type, or an empty one."""
    conditions = resource.get("status", {}).get("conditions", [])
    return next((entry for entry in conditions if entry["type"] == kind), {})


def upload(namespace: str, pod: str, folder: Path, names: tuple[str, ...], target: str) -> None:
    """Copy files into a running pod's folder. Needs a shell with `cat` in the pod, but no tar."""
    for name in names:
        with (folder / name).open("rb") as stream:
            command = [
                "kubectl",
                "--namespace",
                namespace,
                "exec",
                "--stdin",
                pod,
                "--",
                "sh",
                "-c",
                f"cat > {target}/{name}",
            ]
            subprocess.run(command, stdin=stream, check=True)
