"""Echo models in the registry, a ModelDeployment of them behind the gateway, and a flood of requests to it."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import live

from cloze_api.manifest import verify, version_tags
from cloze_server.echo import write_artifact
from cloze_trainer.registry import register
from cloze_trainer.tracking import JobTags

#: Short enough for a test, long enough for Prometheus: it scrapes every two seconds.
ANALYSIS = {"intervalSeconds": 5, "minimumRequests": 100, "inconclusiveLimit": 6}
STEPS = [{"weight": 10, "holdSeconds": 15}, {"weight": 50, "holdSeconds": 15}]


@dataclass(frozen=True)
class Echoes:
    """A registered echo model: versions by what they do."""

    namespace: str
    model: str
    versions: dict[str, str]


FAULTS: dict[str, dict[str, float]] = {
    "good": {},
    "better": {"seed": 1},
    "failing": {"error_ratio": 0.05},
    "slow": {"delay_seconds": 0.05},
}


def gateway() -> str:
    """Address of the local cluster's gateway."""
    address = os.environ.get("CLOZE_GATEWAY")
    assert address, "CLOZE_GATEWAY isn't set: run the tests with `make e2e` or `make test`"
    return address


def publish(mlflow: str, name: str, **faults: float) -> str:
    """Register an echo model with these faults; its version."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "artifact"
        digest = write_artifact(artifact, name=name, **faults)
        manifest = verify(artifact, digest)
        tags = JobTags(f"{name}-echo", "echo", manifest.task.value, name, repeatable=True)
        facts = version_tags(manifest)
        return register(mlflow, tags, artifact, digest, facts=facts, params={}, figures={}).version


def deployment(name: str, model: str, version: str, **spec: Any) -> live.Resource:
    """A ModelDeployment of an echo model behind the gateway, under a host name of its own."""
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": {
            "model": {"name": model, "version": version},
            "replicas": 2,
            "runtime": {"timeoutSeconds": 10},
            "drainSeconds": 15,
            "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
            "traffic": {
                "provider": "GatewayAPI",
                "route": {
                    "parentRefs": [{"name": "cloze", "namespace": "gateway"}],
                    "hostnames": [f"{name}.example.com"],
                },
            },
            "rollout": {"steps": STEPS, "rollbackWindowSeconds": 30, "analysis": ANALYSIS},
            **spec,
        },
    }


def ask_for(namespace: str, name: str, version: str) -> None:
    """Another version."""
    patch = json.dumps({"spec": {"model": {"version": version}}})
    live.kubectl("--namespace", namespace, "patch", "modeldeployment", name, "--type=merge", "--patch", patch)


def command(namespace: str, name: str, word: str) -> None:
    """What a person says in the annotation."""
    live.kubectl("--namespace", namespace, "annotate", "modeldeployment", name, f"cloze.dev/rollout={word}")


def status(namespace: str, name: str) -> live.Resource:
    """The ModelDeployment's status, with its conditions by type."""
    found = live.get(namespace, "modeldeployment", name).get("status", {})
    conditions = {entry["type"]: f"{entry['status']} {entry['reason']}" for entry in found.get("conditions", [])}
    return {**found, "conditions": conditions}


def stable(seen: live.Resource) -> str:
    """The version that serves."""
    return str((seen.get("stable") or {}).get("version", ""))


def await_state(namespace: str, name: str, version: str, state: str, timeout: float = 240) -> live.Resource:
    """The status once this version serves in this state."""
    return live.until(
        lambda: status(namespace, name),
        lambda seen: (stable(seen), seen.get("state")) == (version, state),
        timeout,
        f"{name} is {state} with version {version}",
    )


def await_step(namespace: str, name: str, step: str, timeout: float = 180) -> live.Resource:
    """The status once the canary has this step's share."""
    return live.until(
        lambda: status(namespace, name),
        lambda seen: (seen.get("rollout") or {}).get("step") == step and seen["rollout"].get("state") == "CanaryStep",
        timeout,
        f"{name} is at step {step}",
    )


def await_rejection(namespace: str, name: str, version: str, timeout: float = 240) -> live.Resource:
    """What the status says of a version once it is rolled back and nothing goes to it any more."""

    def rejected(seen: live.Resource) -> live.Resource:
        return next(
            (
                entry
                for entry in seen.get("revisions", [])
                if entry["version"] == version and entry.get("role") == "Rejected" and not entry.get("weight")
            ),
            {},
        )

    seen = live.until(
        lambda: status(namespace, name),
        lambda seen: bool(rejected(seen)) and seen.get("state") == "RolledBack",
        timeout,
        f"{name} takes version {version} back",
    )
    return rejected(seen)


@contextlib.contextmanager
def flood(host: str, rate: float = 150) -> Iterator[dict[str, Any]]:
    """Requests through the gateway while the block runs; yields what came back, filled at its end."""
    script = str(Path(__file__).with_name("flood.py"))
    outcome: dict[str, Any] = {}
    with subprocess.Popen(
        [sys.executable, script, gateway(), host, str(rate)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as sender:
        assert sender.stdout is not None
        assert sender.stdout.readline() == "sending\n"
        yield outcome
        out, _ = sender.communicate(timeout=90)
    outcome.update(json.loads(out))


def events(namespace: str, name: str) -> list[str]:
    """Reasons of the ModelDeployment's events."""
    found = live.items(namespace, "events")
    return [entry["reason"] for entry in found if entry["involvedObject"]["name"] == name]


def operator_setting(platform: str, name: str) -> str:
    """A variable of the operator's environment."""
    container = live.get(platform, "deployment", "cloze-operator")["spec"]["template"]["spec"]["containers"][0]
    return next(str(entry.get("value", "")) for entry in container["env"] if entry["name"] == name)


def set_operator(platform: str, name: str, value: str) -> None:
    """Restart the operators with another value of a variable."""
    live.kubectl("--namespace", platform, "set", "env", "deployment/cloze-operator", f"{name}={value}")
    live.kubectl("--namespace", platform, "rollout", "status", "deployment/cloze-operator", "--timeout=180s")


def kill_operators(platform: str) -> None:
    """End both operators at once, without a chance to finish anything, and wait until there are two again."""
    pods = live.items(platform, "pods", "app.kubernetes.io/component=operator")
    names = [pod["metadata"]["name"] for pod in pods]
    live.kubectl("--namespace", platform, "delete", "pod", *names, "--grace-period=0", "--force")
    live.kubectl("--namespace", platform, "rollout", "status", "deployment/cloze-operator", "--timeout=180s")
