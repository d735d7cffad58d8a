"""The main loop on real pods: text to encoder to classifier to answers, through killed pods and a rolling update."""

import json
from typing import Any

import httpx
import live
import load
import pytest
import timid

from cloze_server.keys import new_key

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

# The run that loses a pod: the one at place 0, which hosts the rendezvous. Chaos takes the others, too.
KILLED = "lost-host"
PLACE = 0

SERVERS = "cloze.dev/kind=ModelDeployment,cloze.dev/owner=classifier"
SMALL = {"resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}}


def model(namespace: str, name: str) -> str:
    """Name in the registry, which outlives the namespace: a second run must not meet the first one's versions."""
    return f"{namespace}-{name}"


def pretrain(namespace: str, name: str, **spec: Any) -> live.Resource:
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": name},
        "spec": {
            "corpus": [{"uri": "configmap://text/corpus.jsonl", "format": "jsonl"}],
            "tokenizer": {"vocabSize": 1000},
            "model": {"layers": 2, "hiddenSize": 64, "heads": 2, "intermediateSize": 128, "maxLength": 64},
            "optimization": {"steps": 400, "batchSequences": 8, "warmupSteps": 10},
            "topology": {"nodes": 2, **SMALL},
            "checkpoint": {"everySteps": 20},
            "storage": {"size": "1Gi"},
            "registry": {"name": model(namespace, name)},
            **spec,
        },
    }


def finetune(namespace: str, name: str, **spec: Any) -> live.Resource:
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "base": {"pretrainJob": {"name": "steady"}},
            "task": "sequence-classification",
            "dataset": {
                "train": "configmap://text/spam-train.jsonl",
                "test": "configmap://text/spam-test.jsonl",
            },
            "optimization": {"epochs": 2, "batchSequences": 16},
            "topology": SMALL,
            "storage": {"size": "1Gi"},
            "registry": {"name": model(namespace, name)},
            **spec,
        },
    }


@pytest.fixture(scope="module")
def applied(namespace: str) -> str:
    """Everything at once, as a user would: jobs find their own order."""
    live.apply(
        namespace,
        pretrain(namespace, "steady"),
        pretrain(namespace, KILLED),
        finetune(namespace, "classifier"),
        {
            "apiVersion": "cloze.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": "classifier"},
            "spec": {
                "model": {"name": model(namespace, "classifier"), "follow": {}},
                "replicas": 1,
                "runtime": {"timeoutSeconds": 10},
                "drainSeconds": 10,
                # The former revision's pods go soon after the new one has taken over.
                "rollout": {"rollbackWindowSeconds": 15},
            },
        },
    )
    return namespace


def pods(namespace: str, owner: str, index: int | None = None) -> list[live.Resource]:
    """A job's pods; with `index`, those of one place in the gang."""
    selector = f"cloze.dev/owner={owner}"
    if index is not None:
        selector += f",batch.kubernetes.io/job-completion-index={index}"
    return live.items(namespace, "pods", selector)


def kill(namespace: str, owner: str, index: int) -> str:
    """Kill one running pod of a gang that is past its first checkpoint and far from its end; returns the pod's uid."""

    def progress() -> live.Resource:
        return live.get(namespace, "pretrainjob", owner).get("status", {}).get("progress") or {}

    def under_way(seen: live.Resource) -> bool:
        assert seen.get("stage") in (None, "data", "tokenizer", "shards", "training"), (
            f"{owner} ended too early: {seen}"
        )
        return int(seen.get("checkpointStep") or 0) > 0

    live.until(progress, under_way, 300, f"{owner} passes its first checkpoint")
    (pod,) = (pod for pod in pods(namespace, owner, index) if pod["status"]["phase"] == "Running")
    name = pod["metadata"]["name"]
    live.kubectl("--namespace", namespace, "delete", "pod", name, "--grace-period=0", "--force", "--wait=false")
    return str(pod["metadata"]["uid"])


def resumed_at(namespace: str, owner: str) -> list[int]:
    """Steps at which runs of this gang went on from a checkpoint, by the logs of the pods that are left."""
    found = []
    for pod in pods(namespace, owner):
        log = live.kubectl("--namespace", namespace, "logs", pod["metadata"]["name"])
        found += [int(json.loads(line)["step"]) for line in log.splitlines() if '"event": "resumed"' in line]
    return found


@pytest.fixture(scope="module")
def killed(applied: str) -> str:
    """Kills the rendezvous host of a gang, once a checkpoint is durable and the run is under way; the pod's uid."""
    return kill(applied, KILLED, PLACE)


