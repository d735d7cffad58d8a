"""How long training stands still after a pod is lost: hack/bench/lost_pod.py [ROUNDS]

On the cluster of KUBECONFIG, where the chart must be installed: each round trains a small encoder in two pods, in a
namespace of its own, deletes one of them by force once a checkpoint is durable, the one that hosts the rendezvous in
every other round, and takes the time until a rank goes on from a checkpoint, by its own log. Both machines' clocks
are compared, so that it should be one.
"""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from statistics import median
from typing import Any

_PATIENCE_SECONDS = 300
_WORDS = ("the", "bank", "river", "paid", "for", "a", "loan", "of", "old", "boats")
_TEXT = "\n\n".join(" ".join(_WORDS[(row * place) % 7 + place % 4] for place in range(1, 60)) for row in range(200))


def kubectl(*arguments: str, given: str | None = None) -> str:
    return subprocess.run(["kubectl", *arguments], input=given, check=True, capture_output=True, text=True).stdout


def job(namespace: str) -> dict[str, Any]:
    small = {"resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}}
    spec = {
        "corpus": [{"uri": "configmap://text/corpus.txt"}],
        "cleaning": {"deduplicate": "none"},
        "tokenizer": {"vocabSize": 200},
        "model": {"layers": 2, "hiddenSize": 64, "heads": 2, "intermediateSize": 128, "maxLength": 64},
        "optimization": {"steps": 100_000, "batchSequences": 8},
        "topology": {"nodes": 2, **small},
        "checkpoint": {"everySteps": 50},
        "storage": {"size": "1Gi"},
        "registry": {"name": namespace},
    }
    return {"apiVersion": "cloze.dev/v1alpha1", "kind": "PretrainJob", "metadata": {"name": "lost"}, "spec": spec}


def pods(namespace: str) -> list[dict[str, Any]]:
    """Those that run."""
    found = json.loads(kubectl("-n", namespace, "get", "pods", "-l", "cloze.dev/owner=lost", "-o", "json"))["items"]
    return [pod for pod in found if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]]


def events(namespace: str) -> Iterator[dict[str, Any]]:
    """What the pods that run have logged."""
    for pod in pods(namespace):
        name = pod["metadata"]["name"]
        log = subprocess.run(
            ["kubectl", "-n", namespace, "logs", name], check=False, capture_output=True, text=True
        ).stdout
        yield from (json.loads(line) for line in log.splitlines() if line.startswith("{"))


def at(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp.replace("Z", "+00:00"))


def lose(namespace: str, place: int) -> float:
    """Seconds from the deletion of the pod at this place of the gang until the gang trains on."""
    began = time.monotonic()
    while True:
        found = json.loads(kubectl("-n", namespace, "get", "pretrainjob", "lost", "-o", "json"))
        if int((found.get("status", {}).get("progress") or {}).get("checkpointStep") or 0) > 0:
            break
        _wait(began, "a checkpoint")
    index = "batch.kubernetes.io/job-completion-index"
    (pod,) = (pod for pod in pods(namespace) if pod["metadata"]["labels"][index] == str(place))
    deleted, began = datetime.now(UTC), time.monotonic()
    kubectl("-n", namespace, "delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force", "--wait=false")
    while True:
        resumed = [at(each["time"]) for each in events(namespace) if each["event"] == "resumed"]
        if later := [when for when in resumed if when > deleted]:
            return (min(later) - deleted).total_seconds()
        _wait(began, "the gang to go on")


def _wait(began: float, what: str) -> None:
    if time.monotonic() > began + _PATIENCE_SECONDS:
        raise SystemExit(f"waited {_PATIENCE_SECONDS} s for {what}, in vain")
    time.sleep(0.5)


def main(rounds: int) -> None:
    seconds = []
    for number in range(rounds):
        namespace, place = f"lost-{uuid.uuid4().hex[:6]}", number % 2
        kubectl("create", "namespace", namespace)
        try:
            text = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "text"},
                "data": {"corpus.txt": _TEXT},
            }
            for resource in (text, job(namespace)):
                kubectl("-n", namespace, "apply", "-f", "-", given=json.dumps(resource))
            seconds.append(lose(namespace, place))
            print(f"round {number + 1}: the pod at place {place}, {seconds[-1]:.1f} s", flush=True)
        finally:
            kubectl("delete", "namespace", namespace, "--wait=false")
    print(f"median {median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
