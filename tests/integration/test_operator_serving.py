"""ModelDeployments against a real API server and Deployment controller; a test plays the kubelet."""

from collections.abc import Callable
from typing import Any

import pytest
from kubernetes.client import ApiException

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator_address")]

Document = dict[str, Any]
DIGESTS = {version: "sha256:" + version * 64 for version in "123"}


def model_deployment(name: str, kubelet: Any, model: Document, **spec: Any) -> Document:
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": {"model": model, "resources": kubelet.HUGE, **spec},
    }


def deployment(objects: Any, name: str, version: str = "1") -> Any:
    """The Deployment of the revision with this version."""
    found: list[Document] = objects.list("Deployment", f"cloze.dev/owner={name}")
    of = {entry["metadata"]["annotations"]["cloze.dev/model-version"]: entry for entry in found}
    return of.get(version)


def pods_of_version(objects: Any, name: str, version: str) -> list[Document]:
    pods = objects.list("Pod", f"cloze.dev/owner={name}")
    return [pod for pod in pods if pod["metadata"]["annotations"]["cloze.dev/model-version"] == version]


def test_missing_model_is_waited_for_then_served(objects: Any, registry: Any, kubelet: Any) -> None:
    """A version that isn't registered yet is looked for again; then children come, owned and exact."""
    owner = objects.create(model_deployment("fixed", kubelet, {"name": "fixed", "version": "1"}))
    objects.wait_for_reason("ModelDeployment", "fixed", "ModelResolved", "ModelNotFound")
    assert deployment(objects, "fixed") is None
    registry.register("fixed", "1", digest=DIGESTS["1"])
    objects.wait_for_reason("ModelDeployment", "fixed", "ModelResolved", "Resolved", 20)
    (pod,) = kubelet.pods("fixed", 1)
    environment = {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"]}
    assert environment["CLOZE_MODEL_URI"] == "models:/fixed/1"
    assert environment["CLOZE_MODEL_DIGEST"] == DIGESTS["1"]
    found = objects.wait_for_reason("ModelDeployment", "fixed", "Ready", "Unschedulable")
    assert found["status"] == "False"
    kubelet.run(pod)
    objects.wait_for_reason("ModelDeployment", "fixed", "Ready", "AllReplicasReady")
    status = objects.get("ModelDeployment", "fixed")["status"]
    # Nothing listens where the pod would: it hasn't said what it has loaded.
    assert status["loaded"] == []
    assert status["desired"] == {"name": "fixed", "version": "1", "digest": DIGESTS["1"]}
    assert status["url"] == f"http://fixed.{objects.namespace}.svc"
    assert (status["state"], status["readyReplicas"]) == ("Ready", 1)
    children = [
        child
        for kind in ("Deployment", "Service", "ControllerRevision", "ConfigMap", "PodDisruptionBudget")
        for child in objects.list(kind, "cloze.dev/owner=fixed")
    ]
    assert len(children) == 5
    for child in children:
        references = child["metadata"]["ownerReferences"]
        assert [(o["uid"], o["controller"]) for o in references] == [(owner["metadata"]["uid"], True)]


def test_missing_fallback_is_waited_for_then_pinned(objects: Any, registry: Any, kubelet: Any) -> None:
    """Nothing is made before both versions are known; then the pod has both digests, and its Secret as a folder."""
    registry.register("unsure", "1", digest=DIGESTS["1"])
    model = {"name": "unsure", "version": "1", "fallback": {"name": "sure", "version": "2"}}
    access = {"apiKeys": {"name": "keys", "key": "clients"}}
    objects.create(model_deployment("unsure", kubelet, model, access=access))
    objects.wait_for_reason("ModelDeployment", "unsure", "ModelResolved", "FallbackNotFound")
    assert deployment(objects, "unsure") is None
    registry.register("sure", "2", digest=DIGESTS["2"])
    objects.wait_for_reason("ModelDeployment", "unsure", "ModelResolved", "Resolved", 20)
    (pod,) = kubelet.pods("unsure", 1)
    environment = {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"]}
    assert environment["CLOZE_MODEL_DIGEST"] == f"{DIGESTS['1']} {DIGESTS['2']}"
    assert environment["CLOZE_FALLBACK"] == "unsure/1=sure/2"
    (secret,) = (volume["secret"] for volume in pod["spec"]["volumes"] if volume.get("secret"))
    assert (secret["secretName"], secret["defaultMode"]) == ("keys", 0o440)
    (stored,) = objects.list("ControllerRevision", "cloze.dev/owner=unsure")
    assert stored["data"]["fallback"] == {"name": "sure", "version": "2", "digest": DIGESTS["2"]}
    kubelet.run(pod)
    objects.wait_for_reason("ModelDeployment", "unsure", "Ready", "AllReplicasReady")


def test_followed_alias_rolls_out_then_promotes(
    objects: Any, registry: Any, kubelet: Any, eventually: Callable[..., Any]
) -> None:
    """Without steps a candidate takes over once it is ready; until then the old one serves and has the alias."""
    for version in "12":
        registry.register("followed", version, digest=DIGESTS[version])
    registry.aliases["followed", "challenger"] = "1"
    objects.create(model_deployment("followed", kubelet, {"name": "followed", "follow": {}}))
    kubelet.run(*kubelet.pods("followed", 1))
    objects.wait_for_reason("ModelDeployment", "followed", "AliasMoved", "Version1")
    assert registry.aliases["followed", "champion"] == "1"

    registry.aliases["followed", "challenger"] = "2"
    (new,) = eventually(lambda: pods_of_version(objects, "followed", "2"), "a pod of version 2", 20)
    assert len(pods_of_version(objects, "followed", "1")) == 1
    selector = lambda: objects.get("Service", "followed")["spec"]["selector"]["cloze.dev/revision"]  # noqa: E731
    former = selector()
    assert objects.condition("ModelDeployment", "followed", "Ready")["status"] == "True"
    assert registry.aliases["followed", "champion"] == "1"
    kubelet.run(new)
    objects.wait_for_reason("ModelDeployment", "followed", "AliasMoved", "Version2")
    assert registry.aliases["followed", "champion"] == "2"
    assert selector() == new["metadata"]["labels"]["cloze.dev/revision"] != former


def test_refused_alias_is_said_and_hides_nothing(objects: Any, registry: Any, kubelet: Any) -> None:
    """A registry that refuses the move keeps nobody from seeing that the model is served; later it is moved."""
    registry.register("refused", "1", digest=DIGESTS["1"])
    registry.aliases["refused", "challenger"] = "1"
    registry.writable = False
    try:
        objects.create(model_deployment("refused", kubelet, {"name": "refused", "follow": {}}))
        kubelet.run(*kubelet.pods("refused", 1))
        found = objects.wait_for_reason("ModelDeployment", "refused", "AliasMoved", "AliasRefused")
        assert "may not move aliases" in found["message"]
        live = objects.get("ModelDeployment", "refused")
        assert live["status"]["state"] == "Ready"
        assert objects.condition("ModelDeployment", "refused", "ReconcileFailed") == {}
        events = [e for e in objects.list("Event") if e["involvedObject"]["name"] == "refused"]
        assert "AliasRefused" in {event["reason"] for event in events if event["type"] == "Warning"}
    finally:
        registry.writable = True
    objects.wait_for_reason("ModelDeployment", "refused", "AliasMoved", "Version1", 60)
    assert registry.aliases["refused", "champion"] == "1"


def test_tampered_digest_is_put_right(
    objects: Any, registry: Any, kubelet: Any, eventually: Callable[..., Any]
) -> None:
    """What somebody writes into the live Deployment isn't taken for what was decided, which nobody can change."""
    registry.register("tampered", "1", digest=DIGESTS["1"])
    objects.create(model_deployment("tampered", kubelet, {"name": "tampered", "version": "1"}))
    kubelet.pods("tampered", 1)
    live = deployment(objects, "tampered")
    name, template = live["metadata"]["name"], live["spec"]["template"]["spec"]
    for entry in template["containers"][0]["env"]:
        if entry["name"] == "CLOZE_MODEL_DIGEST":
            entry["value"] = DIGESTS["3"]
    objects.patch("Deployment", name, {"spec": {"template": {"spec": template}}})

    def digest() -> str:
        containers = objects.get("Deployment", name)["spec"]["template"]["spec"]["containers"]
        return str({entry["name"]: entry["value"] for entry in containers[0]["env"]}["CLOZE_MODEL_DIGEST"])

    eventually(lambda: digest() == DIGESTS["1"], "the digest to be put back", 20)
    assert objects.get("ModelDeployment", "tampered")["status"]["desired"]["digest"] == DIGESTS["1"]
    with pytest.raises(ApiException, match="data"):
        objects.patch("ControllerRevision", name, {"data": {"model": {"digest": DIGESTS["3"]}}})


def test_crash_loop_is_never_ready_and_says_why(objects: Any, registry: Any, kubelet: Any) -> None:
    """The server's own reason stands in the condition, and the alias doesn't move."""
    registry.register("broken", "1", digest=DIGESTS["1"])
    registry.aliases["broken", "challenger"] = "1"
    objects.create(model_deployment("broken", kubelet, {"name": "broken", "follow": {}}))
    (pod,) = kubelet.pods("broken", 1)
    kubelet.crash(pod, 10, reason="DigestMismatch", message="the artifact's digest is another", exit_code=10)
    found = objects.wait_for_reason("ModelDeployment", "broken", "Ready", "CrashLoopBackOff")
    assert "DigestMismatch" in found["message"]
    # Up again for a moment: no longer waiting, but it has died three times and a moment ago.
    kubelet.run(pod)
    assert objects.get("ModelDeployment", "broken")["status"]["state"] == "Failing"
    assert ("broken", "champion") not in registry.aliases


def test_serving_goes_on_without_the_registry(
    objects: Any, registry: Any, kubelet: Any, eventually: Callable[..., Any]
) -> None:
    """What was resolved is stored: it is served and repaired while the registry is away."""
    registry.register("steady", "1", digest=DIGESTS["1"])
    registry.aliases["steady", "challenger"] = "1"
    objects.create(model_deployment("steady", kubelet, {"name": "steady", "follow": {}}))
    kubelet.run(*kubelet.pods("steady", 1))
    objects.wait_for_reason("ModelDeployment", "steady", "Ready", "AllReplicasReady")
    registry.up = False
    try:
        found = objects.wait_for_reason("ModelDeployment", "steady", "ModelResolved", "RegistryUnavailable", 20)
        assert "serving version 1 as before" in found["message"]
        assert objects.condition("ModelDeployment", "steady", "Ready")["status"] == "True"
        objects.delete("Service", "steady")
        eventually(lambda: objects.get("Service", "steady"), "the Service to be made again", 20)
        name = deployment(objects, "steady")["metadata"]["name"]
        objects.patch("Deployment", name, {"spec": {"replicas": 3}})
        eventually(lambda: objects.get("Deployment", name)["spec"]["replicas"] == 1, "the replicas to be put back")
    finally:
        registry.up = True


def test_foreign_service_is_left_alone(objects: Any, registry: Any, kubelet: Any) -> None:
    """A Service of that name with another owner is not edited, and nothing is started beside it."""
    registry.register("taken", "1", digest=DIGESTS["1"])
    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "taken"}, "spec": {"ports": [{"port": 1}]}}
    before = objects.create(foreign)
    objects.create(model_deployment("taken", kubelet, {"name": "taken", "version": "1"}))
    found = objects.wait_for_reason("ModelDeployment", "taken", "Ready", "NameConflict")
    assert "Service taken" in found["message"]
    after = objects.get("Service", "taken")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert deployment(objects, "taken") is None


