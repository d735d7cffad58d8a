"""The main loop on real pods: text to encoder to classifier to answers, through a killed pod and a rolling update."""

import json
import threading
from typing import Any

import httpx
import live
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SMALL = {"resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}}


def pretrain(name: str, **spec: Any) -> live.Resource:
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": name},
        "spec": {
            "corpus": [{"uri": "configmap://text/corpus.jsonl", "format": "jsonl"}],
            "tokenizer": {"vocabSize": 1000},
            "model": {"layers": 2, "hiddenSize": 64, "heads": 2, "intermediateSize": 128, "maxLength": 64},
            "optimization": {"steps": 120, "batchSequences": 8, "warmupSteps": 10},
            "topology": {"nodes": 2, **SMALL},
            "checkpoint": {"everySteps": 10},
            "storage": {"size": "1Gi"},
            "registry": {"name": name},
            **spec,
        },
    }


def finetune(name: str, **spec: Any) -> live.Resource:
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
            "registry": {"name": name},
            **spec,
        },
    }


@pytest.fixture(scope="module")
def applied(namespace: str) -> str:
    """Everything at once, as a user would: jobs find their own order."""
    live.apply(
        namespace,
        pretrain("steady"),
        pretrain("killed"),
        finetune("classifier"),
        {
            "apiVersion": "cloze.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": "classifier"},
            "spec": {"model": {"name": "classifier", "follow": {}}, "replicas": 1, "drainSeconds": 10},
        },
    )
    return namespace


@pytest.fixture(scope="module")
def killed(applied: str) -> str:
    """Kills a pod of the gang once a checkpoint is durable and the run is under way."""

    def progress() -> int:
        return int((live.get(applied, "pretrainjob", "killed").get("status", {}).get("progress") or {}).get("step", 0))

    live.until(progress, lambda step: step >= 15, 300, "the run passes its first checkpoint")
    live.kubectl(
        "--namespace",
        applied,
        "delete",
        "pod",
        "--grace-period=0",
        "--force",
        "--wait=false",
        "-l",
        "cloze.dev/owner=killed,batch.kubernetes.io/job-completion-index=1",
    )
    return applied


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


def test_killed_pod_changes_no_bit(killed: str, platform: str) -> None:
    """A pod killed in the middle: the gang resumes, and the weights are those of an undisturbed run, bit for bit."""
    steady = live.finished(killed, "pretrainjob", "steady", 420)
    disturbed = live.finished(killed, "pretrainjob", "killed", 420)
    with live.forwarded(platform, "cloze-mlflow", 5000) as mlflow:
        digests = [
            weights_digest(job["status"]["model"]["name"], job["status"]["model"]["version"], mlflow)
            for job in (steady, disturbed)
        ]
    assert digests[0] == digests[1]
    events = live.items(killed, "events")
    assert any(event["involvedObject"]["name"] == "killed" for event in events)


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
    assert 'model="classifier"' in metrics


def test_version_is_registered_exactly_once(killed: str, platform: str) -> None:
    """Also of the job whose pod was killed; and the alias points to it."""
    live.finished(killed, "pretrainjob", "killed", 420)
    with live.forwarded(platform, "cloze-mlflow", 5000) as mlflow, httpx.Client(base_url=mlflow) as client:
        uid = live.get(killed, "pretrainjob", "killed")["metadata"]["uid"]
        found = client.get("/api/2.0/mlflow/model-versions/search", params={"filter": "name='killed'"}).json()
        versions = [
            version
            for version in found["model_versions"]
            if {"key": "cloze.dev/job-uid", "value": uid} in version.get("tags", [])
        ]
        assert len(versions) == 1
        alias = client.get("/api/2.0/mlflow/registered-models/alias", params={"name": "killed", "alias": "challenger"})
        assert alias.json()["model_version"]["version"] == versions[0]["version"]


def test_rolling_update_loses_no_request(applied: str) -> None:
    """Requests go on while every pod is replaced: none fails."""
    live.until(
        lambda: live.get(applied, "modeldeployment", "classifier"),
        lambda found: live.state(found) == "Ready",
        600,
        "the deployment is ready",
    )
    stop, outcomes = threading.Event(), []
    address = live.get(applied, "service", "classifier")["spec"]["clusterIP"]

    def load() -> None:
        # From this machine straight to the Service's address, through the cluster's own load balancing.
        with httpx.Client(base_url=f"http://{address}", timeout=30) as client:
            while not stop.is_set():
                try:
                    outcomes.append(client.post("/v1/classify", json={"inputs": "hello"}).status_code)
                except httpx.HTTPError as error:
                    outcomes.append(repr(error))

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        before = {pod["metadata"]["uid"] for pod in live.items(applied, "pods", "cloze.dev/owner=classifier")}
        patch = json.dumps({"spec": {"runtime": {"maxBatchTokens": 1024}}})
        live.kubectl("--namespace", applied, "patch", "modeldeployment", "classifier", "--type=merge", "-p", patch)

        def serving_pods() -> set[str]:
            pods = live.items(applied, "pods", "cloze.dev/owner=classifier")
            return {
                pod["metadata"]["uid"]
                for pod in pods
                if "cloze.dev/kind" in pod["metadata"]["labels"]
                and pod["metadata"]["labels"]["cloze.dev/kind"] == "ModelDeployment"
            }

        serving = before & serving_pods()
        live.until(serving_pods, lambda now: bool(now) and not now & serving, 180, "every pod is replaced")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(outcomes) > 50
    assert set(outcomes) == {200}


def test_wrong_data_fails_at_once_and_says_where(applied: str) -> None:
    """A final error isn't retried: one pod, file and line in the status, an event, nothing registered."""
    live.finished(applied, "pretrainjob", "steady", 420)
    wrong = {"train": "configmap://text/wrong.jsonl", "test": "configmap://text/spam-test.jsonl"}
    live.apply(applied, finetune("wrong", dataset=wrong))
    job = live.until(
        lambda: live.get(applied, "finetunejob", "wrong"),
        lambda found: live.state(found) == "Failed",
        180,
        "the job fails",
    )
    failure = live.condition(job, "Succeeded")
    assert failure["status"] == "False"
    assert "wrong.jsonl" in failure["message"]
    assert "2" in failure["message"]
    assert len(live.items(applied, "pods", "cloze.dev/owner=wrong")) == 1
    assert "model" not in job["status"]


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


def test_namespace_goes_when_the_operator_is_gone(applied: str, platform: str) -> None:
    """No finalizer of ours holds a namespace."""
    live.until(
        lambda: live.state(live.get(applied, "finetunejob", "wrong")),
        lambda now: now == "Failed",
        300,
        "the last job ended",
    )
    live.kubectl("--namespace", platform, "scale", "deployment", "cloze-operator", "--replicas=0")
    try:
        live.kubectl("delete", "namespace", applied, "--wait", "--timeout=120s")
        live.kubectl("create", "namespace", applied)  # the fixture deletes it once more
    finally:
        live.kubectl("--namespace", platform, "scale", "deployment", "cloze-operator", "--replicas=1")
        live.kubectl("--namespace", platform, "rollout", "status", "deployment/cloze-operator", "--timeout=120s")
