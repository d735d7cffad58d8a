"""Rollouts against a real API server and Deployment controller; a test plays the kubelet, the gateway and the person.

There is no Prometheus: what follows from requests is tested with real ones, elsewhere.
"""

import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, dynamic
from kubernetes.dynamic.exceptions import ConflictError, NotFoundError, ResourceNotFoundError

pytestmark = pytest.mark.cluster

Document = dict[str, Any]
Eventually = Callable[..., Any]

API = "gateway.networking.k8s.io/v1"
DIGESTS = {version: "sha256:" + version * 64 for version in "123"}
ROUTE = {"provider": "GatewayAPI", "route": {"parentRefs": [{"name": "nobody"}], "path": "/spam"}}
HELD = [{"weight": 10, "holdSeconds": 3600}, {"weight": 50, "holdSeconds": 3600}]


def reconciles(address: str, result: str) -> float:
    """How often the operator has looked at a ModelDeployment, with this result."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=5) as reply:  # noqa: S310 - our own address
        text = str(reply.read().decode())
    name = f'cloze_operator_reconciles_total{{kind="ModelDeployment",result="{result}"}}'
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


class Rollout:
    """One ModelDeployment in a namespace, from the outside."""

    def __init__(self, objects: Any, registry: Any, kubelet: Any, eventually: Eventually, name: str) -> None:
        self.objects, self.registry, self.kubelet, self.eventually, self.name = (
            objects,
            registry,
            kubelet,
            eventually,
            name,
        )
        for version, digest in DIGESTS.items():
            registry.register(name, version, digest=digest)

    def create(self, **spec: Any) -> None:
        """With version 1."""
        model = {"name": self.name, "version": "1"}
        self.objects.create(
            {
                "apiVersion": "cloze.dev/v1alpha1",
                "kind": "ModelDeployment",
                "metadata": {"name": self.name},
                "spec": {"model": model, "resources": self.kubelet.HUGE, **spec},
            }
        )

    def serve(self, count: int) -> None:
        """Its first pods run."""
        self.kubelet.run(*self.pods("1", count))
        self.reason("Ready", "AllReplicasReady")

    def ask_for(self, version: str) -> None:
        self.objects.patch("ModelDeployment", self.name, {"spec": {"model": {"version": version}}})

    def command(self, command: str) -> None:
        self.objects.patch("ModelDeployment", self.name, {"metadata": {"annotations": {"cloze.dev/rollout": command}}})

    def command_is_obeyed(self) -> None:
        """The operator has taken it away."""
        self.eventually(
            lambda: "cloze.dev/rollout" not in (self.live()["metadata"].get("annotations") or {}),
            "the command to be taken away",
        )

    def live(self) -> Document:
        found: Document = self.objects.get("ModelDeployment", self.name)
        return found

    def status(self) -> Document:
        found: Document = self.live()["status"]
        return found

    def pods(self, version: str, count: int) -> list[Document]:
        """The pods of a version that aren't going, once there are so many."""

        def found() -> list[Document] | None:
            pods = self.objects.list("Pod", f"cloze.dev/owner={self.name}")
            own = [pod for pod in pods if pod["metadata"]["annotations"]["cloze.dev/model-version"] == version]
            own = [pod for pod in own if not pod["metadata"].get("deletionTimestamp")]
            return [{"pods": own}] if len(own) == count else None

        (result,) = self.eventually(found, f"{count} pods of version {version}", 40)
        pods: list[Document] = result["pods"]
        return pods

    def reason(self, condition: str, reason: str, seconds: float = 30) -> Document:
        found: Document = self.objects.wait_for_reason("ModelDeployment", self.name, condition, reason, seconds)
        return found

    def revision(self, version: str) -> str:
        """The name of a version's revision."""
        revisions = self.objects.list("ControllerRevision", f"cloze.dev/owner={self.name}")
        (found,) = (entry for entry in revisions if entry["data"]["model"]["version"] == version)
        return str(found["metadata"]["labels"]["cloze.dev/revision"])

    def behind(self) -> str:
        """The revision that the Service leads to; empty for all."""
        selector = self.objects.get("Service", self.name)["spec"]["selector"]
        return str(selector.get("cloze.dev/revision", ""))

    def weights(self) -> dict[str, int]:
        """Of the HTTPRoute, by version; without those that get nothing."""
        (rule,) = self.objects.get("HTTPRoute", self.name)["spec"]["rules"]
        names = {self.revision(version): version for version in DIGESTS if self._is_stored(version)}
        shares = {names[ref["name"].removeprefix(f"{self.name}-")]: ref["weight"] for ref in rule["backendRefs"]}
        return {version: weight for version, weight in shares.items() if weight}

    def _is_stored(self, version: str) -> bool:
        revisions = self.objects.list("ControllerRevision", f"cloze.dev/owner={self.name}")
        return any(entry["data"]["model"]["version"] == version for entry in revisions)

    def divided(self, **weights: int) -> None:
        """Once requests are divided like this: `v1=90, v2=10`."""
        wanted = {name.removeprefix("v"): weight for name, weight in weights.items()}
        self.eventually(lambda: self.weights() == wanted, f"weights {wanted}, there are {self.weights()}", 40)

    def accept(self) -> None:
        """As a gateway does once it has taken the present route over."""

        def accepted() -> bool:
            live = self.objects.get("HTTPRoute", self.name)
            generation = live["metadata"]["generation"]
            conditions = [
                {
                    "type": kind,
                    "status": "True",
                    "reason": kind,
                    "message": "",
                    "observedGeneration": generation,
                    "lastTransitionTime": "2026-03-01T12:00:00Z",
                }
                for kind in ("Accepted", "ResolvedRefs")
            ]
            parent = {
                "parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "nobody"},
                "controllerName": "example.org/test",
                "conditions": conditions,
            }
            with suppress(ConflictError):
                self.objects.patch_status("HTTPRoute", self.name, {"parents": [parent]})
                return True
            return False

        self.eventually(accepted, "the route's status to be written")
        # A person who looks in speeds up what is polled.
        labels = {"looked-at": self.objects.get("HTTPRoute", self.name)["metadata"]["resourceVersion"]}
        self.objects.patch("ModelDeployment", self.name, {"metadata": {"labels": labels}})

    def tag(self, version: str) -> str:
        """Why a version is quarantined."""
        return str(self.registry.versions[self.name, version].get("cloze.dev/quarantined", ""))

    def tells(self, *reasons: str) -> None:
        """Wait for events: they come after what they tell of."""

        def told() -> bool:
            events = self.objects.list("Event")
            return {event["reason"] for event in events if event["involvedObject"]["name"] == self.name} >= {*reasons}

        self.eventually(told, f"events {reasons}")


