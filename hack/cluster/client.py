"""The few questions that the cluster's own tooling has for its API server, asked through kubectl."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from .console import ClusterError


class Client:
    """kubectl with one kubeconfig, and what `env` adds to the environment."""

    def __init__(self, kubectl: str, kubeconfig: Path, env: Mapping[str, str] | None = None) -> None:
        self._argv = [kubectl, "--kubeconfig", str(kubeconfig)]
        self._env = {**os.environ, **(env or {})}

    def try_run(self, *arguments: str, stdin: str | None = None) -> tuple[bool, str]:
        """Whether kubectl succeeded, and what it printed."""
        argv = [*self._argv, "--request-timeout=10s", *arguments]
        done = subprocess.run(argv, env=self._env, input=stdin, capture_output=True, text=True, check=False)
        return done.returncode == 0, (done.stdout if done.returncode == 0 else done.stderr).strip()

    def ready(self) -> bool:
        return self.try_run("get", "--raw", "/readyz")[0]

    def version(self) -> str | None:
        done, text = self.try_run("version", "--output=json")
        return json.loads(text)["serverVersion"]["gitVersion"] if done else None

    def node_ready(self, name: str) -> bool:
        path = '{.status.conditions[?(@.type=="Ready")].status}'
        return self.try_run("get", "node", name, f"--output=jsonpath={path}") == (True, "True")

    def apply(self, manifests: list[dict[str, Any]]) -> None:
        """Server-side apply; repeated for a moment, since a new API server admits some kinds later than others."""
        self._apply(["--filename=-"], json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))

    def apply_files(self, files: Sequence[Path]) -> None:
        """The same for what lies in files."""
        self._apply([f"--filename={file}" for file in files])

    def _apply(self, sources: Sequence[str], stdin: str | None = None) -> None:
        last = ""

        def applied() -> bool:
            nonlocal last
            options = ("--server-side", "--force-conflicts", "--field-manager=cloze-cluster")
            done, last = self.try_run("apply", *options, *sources, stdin=stdin)
            return done

        wait(applied, 90, lambda: f"the cluster refused its own objects: {last}")


def wait(condition: Callable[[], bool], seconds: float, failure: Callable[[], str]) -> None:
    """Poll until `condition` holds; after `seconds`, raise what `failure` says."""
    deadline = monotonic() + seconds
    while not condition():
        if monotonic() > deadline:
            raise ClusterError(failure())
        sleep(0.1)
