"""Training jobs against a real API server, Job controller and scheduler; a test plays the kubelet."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator_address")]

Document = dict[str, Any]
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture(scope="module", autouse=True)
def data(objects: Any) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "text"}, "data": {"a.txt": "a", "b": "b"}}
    objects.create(body)


def pretrain_job(name: str, kubelet: Any, nodes: int = 2, **spec: Any) -> Document:
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": name},
        "spec": {
            "corpus": [{"uri": "configmap://text/a.txt"}],
            "registry": {"name": f"model-{name}"},
            "storage": {"size": "1Mi"},
            "topology": {"nodes": nodes, "nodeSelector": kubelet.NOWHERE},
            **spec,
        },
    }


def fine_tune_job(name: str, kubelet: Any, base: Document) -> Document:
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "base": base,
            "task": "sequence-classification",
            "dataset": {"train": "configmap://text/a.txt", "test": "configmap://text/b"},
            "registry": {"name": f"model-{name}"},
            "storage": {"size": "1Mi"},
            "topology": {"nodeSelector": kubelet.NOWHERE},
        },
    }


def eventually(check: Callable[[], Any]) -> Any:
    """What `check` answers in the end."""
    end = time.monotonic() + 30
    while not (answer := check()) and time.monotonic() < end:
        time.sleep(0.3)
    return answer


def succeed(registry: Any, kubelet: Any, name: str, *, version: str = "1", nodes: int = 1) -> None:
    """Play a whole run that registers `version`."""
    model = f"model-{name}"
    pods = kubelet.pods(name, nodes)
    kubelet.run(*pods)
    registry.register(model, version, digest=DIGEST)
    outcome = {"model_name": model, "model_version": version, "model_digest": DIGEST, "run_id": "r", "step": 1000}
    kubelet.end(pods[0], 0, reason="Completed", metrics={"accuracy": 0.5}, **outcome)
    for pod in pods[1:]:
        kubelet.end(pod, 0, reason="Completed")


def test_children_are_owned_and_no_finalizer_is_set(objects: Any, kubelet: Any) -> None:
    """A suspended job has all its children, each controlled by it, and neither has a finalizer of ours."""
    job = objects.create(pretrain_job("owned", kubelet, suspend=True))
    objects.wait_for_reason("PretrainJob", "owned", "Running", "Suspended")
    names = {
        "Job": "owned-pretrain",
        "Service": "owned-pretrain",
        "ConfigMap": "owned-pretrain-spec",
        "PersistentVolumeClaim": "owned-pretrain-run",
    }
    for kind, name in names.items():
        child = objects.get(kind, name)
        assert child is not None, kind
        assert [(o["uid"], o["controller"]) for o in child["metadata"]["ownerReferences"]] == [
            (job["metadata"]["uid"], True)
        ]
        assert not [f for f in child["metadata"].get("finalizers", []) if "cloze" in f or "kopf" in f]
    live = objects.get("PretrainJob", "owned")
    assert not live["metadata"].get("finalizers")
    assert not live["metadata"].get("annotations")
    assert live["status"]["state"] == "Suspended"
    assert "startTime" not in live["status"]
    assert objects.get("Job", "owned-pretrain")["spec"]["suspend"] is True
    document = yaml.safe_load(objects.get("ConfigMap", "owned-pretrain-spec")["data"]["job.yaml"])
    assert document["metadata"]["uid"] == job["metadata"]["uid"]


def test_edit_before_the_start_reaches_the_children(objects: Any, kubelet: Any) -> None:
    """Until it starts, a job may be changed in every field, and what can't be changed in place is made anew."""
    objects.create(pretrain_job("edited", kubelet, suspend=True))
    objects.wait_for_reason("PretrainJob", "edited", "Running", "Suspended")
    before = objects.get("Job", "edited-pretrain")["metadata"]["uid"]
    change = {"spec": {"topology": {"nodes": 3}, "model": {"layers": 1}, "storage": {"size": "2Mi"}}}
    objects.patch("PretrainJob", "edited", change)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        job, claim = objects.get("Job", "edited-pretrain"), objects.get("PersistentVolumeClaim", "edited-pretrain-run")
        if (
            job
            and claim
            and job["metadata"]["uid"] != before
            and claim["spec"]["resources"]["requests"]["storage"] == "2Mi"
        ):
            break
        time.sleep(0.3)
    assert job["spec"]["completions"] == 3
    document = yaml.safe_load(objects.get("ConfigMap", "edited-pretrain-spec")["data"]["job.yaml"])
    assert document["spec"]["model"]["layers"] == 1