def test_an_alias_has_one_owner(objects: Any, registry: Any, kubelet: Any) -> None:
    """The younger of two that move the same alias serves, says so, and leaves the alias alone."""
    registry.register("shared", "1", digest=DIGESTS["1"])
    registry.aliases["shared", "challenger"] = "1"
    objects.create(model_deployment("shared-a", kubelet, {"name": "shared", "follow": {}}))
    objects.create(model_deployment("shared-b", kubelet, {"name": "shared", "follow": {}}))
    found = objects.wait_for_reason("ModelDeployment", "shared-b", "AliasConflict", "AliasOwnedByAnother")
    assert f"{objects.namespace}/shared-a" in found["message"]
    kubelet.run(*kubelet.pods("shared-b", 1))
    objects.wait_for_reason("ModelDeployment", "shared-b", "Ready", "AllReplicasReady")
    assert ("shared", "champion") not in registry.aliases
    assert objects.condition("ModelDeployment", "shared-a", "AliasConflict") == {}


def test_scale_subresource_works(objects: Any, registry: Any, kubelet: Any, eventually: Callable[..., Any]) -> None:
    """`kubectl scale` reaches the Deployment, and the selector finds the pods; at zero nothing is Ready."""
    registry.register("scaled", "1", digest=DIGESTS["1"])
    objects.create(model_deployment("scaled", kubelet, {"name": "scaled", "version": "1"}))
    kubelet.pods("scaled", 1)
    objects.patch("ModelDeployment", "scaled", {"spec": {"replicas": 2}})
    kubelet.pods("scaled", 2)
    selector = objects.get("ModelDeployment", "scaled")["status"]["selector"]
    assert len(objects.list("Pod", selector)) == 2
    objects.patch("ModelDeployment", "scaled", {"spec": {"replicas": 0}})
    objects.wait_for_reason("ModelDeployment", "scaled", "Ready", "NoReplicas")
    assert objects.get("ModelDeployment", "scaled")["status"]["state"] == "Stopped"


def test_version_without_digest_is_refused(objects: Any, registry: Any, kubelet: Any) -> None:
    """A version that nobody can verify is not served."""
    registry.register("bare", "1")
    objects.create(model_deployment("bare", kubelet, {"name": "bare", "version": "1"}))
    objects.wait_for_reason("ModelDeployment", "bare", "ModelResolved", "DigestMissing")
    assert deployment(objects, "bare") is None