def weights_digest(name: str, version: str, mlflow: str) -> str:
    """SHA-256 of a registered version's weights, by its manifest."""
    with httpx.Client(base_url=mlflow, timeout=30) as client:
        uri = client.get(
            "/api/2.0/mlflow/model-versions/get-download-uri", params={"name": name, "version": version}
        ).json()["artifact_uri"]
        path = uri.removeprefix("mlflow-artifacts:").lstrip("/")
        manifest = client.get(f"/api/2.0/mlflow-artifacts/artifacts/{path}/manifest.json").json()
    return str(manifest["files"]["model.safetensors"])


def test_finetune_waits_for_its_base_and_says_so(applied: str) -> None:
    """The condition names the job that is waited for."""
    job = live.until(
        lambda: live.get(applied, "finetunejob", "classifier"),
        lambda found: bool(live.condition(found, "BaseReady")),
        60,
        "the condition BaseReady appears",
    )
    waiting = live.condition(job, "BaseReady")
    assert waiting["status"] == "False"
    assert waiting["reason"] == "WaitingForPretrainJob"
    assert "steady" in waiting["message"]
    assert live.state(job) == "Waiting"


def test_deployment_waits_for_its_model_and_says_so(applied: str) -> None:
    """Nothing is deployed before there is a version."""
    deployment = live.until(
        lambda: live.get(applied, "modeldeployment", "classifier"),
        lambda found: bool(live.condition(found, "ModelResolved")),
        60,
        "the condition ModelResolved appears",
    )
    assert live.condition(deployment, "ModelResolved")["reason"] == "ModelNotFound"
    assert live.condition(deployment, "Ready")["status"] == "False"


def test_killed_pod_changes_no_bit(applied: str, killed: str, platform: str) -> None:
    """The rendezvous host killed in the middle: the gang resumes to the undisturbed run's very weights."""
    steady = live.finished(applied, "pretrainjob", "steady", 420)
    disturbed = live.finished(applied, "pretrainjob", KILLED, 420)
    with live.forwarded(platform, "cloze-mlflow", 5000) as mlflow:
        digests = [
            weights_digest(job["status"]["model"]["name"], job["status"]["model"]["version"], mlflow)
            for job in (steady, disturbed)
        ]
    assert digests[0] == digests[1]
    (successor,) = pods(applied, KILLED, PLACE)
    assert successor["metadata"]["uid"] != killed
    assert any(step > 0 for step in resumed_at(applied, KILLED)), "the run began anew instead of resuming"


def test_classifier_answers_after_the_loop(applied: str) -> None:
    """The FineTuneJob finishes, the deployment follows the alias and answers with the version it reports."""
    job = live.finished(applied, "finetunejob", "classifier", 420)
    deployment = live.until(
        lambda: live.get(applied, "modeldeployment", "classifier"),
        lambda found: live.state(found) == "Ready",
        180,
        "the deployment is ready",
    )
    assert deployment["status"]["desired"]["version"] == job["status"]["model"]["version"]
    with live.forwarded(applied, "classifier", 80) as base:
        response = httpx.post(
            f"{base}/v1/classify", json={"inputs": "You won a free prize, click here now"}, timeout=30
        )
        metrics = httpx.get(f"{base}/metrics", timeout=30).text
    response.raise_for_status()
    assert {p["label"] for p in response.json()["results"][0]["predictions"]} == {"ham", "spam"}
    assert f'model="{model(applied, "classifier")}"' in metrics


def test_the_spec_sets_what_flags_set(applied: str, platform: str) -> None:
    """Keys from a Secret, declared metadata, kept replies, and a fallback for what the model isn't sure of."""
    job = live.finished(applied, "finetunejob", "classifier", 420)
    sure, version = job["status"]["model"]["name"], job["status"]["model"]["version"]
    with live.forwarded(platform, "cloze-mlflow", 5000) as mlflow:
        unsure = timid.publish(mlflow, sure, version, model(applied, "timid"))
    key, line = new_key("shop")
    live.apply(
        applied,
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"clients": line}},
        {
            "apiVersion": "cloze.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": "guarded"},
            "spec": {
                "model": {
                    "name": model(applied, "timid"),
                    "version": unsure,
                    "fallback": {"name": sure, "version": version},
                },
                "runtime": {"replyCache": {"size": "1Mi"}, "limits": {"maxInputs": 1}},
                "requestMetadata": {"language": ["de", "en"]},
                "access": {"apiKeys": {"name": "keys", "key": "clients"}, "playground": False},
            },
        },
    )
    deployment = live.until(
        lambda: live.get(applied, "modeldeployment", "guarded"),
        lambda found: live.state(found) == "Ready" and bool(found["status"].get("loaded")),
        180,
        "the guarded deployment is ready, and its pod says so without being asked for a key",
    )
    assert deployment["status"]["loaded"] == [{"version": unsure, "readyPods": 1}]
    body = {"inputs": "You won a free prize", "metadata": {"language": "en"}}
    with (
        live.forwarded(applied, "guarded", 80) as base,
        httpx.Client(base_url=base, timeout=30, headers={"x-api-key": key}) as client,
    ):
        assert httpx.post(f"{base}/v1/classify", json=body, timeout=30).status_code == 401
        first, again = (client.post("/v1/classify", json=body) for _ in range(2))
        undeclared = client.post("/v1/classify", json={**body, "metadata": {"language": "fr"}})
        many = client.post("/v1/classify", json={**body, "inputs": ["a", "b"]})
        counted = httpx.get(f"{base}/metrics", timeout=30).text
    (result,) = first.raise_for_status().json()["results"]
    assert (result["model"], result["fallback"]) == (f"{sure}/{version}", True)
    assert [each.headers["x-cloze-cache"] for each in (first, again)] == ["miss", "hit"]
    assert (undeclared.status_code, many.status_code) == (422, 413)
    (segment,) = (
        each for each in counted.splitlines() if each.startswith("cloze_segment_requests_total") and "2xx" in each
    )
    assert 'key="language"' in segment
    assert segment.endswith(" 2.0")
    live.kubectl("--namespace", applied, "delete", "modeldeployment", "guarded", "--wait=false")