def test_kueue_decides_when_a_queued_run_may_run(objects: Any, kubelet: Any, eventually: Any) -> None:
    """A test plays Kueue: it lets the Job go on machines of its choice, preempts it, and is undone in nothing."""
    body = pretrain_job("queued", kubelet)
    body["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
    objects.create(body)
    found = objects.wait_for_reason("PretrainJob", "queued", "Running", "Queued")
    assert "LocalQueue gpus" in found["message"]
    job = objects.get("Job", "queued-pretrain")
    assert (job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], job["spec"]["suspend"]) == ("gpus", True)
    assert objects.list("Pod", "cloze.dev/owner=queued") == []

    chosen = {"tolerations": [{"key": "spot", "operator": "Exists"}], "nodeSelector": {"flavor": "spot"}}
    admitted = {"suspend": False, "template": {"metadata": {"labels": {"flavor": "spot"}}, "spec": chosen}}
    objects.patch("Job", "queued-pretrain", {"spec": admitted})
    objects.wait_for_reason("PretrainJob", "queued", "Running", "Unschedulable")
    assert [pod["spec"]["nodeSelector"]["flavor"] for pod in kubelet.pods("queued", 2)] == ["spot", "spot"]
    # What the operator does meanwhile, such as a new deadline, must not touch what Kueue has set.
    objects.patch("PretrainJob", "queued", {"spec": {"activeDeadlineSeconds": 1000}})
    eventually(lambda: objects.get("Job", "queued-pretrain")["spec"].get("activeDeadlineSeconds") == 1000, "a deadline")
    spec = objects.get("Job", "queued-pretrain")["spec"]
    assert (spec["suspend"], spec["template"]["spec"]["nodeSelector"]["flavor"]) == (False, "spot")

    objects.patch("Job", "queued-pretrain", {"spec": {"suspend": True}})
    objects.wait_for_reason("PretrainJob", "queued", "Running", "Queued")
    objects.patch("PretrainJob", "queued", {"spec": {"suspend": True}})
    objects.wait_for_reason("PretrainJob", "queued", "Running", "Suspended")
    eventually(lambda: objects.get("Job", "queued-pretrain") is None, "the Job to leave its queue")
    objects.patch("PretrainJob", "queued", {"spec": {"suspend": False}})
    objects.wait_for_reason("PretrainJob", "queued", "Running", "Queued")
    assert objects.get("Job", "queued-pretrain")["metadata"]["uid"] != job["metadata"]["uid"]
    assert objects.get("PretrainJob", "queued")["status"]["restarts"] == 0


def test_missing_source_is_waited_for(objects: Any, kubelet: Any) -> None:
    """No pod is created before its claims exist; the condition names them, and their arrival is noticed."""
    job = pretrain_job("waits", kubelet, nodes=1, corpus=[{"uri": "pvc://late/x.txt"}])
    job["spec"]["storage"]["dataCache"] = {"claimName": "shared"}
    objects.create(job)
    found = objects.wait_for_reason("PretrainJob", "waits", "SourcesReady", "SourceNotFound")
    assert "PersistentVolumeClaim late" in found["message"]
    assert "PersistentVolumeClaim shared doesn't exist" in found["message"]
    assert "spec.storage.dataCache.claimName" in found["message"]
    assert objects.get("Job", "waits-pretrain") is None
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    for name in ("late", "shared"):
        objects.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec})
    objects.wait_for_reason("PretrainJob", "waits", "SourcesReady", "SourcesFound", 20)


def test_unschedulable_is_said_in_the_schedulers_words(objects: Any, kubelet: Any) -> None:
    """A run whose pods find no machine isn't Running, and says why."""
    objects.create(pretrain_job("nowhere", kubelet, nodes=1))
    found = objects.wait_for_reason("PretrainJob", "nowhere", "Running", "Unschedulable")
    assert "nodes are available" in found["message"]


