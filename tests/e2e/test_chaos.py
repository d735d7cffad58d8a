"""Training under fire: pods killed again and again, and a registry that is away when a run wants to register."""

from typing import Any

import httpx
import live
import pytest
import rollouts
from test_loop import kill, model, pods, pretrain, resumed_at, weights_digest

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(2400)]

LONG: dict[str, Any] = {"optimization": {"steps": 1500, "batchSequences": 8, "warmupSteps": 10}}
# Places in the gang, in the order in which their pods are killed; 0 hosts the rendezvous.
KILLS = (1, 0, 0, 1)


def checkpoint(namespace: str, name: str) -> int:
    progress = live.get(namespace, "pretrainjob", name).get("status", {}).get("progress") or {}
    return int(progress.get("checkpointStep") or 0)


def test_many_kills_change_no_bit(namespace: str, platform: str) -> None:
    """Each time the gang goes on from a later checkpoint, and ends with the weights of an undisturbed run."""
    live.apply(namespace, pretrain(namespace, "calm", **LONG), pretrain(namespace, "chased", **LONG))
    for index in KILLS:
        before = checkpoint(namespace, "chased")
        live.until(lambda: checkpoint(namespace, "chased"), lambda now: now > before, 600, "a later checkpoint")  # noqa: B023
        gone = kill(namespace, "chased", index)
        live.until(
            lambda: pods(namespace, "chased", index),  # noqa: B023
            lambda seen: any(pod["metadata"]["uid"] != gone and pod["status"]["phase"] == "Running" for pod in seen),  # noqa: B023
            # Kubernetes doubles its wait with each failure of a Job's pods, up to ten minutes.
            700,
            "a successor runs",
        )
    jobs = [live.finished(namespace, "pretrainjob", name, 900) for name in ("calm", "chased")]
    with live.forwarded(platform, "cloze-mlflow", 5000) as mlflow:
        digests = {
            weights_digest(job["status"]["model"]["name"], job["status"]["model"]["version"], mlflow) for job in jobs
        }
    assert len(digests) == 1
    assert resumed_at(namespace, "chased")


def test_registry_that_is_away_at_the_end_loses_no_run(namespace: str, platform: str) -> None:
    """MLflow goes in the middle of a run and comes back after its end: registered once, no restart used up."""
    live.apply(namespace, pretrain(namespace, "patient", failurePolicy={"maxRestarts": 0}))
    live.until(lambda: checkpoint(namespace, "patient"), lambda step: step > 0, 300, "the run is under way")
    live.kubectl("--namespace", platform, "scale", "deployment", "cloze-mlflow", "--replicas=0")
    try:
        live.until(
            lambda: live.get(namespace, "pretrainjob", "patient").get("status", {}).get("progress") or {},
            lambda progress: progress.get("stage") == "registration",
            300,
            "the run wants to register",
        )
        assert live.state(live.get(namespace, "pretrainjob", "patient")) != "Failed"
    finally:
        live.kubectl("--namespace", platform, "scale", "deployment", "cloze-mlflow", "--replicas=1")
        live.kubectl("--namespace", platform, "rollout", "status", "deployment/cloze-mlflow", "--timeout=300s")
    job = live.finished(namespace, "pretrainjob", "patient", 900)
    with live.forwarded(platform, "cloze-mlflow", 5000) as mlflow, httpx.Client(base_url=mlflow) as client:
        query = {"filter": f"name='{model(namespace, 'patient')}'"}
        found = client.get("/api/2.0/mlflow/model-versions/search", params=query).json()["model_versions"]
    assert [version["version"] for version in found] == [job["status"]["model"]["version"]]
    assert job["status"].get("restarts", 0) == 0


def test_namespace_goes_when_the_operator_is_gone(namespace: str, platform: str) -> None:
    """No finalizer of ours holds a namespace, with a deployment serving and a job in the middle of its run."""
    with live.forwarded(platform, "cloze-mlflow", 5000) as mlflow:
        version = rollouts.publish(mlflow, model(namespace, "echo"), seed=1)
    live.apply(
        namespace,
        pretrain(namespace, "unfinished"),
        {
            "apiVersion": "cloze.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": "served"},
            "spec": {"model": {"name": model(namespace, "echo"), "version": version}, "replicas": 1},
        },
    )
    for kind, name, wanted in (("pretrainjob", "unfinished", "Running"), ("modeldeployment", "served", "Ready")):
        live.until(
            lambda: live.state(live.get(namespace, kind, name)),  # noqa: B023
            lambda now: now == wanted,  # noqa: B023
            300,
            f"{name} is {wanted}",
        )
    live.kubectl("--namespace", platform, "scale", "deployment", "cloze-operator", "--replicas=0")
    try:
        live.kubectl("delete", "namespace", namespace, "--wait", "--timeout=180s")
        live.kubectl("create", "namespace", namespace)  # the fixture deletes it once more
    finally:
        live.kubectl("--namespace", platform, "scale", "deployment", "cloze-operator", "--replicas=2")
        live.kubectl("--namespace", platform, "rollout", "status", "deployment/cloze-operator", "--timeout=120s")