@pytest.mark.usefixtures("killed")
def test_version_is_registered_exactly_once(applied: str, platform: str) -> None:
    """Also of the job whose pod was killed; and the alias points to it."""
    with live.forwarded(platform, "cloze-mlflow", 5000) as mlflow, httpx.Client(base_url=mlflow) as client:
        for name in ("steady", KILLED):
            job = live.finished(applied, "pretrainjob", name, 420)
            registered = model(applied, name)
            query = {"filter": f"name='{registered}'"}
            found = client.get("/api/2.0/mlflow/model-versions/search", params=query).json()["model_versions"]
            assert [version["version"] for version in found] == [job["status"]["model"]["version"]]
            assert {"key": "cloze.dev/job-uid", "value": job["metadata"]["uid"]} in found[0]["tags"]
            answer = client.get(
                "/api/2.0/mlflow/registered-models/alias", params={"name": registered, "alias": "challenger"}
            )
            assert answer.json()["model_version"]["version"] == found[0]["version"]


def test_rolling_update_loses_no_request(applied: str) -> None:
    """Requests go on while every pod is replaced: none fails."""
    live.until(
        lambda: live.get(applied, "modeldeployment", "classifier"),
        lambda found: live.state(found) == "Ready",
        600,
        "the deployment is ready",
    )

    def serving_pods() -> set[str]:
        return {pod["metadata"]["uid"] for pod in live.items(applied, "pods", SERVERS) if live.is_ready(pod)}

    before = serving_pods()
    with load.on(applied, "http://classifier/v1/classify", {"inputs": "hello"}) as outcomes:
        patch = json.dumps({"spec": {"runtime": {"maxBatchTokens": 1024}}})
        live.kubectl("--namespace", applied, "patch", "modeldeployment", "classifier", "--type=merge", "-p", patch)
        live.until(serving_pods, lambda now: bool(now) and not now & before, 180, "every pod is replaced")
        live.until(
            lambda: live.items(applied, "pods", SERVERS), lambda left: len(left) == 1, 120, "the old pod has drained"
        )
    assert set(outcomes) == {"200"}, outcomes
    assert outcomes["200"] > 50


def test_wrong_data_fails_at_once_and_says_where(applied: str) -> None:
    """A final error isn't retried: one pod, file and line in the status, an event, nothing registered."""
    live.finished(applied, "pretrainjob", "steady", 420)
    wrong = {"train": "configmap://text/wrong.jsonl", "test": "configmap://text/spam-test.jsonl"}
    live.apply(applied, finetune(applied, "wrong", dataset=wrong))
    job = live.until(
        lambda: live.get(applied, "finetunejob", "wrong"),
        lambda found: live.state(found) == "Failed",
        180,
        "the job fails",
    )
    failure = live.condition(job, "Succeeded")
    assert failure["status"] == "False"
    assert "wrong.jsonl:2" in failure["message"]
    assert len(pods(applied, "wrong")) == 1
    assert "model" not in job["status"]
    told = [event for event in live.items(applied, "events") if event["involvedObject"]["name"] == "wrong"]
    assert any(event["reason"] == failure["reason"] and event["type"] == "Warning" for event in told)


def test_deleting_leaves_no_orphan(applied: str) -> None:
    """All children go with their owner."""
    live.finished(applied, "pretrainjob", "steady", 420)
    live.kubectl("--namespace", applied, "delete", "pretrainjob", "steady", "--wait")
    live.until(
        lambda: live.items(applied, "jobs,pods,services,configmaps,persistentvolumeclaims", "cloze.dev/owner=steady"),
        lambda left: not left,
        120,
        "children are gone",
    )