@pytest.fixture
def rollout(
    objects: Any, registry: Any, kubelet: Any, eventually: Eventually, operator_address: str
) -> Callable[[str], Rollout]:
    """A ModelDeployment of the module's namespace, by name."""
    assert operator_address
    return lambda name: Rollout(objects, registry, kubelet, eventually, name)


@pytest.fixture(scope="module")
def gateway_api(api_client: client.ApiClient, eventually: Eventually) -> Iterator[None]:
    """A definition of HTTPRoute: the cluster's own, else one for these tests."""
    cluster = dynamic.DynamicClient(api_client)
    definitions = cluster.resources.get(api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition")
    body = yaml.safe_load((Path(__file__).parent / "gateway-api.yaml").read_text(encoding="utf-8"))
    name = body["metadata"]["name"]
    own = not any(entry.metadata.name == name for entry in definitions.get().items)
    if own:
        definitions.create(body=body)

    def known() -> bool:
        with suppress(NotFoundError, ResourceNotFoundError):
            return bool(cluster.resources.get(api_version=API, kind="HTTPRoute").get(namespace="default"))
        return False

    try:
        eventually(known, "HTTPRoute to be known")
        yield
    finally:
        if own:
            definitions.delete(name=name)
            # The next test run isn't to find it where the client remembers what there was.
            cluster.resources.invalidate_cache()


# ---------------------------------------------------------------- by the number of pods


def test_canary_is_promoted_by_command_and_taken_back(
    rollout: Callable[[str], Rollout], operator_address: str, eventually: Eventually
) -> None:
    """Without Prometheus nothing passes by itself; the former version keeps its pods, so the way back is at once."""
    one = rollout("ratio")
    one.create(replicas=2, rollout={"steps": [{"replicas": 1, "holdSeconds": 0}]})
    one.serve(2)
    assert one.behind() == one.revision("1")

    one.ask_for("2")
    (canary,) = one.pods("2", 1)
    assert one.behind() == one.revision("1")
    one.kubelet.run(canary)
    one.reason("Progressing", "CanaryStep")
    assert one.behind() == ""
    one.reason("CanaryHealthy", "PrometheusUnavailable")
    before = reconciles(operator_address, "success")
    eventually(lambda: reconciles(operator_address, "success") >= before + 2, "two more looks")
    status = one.status()
    assert (status["rollout"]["step"], status["rollout"]["weight"]) == ("1/2", 33)
    assert (status["rollout"]["approximate"], status["rollout"]["canaryVersion"]) == (True, "2")
    assert (status["stable"]["version"], status["desired"]["version"], status["state"]) == ("1", "2", "Canary")
    assert len(one.pods("1", 2)) == 2

    one.command("promote")
    one.kubelet.run(*one.pods("2", 2))
    one.reason("Progressing", "RolloutComplete")
    one.command_is_obeyed()
    assert (one.behind(), one.status()["stable"]["version"]) == (one.revision("2"), "2")
    roles = {entry["version"]: (entry["role"], entry["readyReplicas"]) for entry in one.status()["revisions"]}
    assert roles == {"1": ("Previous", 2), "2": ("Stable", 2)}

    one.command("abort")
    one.reason("Progressing", "RolledBack")
    one.command_is_obeyed()
    assert (one.behind(), one.status()["stable"]["version"]) == (one.revision("1"), "1")
    assert one.status()["state"] == "RolledBack"
    assert len(one.pods("1", 2)) == 2
    assert one.tag("2") == ""
    one.tells("RolloutStarted", "CanaryStep", "PromoteCommand", "Promoted", "RolledBack")


# ---------------------------------------------------------------- by the gateway


@pytest.mark.usefixtures("gateway_api")
def test_route_has_the_canarys_weight_once_the_gateway_says_so(rollout: Callable[[str], Rollout]) -> None:
    """Until the gateway has seen the route nothing is Ready and no step begins; another version starts over."""
    one = rollout("routed")
    one.create(traffic=ROUTE, rollout={"steps": HELD})
    one.kubelet.run(*one.pods("1", 1))
    one.reason("Ready", "RoutePending")
    one.accept()
    one.reason("Ready", "AllReplicasReady")
    (rule,) = one.objects.get("HTTPRoute", "routed")["spec"]["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/spam"}}]
    assert [entry["type"] for entry in rule["filters"]] == ["URLRewrite"]

    one.ask_for("2")
    (canary,) = one.pods("2", 1)
    assert one.weights() == {"1": 100}
    one.kubelet.run(canary)
    one.divided(v1=90, v2=10)
    one.eventually(lambda: "RouteChanging" in one.status()["rollout"]["message"], "the gateway to be waited for")
    assert one.status()["rollout"]["startTime"] == ""
    one.accept()
    one.reason("Progressing", "CanaryStep")
    assert one.status()["rollout"]["weight"] == 10

    one.ask_for("3")
    one.divided(v1=100)
    one.kubelet.run(*one.pods("3", 1))
    one.divided(v1=90, v3=10)
    one.accept()
    one.eventually(lambda: one.status()["rollout"]["canaryVersion"] == "3", "version 3 as the canary")
    assert one.status()["rollout"]["step"] == "1/3"
    assert one.status()["stable"]["version"] == "1"
    one.tells("RolloutRestarted")