def test_start_freezes_what_defines_the_result(objects: Any, kubelet: Any) -> None:
    """Once a pod is wanted the API server refuses changes of the spec, but for those that don't define the result."""
    objects.create(pretrain_job("frozen", kubelet, nodes=1))
    objects.wait_for_reason("PretrainJob", "frozen", "Running", "Unschedulable")
    with pytest.raises(Exception, match="can't change after the run has started"):
        objects.patch("PretrainJob", "frozen", {"spec": {"model": {"layers": 2}}})
    objects.patch("PretrainJob", "frozen", {"spec": {"suspend": True, "activeDeadlineSeconds": 1000}})
    objects.wait_for_reason("PretrainJob", "frozen", "Running", "Suspended")
    spec = objects.get("Job", "frozen-pretrain")["spec"]
    assert (spec["suspend"], spec["activeDeadlineSeconds"]) == (True, 1000)
    objects.patch("PretrainJob", "frozen", {"spec": {"suspend": False}})
    objects.wait_for_reason("PretrainJob", "frozen", "Running", "Unschedulable")
    assert objects.get("PretrainJob", "frozen")["status"]["restarts"] == 0


def read_by_pods(objects: Any, name: str) -> Document:
    """The document that a run's pods read."""
    document: Document = yaml.safe_load(objects.get("ConfigMap", f"{name}-spec")["data"]["job.yaml"])
    return document


def test_a_suspended_run_is_resized(objects: Any, registry: Any, kubelet: Any, eventually: Any) -> None:
    """One pod, two, one: the run keeps its uid, start and volume, and no pod reads what is for the next ones."""
    run = objects.create(pretrain_job("resized", kubelet, nodes=1))
    (pod,) = kubelet.pods("resized", 1)
    kubelet.run(pod)
    objects.wait_for_reason("PretrainJob", "resized", "Running", "PodsRunning")
    started = objects.get("PretrainJob", "resized")["status"]["startTime"]
    volume = objects.get("PersistentVolumeClaim", "resized-pretrain-run")["metadata"]["uid"]
    job = objects.get("Job", "resized-pretrain")["metadata"]["uid"]
    with pytest.raises(Exception, match=r"spec\.topology can't change .* suspend the job first"):
        objects.patch("PretrainJob", "resized", {"spec": {"topology": {"nodes": 2}}})

    # It takes its time to save a checkpoint.
    own = pod["metadata"].get("finalizers") or []
    objects.patch("Pod", pod["metadata"]["name"], {"metadata": {"finalizers": [*own, "cloze.dev/saving"]}})
    objects.patch("PretrainJob", "resized", {"spec": {"suspend": True}})
    objects.wait_for_reason("PretrainJob", "resized", "Running", "Suspended")
    objects.patch("PretrainJob", "resized", {"spec": {"topology": {"nodes": 2}}})
    eventually(lambda: objects.get("Job", "resized-pretrain")["metadata"].get("deletionTimestamp"), "the Job to go")
    time.sleep(3)
    assert read_by_pods(objects, "resized-pretrain")["spec"]["topology"]["nodes"] == 1
    objects.patch("Pod", pod["metadata"]["name"], {"metadata": {"finalizers": None}})

    def made() -> Any:
        found = objects.get("Job", "resized-pretrain")
        return found if found and found["metadata"]["uid"] != job else None

    two = eventually(made, "another Job")
    assert (two["spec"]["completions"], two["spec"]["suspend"]) == (2, True)
    document = read_by_pods(objects, "resized-pretrain")
    assert (document["spec"]["topology"]["nodes"], document["metadata"]["uid"]) == (2, run["metadata"]["uid"])
    objects.wait_for_reason("PretrainJob", "resized", "Running", "Suspended")
    objects.patch("PretrainJob", "resized", {"spec": {"suspend": False}})
    kubelet.run(*kubelet.pods("resized", 2))
    objects.wait_for_reason("PretrainJob", "resized", "Running", "PodsRunning")

    # Back, by a change that comes with the end of the suspension.
    job = two["metadata"]["uid"]
    objects.patch("PretrainJob", "resized", {"spec": {"suspend": True}})
    objects.wait_for_reason("PretrainJob", "resized", "Running", "Suspended")
    objects.patch("PretrainJob", "resized", {"spec": {"suspend": False, "topology": {"nodes": 1}}})
    assert eventually(made, "another Job")["spec"]["completions"] == 1
    succeed(registry, kubelet, "resized")
    objects.wait_for_reason("PretrainJob", "resized", "Registered", "AliasSet")
    status = objects.get("PretrainJob", "resized")["status"]
    assert (status["restarts"], status["interruptions"], status["startTime"]) == (0, 0, started)
    assert objects.get("PersistentVolumeClaim", "resized-pretrain-run")["metadata"]["uid"] == volume
    told = [event["message"].split(":")[0] for event in objects.list("Event") if event["reason"] == "Resized"]
    assert sorted(told) == ["topology.nodes 1 → 2", "topology.nodes 2 → 1"]


