"""A run on real pods is given another pod in its middle, and one is taken from it."""

import json
from itertools import pairwise
from typing import Any

import httpx
import live
import pytest
from test_loop import SMALL, pods, pretrain, resumed_at

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(1800)]

JOB: dict[str, Any] = {
    # Without the noise of dropout, which ranks draw for themselves, sizes differ in nothing but rounding.
    "model": {"layers": 2, "hiddenSize": 64, "heads": 2, "intermediateSize": 128, "maxLength": 64, "dropout": 0},
    "topology": {"nodes": 1, **SMALL},
    "optimization": {"steps": 1500, "batchSequences": 8, "warmupSteps": 10},
    # None is saved but for the suspensions, and at the end.
    "checkpoint": {"everySteps": 100_000},
}


def patch(namespace: str, name: str, **spec: Any) -> None:
    body = json.dumps({"spec": spec})
    live.kubectl("--namespace", namespace, "patch", "pretrainjob", name, "--type", "merge", "--patch", body)


def step(namespace: str, name: str) -> int:
    progress = live.get(namespace, "pretrainjob", name).get("status", {}).get("progress") or {}
    return int(progress.get("step") or 0)


def resize(namespace: str, name: str, nodes: int, *, after: int) -> int:
    """Suspend a run once it has done so many steps, give it so many pods, and resume it; from where it goes on."""
    live.until(lambda: step(namespace, name), lambda now: now >= after, 600, f"{name} does step {after}")
    patch(namespace, name, suspend=True)
    live.until(
        lambda: pods(namespace, name), lambda seen: not seen, 120, "the pods have saved a checkpoint and are gone"
    )
    assert live.state(live.get(namespace, "pretrainjob", name)) == "Suspended"
    patch(namespace, name, topology={"nodes": nodes})
    live.until(
        lambda: live.items(namespace, "jobs", f"cloze.dev/owner={name}"),
        lambda jobs: [job["spec"]["completions"] for job in jobs] == [nodes],
        60,
        f"there is a Job of {nodes} pods",
    )
    patch(namespace, name, suspend=False)
    live.until(
        lambda: [pod["status"]["phase"] for pod in pods(namespace, name)],
        lambda phases: phases == ["Running"] * nodes,
        120,
        f"{nodes} pods run",
    )
    live.until(lambda: resumed_at(namespace, name), bool, 300, "the next pods have gone on from the checkpoint")
    (reached,) = set(resumed_at(namespace, name))
    return reached


def history(mlflow: httpx.Client, job: live.Resource, figure: str) -> dict[int, float]:
    """A figure of the run in MLflow by step; of a step that was done twice, the last."""
    query = {"run_id": job["status"]["model"]["runId"], "metric_key": figure, "max_results": 25_000}
    found = mlflow.get("/api/2.0/mlflow/metrics/get-history", params=query).raise_for_status().json()["metrics"]
    return {int(each["step"]): float(each["value"]) for each in found}


def test_a_resized_run_learns_the_same(namespace: str, platform: str) -> None:
    """One pod, two, one: each step has the samples of an undisturbed run's, and the end is as good."""
    live.apply(namespace, pretrain(namespace, "undisturbed", **JOB), pretrain(namespace, "resized", **JOB))
    first = resize(namespace, "resized", 2, after=200)
    second = resize(namespace, "resized", 1, after=first + 100)
    assert 200 <= first < second < 1500
    resized, undisturbed = (live.finished(namespace, "pretrainjob", name, 900) for name in ("resized", "undisturbed"))
    assert (resized["status"]["restarts"], resized["status"]["interruptions"]) == (0, 0)
    told = [event for event in live.items(namespace, "events") if event["reason"] == "Resized"]
    assert sorted(event["message"].split(":")[0] for event in told) == ["topology.nodes 1 → 2", "topology.nodes 2 → 1"]
    with (
        live.forwarded(platform, "cloze-mlflow", 5000) as address,
        httpx.Client(base_url=address, timeout=30) as mlflow,
    ):
        losses, steady = (history(mlflow, job, "loss") for job in (resized, undisturbed))
    # What a pod hasn't sent yet when it is suspended isn't there.
    steps = sorted(steady.keys() & losses.keys())
    assert any(first < each < second for each in steps)
    assert max(steps) == max(steady) == 1500
    # Of the same rows with the same hidden tokens. Other batches would differ by as much as one does from the next.
    unlike = [abs(steady[one] - steady[other]) for one, other in pairwise(steps)]
    apart = [abs(losses[each] - steady[each]) for each in steps]
    assert max(apart) < 0.01 < sorted(unlike)[len(unlike) // 2]
    ends = [job["status"]["metrics"]["masked_loss"] for job in (resized, undisturbed)]
    assert ends[0] == pytest.approx(ends[1], abs=0.01)