@pytest.mark.usefixtures("gateway_api")
def test_crash_looping_canary_is_rolled_back_and_quarantined(rollout: Callable[[str], Rollout]) -> None:
    """No request ever went to it; the registry is told, and it isn't tried again until a person says so."""
    one = rollout("crashing")
    one.create(traffic=ROUTE, rollout={"steps": HELD})
    one.kubelet.run(*one.pods("1", 1))
    one.ask_for("2")
    (canary,) = one.pods("2", 1)
    one.kubelet.crash(canary, 10, reason="OutOfMemory", message="too large", exit_code=10)
    found = one.reason("Progressing", "RolledBack")
    assert "CanaryCrashLoop" in found["message"]
    one.eventually(lambda: "CanaryCrashLoop" in one.tag("2"), "the version to be quarantined")
    one.accept()
    one.reason("Ready", "AllReplicasReady")
    assert (one.weights(), one.status()["state"]) == ({"1": 100}, "RolledBack")
    one.command("retry")
    # The same pod may still be there, and crash again.
    one.eventually(
        lambda: "RetriedByCommand" in {event["reason"] for event in one.objects.list("Event")},
        "the version to be tried again",
    )


def test_quarantined_version_is_not_tried(rollout: Callable[[str], Rollout], eventually: Eventually) -> None:
    """Whoever put the tag there; a person may know better."""
    one = rollout("barred")
    one.registry.register("barred", "2", digest=DIGESTS["2"], quarantined="ErrorRatioWorse: elsewhere")
    one.create(rollout={"steps": [{"replicas": 1}]})
    one.serve(1)
    one.ask_for("2")
    found = one.reason("Progressing", "Quarantined")
    assert "ErrorRatioWorse: elsewhere" in found["message"]
    assert one.pods("2", 0) == []
    one.command("retry")
    assert len(one.pods("2", 1)) == 1