@pytest.mark.parametrize("kind", ["PretrainJob", "FineTuneJob"])
def test_what_pods_have_read_changes_with_a_suspension(objects: Any, kubelet: Any, eventually: Any, kind: str) -> None:
    """A trace, how long a rank may be stuck, threads: refused while pods have others, and delivered to the next."""
    name = "told" if kind == "PretrainJob" else "tuned-told"
    body = pretrain_job(name, kubelet, nodes=1)
    if kind == "FineTuneJob":
        body = fine_tune_job(name, kubelet, {"uri": "hf://owner/name"})
    body["spec"]["failurePolicy"] = {"stuckSeconds": 900}
    objects.create(body)
    objects.wait_for_reason(kind, name, "Running", "Unschedulable")
    own = f"{name}-{'pretrain' if kind == 'PretrainJob' else 'finetune'}"
    assert read_by_pods(objects, own)["spec"]["failurePolicy"] == {"stuckSeconds": 900}
    changes = {
        "profile": {"fromStep": 50, "steps": 2},
        "failurePolicy": {"stuckSeconds": 60},
        "topology": {"threadsPerProcess": 3},
    }
    for field, value in changes.items():
        with pytest.raises(Exception, match=rf"spec\.{field}.* can't change .* suspend the job first"):
            objects.patch(kind, name, {"spec": {field: value}})
    objects.patch(kind, name, {"spec": {"failurePolicy": {"maxRestarts": 7}}})
    # All at once is fine, too: the pods stop first.
    objects.patch(kind, name, {"spec": {"suspend": True, **changes}})
    eventually(lambda: read_by_pods(objects, own)["spec"].get("profile") == changes["profile"], "the profile")
    objects.patch(kind, name, {"spec": {"suspend": False}})
    objects.wait_for_reason(kind, name, "Running", "Unschedulable")
    spec = read_by_pods(objects, own)["spec"]
    assert spec["failurePolicy"] == {"stuckSeconds": 60}
    (pod,) = kubelet.pods(name, 1)
    assert {"name": "OMP_NUM_THREADS", "value": "3"} in pod["spec"]["containers"][0]["env"]
    with pytest.raises(Exception, match="can't change after the run has started"):
        objects.patch(kind, name, {"spec": {"suspend": True, "optimization": {"seed": 5}}})


def test_success_registers_and_sets_the_alias(objects: Any, registry: Any, kubelet: Any) -> None:
    """The version comes from the pods' own words; the alias is set by the operator, after success."""
    objects.create(pretrain_job("good", kubelet))
    succeed(registry, kubelet, "good", nodes=2)
    objects.wait_for_reason("PretrainJob", "good", "Registered", "AliasSet")
    status = objects.get("PretrainJob", "good")["status"]
    assert status["state"] == "Succeeded"
    assert status["model"] == {"name": "model-good", "version": "1", "digest": DIGEST, "runId": "r"}
    assert status["metrics"] == {"accuracy": 0.5}
    assert registry.aliases["model-good", "challenger"] == "1"


def test_alias_never_moves_down(objects: Any, registry: Any, kubelet: Any) -> None:
    """A job that finishes late leaves an alias that points to a newer version."""
    registry.register("model-late", "9", digest=DIGEST)
    registry.aliases["model-late", "challenger"] = "9"
    objects.create(pretrain_job("late", kubelet, nodes=1))
    succeed(registry, kubelet, "late", version="3")
    objects.wait_for_reason("PretrainJob", "late", "Registered", "AliasNewer")
    assert registry.aliases["model-late", "challenger"] == "9"


def test_lost_termination_message_is_looked_up(objects: Any, registry: Any, kubelet: Any) -> None:
    """A run whose pods can't tell its version any more is found in the registry by its uid."""
    job = objects.create(pretrain_job("silent", kubelet, nodes=1))
    (pod,) = kubelet.pods("silent", 1)
    registry.register("model-silent", "4", digest=DIGEST, job_uid=job["metadata"]["uid"])
    kubelet.end(pod, 0)
    objects.wait_for_reason("PretrainJob", "silent", "Registered", "AliasSet")
    assert objects.get("PretrainJob", "silent")["status"]["model"]["version"] == "4"


def test_final_exit_code_ends_the_run(objects: Any, kubelet: Any) -> None:
    """A diverged run isn't restarted, and the pod's own reason is what the status says."""
    objects.create(pretrain_job("diverged", kubelet))
    pods = kubelet.pods("diverged", 2)
    kubelet.run(*pods)
    kubelet.end(pods[0], 22, reason="PeerLost", message="rank 1 is gone")
    kubelet.end(pods[1], 11, reason="Diverged", message="the loss is nan at step 7")
    found = objects.wait_for_reason("PretrainJob", "diverged", "Succeeded", "Diverged")
    assert (found["status"], "step 7" in found["message"]) == ("False", True)
    status = objects.get("PretrainJob", "diverged")["status"]
    assert (status["state"], status["restarts"]) == ("Failed", 0)


def test_a_gang_that_fails_as_a_whole_uses_one_restart(objects: Any, kubelet: Any) -> None:
    """Restarts count gangs, not pods; when they are used up, the Job is ended."""
    objects.create(pretrain_job("gang", kubelet, failurePolicy={"maxRestarts": 1}))
    pods = kubelet.pods("gang", 2)
    kubelet.run(*pods)
    for pod in pods:
        kubelet.end(pod, 20, reason="DiskFull", message="no space left")
    # The Job controller waits ten seconds before it replaces a failed pod.
    again = kubelet.pods("gang", 2)
    assert objects.get("PretrainJob", "gang")["status"]["restarts"] == 1
    kubelet.run(*again)
    kubelet.end(again[0], 20, reason="DiskFull", message="no space left")
    found = objects.wait_for_reason("PretrainJob", "gang", "Succeeded", "DiskFull")
    assert "all 1 restarts" in found["message"]
    assert objects.get("PretrainJob", "gang")["status"]["restarts"] == 1


def test_lost_peers_are_not_counted(objects: Any, kubelet: Any) -> None:
    """Pods that stopped because of a peer are replaced for free."""
    objects.create(pretrain_job("peers", kubelet, failurePolicy={"maxRestarts": 0}))
    pods = kubelet.pods("peers", 2)
    kubelet.run(*pods)
    for pod in pods:
        kubelet.end(pod, 22, reason="PeerLost", message="the rendezvous is gone")
    kubelet.pods("peers", 2)
    assert objects.condition("PretrainJob", "peers", "Succeeded")["status"] == "Unknown"
    assert objects.get("PretrainJob", "peers")["status"]["restarts"] == 0


def test_a_preempted_gang_is_made_anew_without_a_back_off(objects: Any, kubelet: Any, eventually: Any) -> None:
    """Its pods were taken away for the third time: the successors come at once, and no restart is used."""
    objects.create(pretrain_job("preempted", kubelet, nodes=1, failurePolicy={"maxRestarts": 0}))
    first = objects.get("Job", "preempted-pretrain") or eventually(
        lambda: objects.get("Job", "preempted-pretrain"), "the Job"
    )
    for _ in range(2):
        (pod,) = kubelet.pods("preempted", 1)
        kubelet.take(pod, "PreemptionByScheduler")
    renewed = eventually(
        lambda: (
            (job := objects.get("Job", "preempted-pretrain")) and job["metadata"]["uid"] != first["metadata"]["uid"]
        ),
        "another Job",
        40,
    )
    assert renewed
    kubelet.pods("preempted", 1)
    status = eventually(
        lambda: (found := objects.get("PretrainJob", "preempted")["status"])["interruptions"] >= 2 and found,
        "the second interruption to be counted",
    )
    assert (status["restarts"], status["interruptions"]) == (0, 2)
    (node,) = status["nodes"]
    assert node["lastExit"]["reason"] == "PreemptionByScheduler"