# ---------------------------------------------------------------- the operator is killed, or isn't alone


@pytest.fixture
def alone(brief: Any, registry: Any, eventually: Eventually, kubelet_of: Callable[[Any], Any]) -> Rollout:
    """A ModelDeployment in a namespace that one test has to itself."""
    return Rollout(brief, registry, kubelet_of(brief), eventually, "alone")


def test_rollout_goes_on_where_a_killed_operator_left_it(
    alone: Rollout, candidates: Callable[..., Any], brief: Any
) -> None:
    """Whatever happened meanwhile: pods got ready, and a person has decided."""
    first = candidates("first", CLOZE_LEADER_ELECTION="false")
    alone.create(replicas=1, rollout={"steps": [{"replicas": 1, "holdSeconds": 3600}]})
    alone.serve(1)
    alone.ask_for("2")
    (canary,) = alone.pods("2", 1)
    first.process.kill()
    first.process.wait()
    alone.kubelet.run(canary)
    alone.command("promote")
    record = brief.get("ConfigMap", "alone-rollout")["data"]["record.json"]
    assert f'"canary": "{alone.revision("2")}"' in record
    candidates("second", CLOZE_LEADER_ELECTION="false")
    # The status of version 1's own completion may be all that the first one has written.
    alone.eventually(lambda: alone.status()["stable"]["version"] == "2", "version 2 to be the stable one", 40)
    alone.reason("Progressing", "RolloutComplete", 40)
    alone.command_is_obeyed()
    assert alone.behind() == alone.revision("2")
    assert len(brief.list("ControllerRevision", "cloze.dev/owner=alone")) == 2
    alone.tells("Promoted")


def test_record_that_somebody_has_changed_is_not_overwritten(
    alone: Rollout, proxy: Any, candidates: Callable[..., Any], brief: Any
) -> None:
    """What follows from the one that was seen is decided again, and nobody takes it for a failure."""
    meddled: list[str] = []

    def meddle(request: Any) -> None:
        if request.method == "PATCH" and request.path.endswith("/configmaps/alone-rollout") and not meddled:
            there = brief.get("ConfigMap", "alone-rollout")
            if there and alone.objects.list("ControllerRevision", "cloze.dev/owner=alone")[1:]:
                meddled.append(there["metadata"]["resourceVersion"])
                brief.patch("ConfigMap", "alone-rollout", {"metadata": {"annotations": {"somebody": "was here"}}})

    proxy.harm = meddle
    operator = candidates("one", server=proxy.address, CLOZE_LEADER_ELECTION="false")
    alone.create(replicas=1, rollout={"steps": [{"replicas": 1, "holdSeconds": 3600}]})
    alone.serve(1)
    alone.ask_for("2")
    assert len(alone.pods("2", 1)) == 1
    assert len(meddled) == 1
    assert reconciles(operator.address, "conflict") == 1
    stored = brief.get("ConfigMap", "alone-rollout")
    assert stored["metadata"]["annotations"]["somebody"] == "was here"
    assert brief.condition("ModelDeployment", "alone", "ReconcileFailed") == {}