def test_registry_outage_at_the_end_is_waited_out(objects: Any, registry: Any, kubelet: Any) -> None:
    """A run that has done its work uses no restart while MLflow is away, and says what it waits for."""
    objects.create(pretrain_job("patient", kubelet, nodes=1, failurePolicy={"maxRestarts": 0}))
    (pod,) = kubelet.pods("patient", 1)
    kubelet.run(pod)
    kubelet.end(pod, 21, reason="RegistryUnavailable", message="MLflow didn't answer for 300 s")
    objects.wait_for_reason("PretrainJob", "patient", "Running", "WaitingForRegistry")
    status = objects.get("PretrainJob", "patient")["status"]
    assert (status["state"], status["restarts"], status["interruptions"]) == ("Waiting", 0, 1)
    succeed(registry, kubelet, "patient")
    objects.wait_for_reason("PretrainJob", "patient", "Registered", "AliasSet")


def test_pods_of_a_deleted_job_are_waited_for(objects: Any, kubelet: Any) -> None:
    """`kubectl delete job` takes the Job at once and its pods in their time, in which they save a checkpoint."""
    objects.create(pretrain_job("hasty", kubelet, nodes=1))
    (pod,) = kubelet.pods("hasty", 1)
    kubelet.run(pod)
    objects.wait_for_reason("PretrainJob", "hasty", "Running", "PodsRunning")
    name = pod["metadata"]["name"]
    # No machine has it, whose kubelet would take its time.
    objects.patch("Pod", name, {"metadata": {"finalizers": ["cloze.dev/stops"]}})
    objects.delete("Job", "hasty-pretrain")
    found = objects.wait_for_reason("PretrainJob", "hasty", "Running", "WaitingForPods")
    assert name in found["message"]
    assert objects.get("Job", "hasty-pretrain") is None
    objects.delete("Pod", name)
    objects.wait_for_reason("PretrainJob", "hasty", "Running", "WaitingForPods")
    assert objects.get("Job", "hasty-pretrain") is None
    objects.patch("Pod", name, {"metadata": {"finalizers": None}})
    assert eventually(lambda: objects.get("Job", "hasty-pretrain"))
    kubelet.pods("hasty", 1)


def test_refused_job_can_be_corrected(objects: Any, kubelet: Any) -> None:
    """What only the API server can know about a Job is known before the spec is frozen."""
    topology = {"nodeSelector": kubelet.NOWHERE, "resources": {"limits": {"example.com/part": "500m"}}}
    objects.create(pretrain_job("half", kubelet, topology=topology))
    found = objects.wait_for_reason("PretrainJob", "half", "ReconcileFailed", "Invalid")
    assert "must be an integer" in found["message"]
    status = objects.get("PretrainJob", "half")["status"]
    assert status["state"] == "Pending"
    assert "startTime" not in status
    objects.patch("PretrainJob", "half", {"spec": {"topology": {"resources": {"limits": {"example.com/part": "1"}}}}})
    objects.wait_for_reason("PretrainJob", "half", "Running", "Unschedulable")
    assert objects.condition("PretrainJob", "half", "ReconcileFailed") == {}


def test_job_of_the_same_name_waits_for_the_old_ones_children(objects: Any, kubelet: Any) -> None:
    """Deleting a job and creating it again is no conflict of names."""
    objects.create(pretrain_job("again", kubelet, nodes=1))
    objects.wait_for_reason("PretrainJob", "again", "Running", "Unschedulable")
    objects.delete("PretrainJob", "again")
    new = objects.create(pretrain_job("again", kubelet, nodes=1))
    states = set()
    end = time.monotonic() + 60
    while (
        time.monotonic() < end and objects.condition("PretrainJob", "again", "Running").get("reason") != "Unschedulable"
    ):
        states.add((objects.get("PretrainJob", "again").get("status") or {}).get("state"))
        time.sleep(0.1)
    assert "Invalid" not in states
    owners = objects.get("Job", "again-pretrain")["metadata"]["ownerReferences"]
    assert [owner["uid"] for owner in owners] == [new["metadata"]["uid"]]


def test_time_to_live_deletes_the_resource_and_its_children(objects: Any, registry: Any, kubelet: Any) -> None:
    """`ttlSecondsAfterFinished` is the resource's, and its children go with it."""
    objects.create(pretrain_job("brief", kubelet, nodes=1, ttlSecondsAfterFinished=1))
    succeed(registry, kubelet, "brief")
    end = time.monotonic() + 40
    kinds = {
        "PretrainJob": "brief",
        "Job": "brief-pretrain",
        "Service": "brief-pretrain",
        "ConfigMap": "brief-pretrain-spec",
    }
    while time.monotonic() < end and any(objects.get(kind, name) for kind, name in kinds.items()):
        time.sleep(0.5)
    assert not [kind for kind, name in kinds.items() if objects.get(kind, name)]


def test_fine_tuning_waits_for_its_pretraining(objects: Any, registry: Any, kubelet: Any) -> None:
    """The base is the very version that the PretrainJob registered; the digest goes along."""
    objects.create(fine_tune_job("tuned", kubelet, {"pretrainJob": {"name": "base"}}))
    objects.wait_for_reason("FineTuneJob", "tuned", "BaseReady", "PretrainJobNotFound")
    objects.create(pretrain_job("base", kubelet, nodes=1))
    objects.wait_for_reason("FineTuneJob", "tuned", "BaseReady", "WaitingForPretrainJob")
    assert objects.get("Job", "tuned-finetune") is None
    succeed(registry, kubelet, "base", version="7")
    objects.wait_for_reason("FineTuneJob", "tuned", "BaseReady", "BaseResolved")
    objects.wait_for_reason("FineTuneJob", "tuned", "Running", "Unschedulable")
    document = yaml.safe_load(objects.get("ConfigMap", "tuned-finetune-spec")["data"]["job.yaml"])
    assert document["spec"]["base"] == {"model": {"name": "model-base", "version": "7"}}
    environment = objects.get("Job", "tuned-finetune")["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "CLOZE_BASE_DIGEST", "value": DIGEST} in environment


def test_resolution_is_frozen(objects: Any, registry: Any, kubelet: Any) -> None:
    """An alias that moves after the start changes nothing, and neither does a registry that is away."""
    registry.register("hub", "2", digest=DIGEST)
    registry.register("hub", "3", digest=DIGEST)
    registry.aliases["hub", "champion"] = "2"
    objects.create(fine_tune_job("alias", kubelet, {"model": {"name": "hub", "alias": "champion"}}))
    objects.wait_for_reason("FineTuneJob", "alias", "Running", "Unschedulable")
    registry.aliases["hub", "champion"] = "3"
    objects.delete("Job", "alias-finetune")
    assert eventually(lambda: objects.get("Job", "alias-finetune"))
    assert "version 2" in objects.condition("FineTuneJob", "alias", "BaseReady")["message"]


def test_distillation_waits_for_its_teacher(objects: Any, registry: Any, kubelet: Any) -> None:
    """No pod is asked for before the teacher is registered; after the start its alias may move, or the registry go."""
    registry.register("hub", "2", digest=DIGEST)
    student = fine_tune_job("student", kubelet, {"model": {"name": "hub", "version": "2"}})
    student["spec"]["distillation"] = {"teacher": {"model": {"name": "large", "alias": "champion"}}}
    objects.create(student)
    objects.wait_for_reason("FineTuneJob", "student", "TeacherReady", "ModelNotFound")
    assert objects.get("Job", "student-finetune") is None
    assert eventually(lambda: "ModelNotFound" in {event["reason"] for event in objects.list("Event")})
    registry.register("large", "4", digest=DIGEST)
    registry.register("large", "5", digest=DIGEST)
    registry.aliases["large", "champion"] = "4"
    objects.wait_for_reason("FineTuneJob", "student", "Running", "Unschedulable")
    registry.aliases["large", "champion"] = "5"
    objects.delete("Job", "student-finetune")
    assert eventually(lambda: objects.get("Job", "student-finetune"))
    assert "version 4" in objects.condition("FineTuneJob", "student", "TeacherReady")["message"]
    document = yaml.safe_load(objects.get("ConfigMap", "student-finetune-spec")["data"]["job.yaml"])
    assert document["spec"]["distillation"]["teacher"] == {"model": {"name": "large", "version": "4"}}


def test_foreign_service_is_left_alone(objects: Any, kubelet: Any) -> None:
    """An object that has a child's name and another owner is neither edited nor used."""
    spec = {"ports": [{"port": 1}], "clusterIP": "None"}
    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "taken-pretrain"}, "spec": spec}
    before = objects.create(foreign)
    objects.create(pretrain_job("taken", kubelet, nodes=1))
    found = objects.wait_for_reason("PretrainJob", "taken", "Accepted", "NameConflict")
    assert "Service taken-pretrain" in found["message"]
    assert (
        objects.get("Service", "taken-pretrain")["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    )
    assert objects.get("Job", "taken-pretrain") is None
