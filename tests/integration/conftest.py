"""The API server that the tests talk to, a namespace of their own, an operator, a registry, and a kubelet by hand."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from kubernetes import client, config, dynamic
from kubernetes.dynamic.exceptions import ConflictError, NotFoundError

sys.path.insert(0, str(Path(__file__).parent))

from proxy import Proxy

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "crds"
CHART = ROOT / "charts" / "cloze"

Document = dict[str, Any]


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    """Path of the cluster's kubeconfig."""
    path = os.environ.get("KUBECONFIG")
    if not path:
        pytest.fail('KUBECONFIG is not set: start a cluster with `make cluster-up`, then eval "$(hack/cluster env)"')
    return path


@pytest.fixture(scope="session")
def api_client(kubeconfig: str) -> client.ApiClient:
    """A client for a cluster that has the current definitions."""
    api = config.new_client_from_config(config_file=kubeconfig)
    cluster = dynamic.DynamicClient(api)
    definitions = cluster.resources.get(api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition")
    paths = sorted(CRDS.glob("*.yaml"))
    for path in paths:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
        cluster.server_side_apply(definitions, body=body, field_manager="cloze-tests", force_conflicts=True)
    for path in paths:
        wait_for(
            lambda name=path.stem: any(
                entry["type"] == "Established" and entry["status"] == "True"
                # A definition that was just made has no conditions yet, spelt as null.
                for entry in definitions.get(name=name).to_dict()["status"].get("conditions") or []
            ),
            f"definition {path.stem} to be established",
        )
    return api


def wait_for(check: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """The first true answer of `check`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := check():
            return answer
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds:g} s for {what}")


@dataclass
class Objects:
    """Objects of one namespace as plain JSON."""

    cluster: dynamic.DynamicClient
    namespace: str

    def kind(self, kind: str) -> Any:
        versions = {
            "Job": "batch/v1",
            "Deployment": "apps/v1",
            "ControllerRevision": "apps/v1",
            "Lease": "coordination.k8s.io/v1",
            "HorizontalPodAutoscaler": "autoscaling/v2",
            "PodDisruptionBudget": "policy/v1",
            "HTTPRoute": "gateway.networking.k8s.io/v1",
            **dict.fromkeys(("PretrainJob", "FineTuneJob", "ModelDeployment"), "cloze.dev/v1alpha1"),
        }
        return self.cluster.resources.get(api_version=versions.get(kind, "v1"), kind=kind)

    def create(self, body: Document) -> Document:
        result: Document = self.kind(body["kind"]).create(body=body, namespace=self.namespace).to_dict()
        return result

    def get(self, kind: str, name: str) -> Document | None:
        try:
            result: Document = self.kind(kind).get(name=name, namespace=self.namespace).to_dict()
        except NotFoundError:
            return None
        return result

    def list(self, kind: str, selector: str = "") -> list[Document]:
        found = self.kind(kind).get(namespace=self.namespace, label_selector=selector or None)
        return [item.to_dict() for item in found.items]

    def patch(self, kind: str, name: str, body: Document) -> None:
        self.kind(kind).patch(
            name=name, namespace=self.namespace, body=body, content_type="application/merge-patch+json"
        )

    def patch_status(self, kind: str, name: str, status: Document) -> None:
        body = {"metadata": {"name": name}, "status": status}
        content_type = "application/merge-patch+json"
        resource = self.kind(kind)
        resource.status.patch(name=name, namespace=self.namespace, body=body, content_type=content_type)

    def delete(self, kind: str, name: str) -> None:
        self.kind(kind).delete(name=name, namespace=self.namespace)

    def condition(self, kind: str, name: str, type_: str) -> Document:
        """A condition of an object; empty when it isn't there."""
        found = ((self.get(kind, name) or {}).get("status") or {}).get("conditions") or []
        return next((entry for entry in found if entry["type"] == type_), {})

    def wait_for_reason(self, kind: str, name: str, type_: str, reason: str, seconds: float = 30.0) -> Document:
        """The condition once it has this reason."""
        try:
            return wait_for(
                lambda: (found := self.condition(kind, name, type_)).get("reason") == reason and found,
                f"{kind} {name} to have {type_} with reason {reason}",
                seconds,
            )
        except AssertionError as error:
            raise AssertionError(f"{error}; it has {self.condition(kind, name, type_)}") from None


@contextmanager
def fresh_namespace(api: client.ApiClient) -> Iterator[str]:
    """A namespace under the `restricted` Pod Security Standard, deleted afterwards."""
    core = client.CoreV1Api(api)
    name = f"cloze-test-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    core.create_namespace({"metadata": {"name": name, "labels": labels}})
    try:
        yield name
    finally:
        try:
            core.delete_namespace(name)
        except client.ApiException as error:
            if error.status not in (404, 409):
                raise


@pytest.fixture
def namespace(api_client: client.ApiClient) -> Iterator[str]:
    """A fresh namespace for one test."""
    with fresh_namespace(api_client) as name:
        yield name


@dataclass
class StubRegistry:
    """The part of MLflow's REST API that the operator uses, with its content as plain dicts."""

    versions: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    aliases: dict[tuple[str, str], str] = field(default_factory=dict)
    up: bool = True
    writable: bool = True
    uri: str = ""

    def register(self, name: str, version: str, **tags: str) -> None:
        self.versions[name, version] = {f"cloze.dev/{key.replace('_', '-')}": value for key, value in tags.items()}

    def answer(self, method: str, path: str, query: dict[str, str]) -> tuple[int, Document]:
        if path.endswith("model-versions/search"):
            # Close enough to MLflow's filter language: the uid stands in it.
            uids = {key: tags.get("cloze.dev/job-uid") for key, tags in self.versions.items()}
            found = [self._entry(*key) for key, uid in uids.items() if uid and uid in query["filter"]]
            return 200, {"model_versions": found}
        if method == "POST":
            if not self.writable:
                return 403, {"error_code": "PERMISSION_DENIED", "message": "this account may not move aliases"}
            if path.endswith("model-versions/set-tag"):
                self.versions[query["name"], query["version"]][query["key"]] = query["value"]
                return 200, {}
            self.aliases[query["name"], query["alias"]] = query["version"]
            return 200, {}
        if path.endswith("registered-models/alias"):
            version = self.aliases.get((query["name"], query["alias"]))
            if version is None:
                return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Registered model alias not found."}
            return 200, {"model_version": self._entry(query["name"], version)}
        known = (query["name"], query["version"]) in self.versions
        missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such version"}
        return (200, {"model_version": self._entry(query["name"], query["version"])}) if known else (404, missing)

    def _entry(self, name: str, version: str) -> Document:
        tags = [{"key": key, "value": value} for key, value in self.versions[name, version].items()]
        return {"name": name, "version": version, "run_id": "run", "tags": tags}


@pytest.fixture(scope="module")
def registry() -> Iterator[StubRegistry]:
    """A registry that answers on localhost."""
    stub = StubRegistry()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            if length := int(self.headers.get("Content-Length") or 0):
                query |= json.loads(self.rfile.read(length))
            down = {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "down for the test"}
            status, body = stub.answer(self.command, parts.path, query) if stub.up else (503, down)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _serve  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
            """Requests aren't worth a line."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stub.uri = f"http://127.0.0.1:{server.server_address[1]}"
    yield stub
    server.shutdown()
    server.server_close()
    thread.join()


def _port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as probe:
        return int(probe.server_address[1])


def rights_of_the_chart(namespace: str) -> list[Document]:
    """The role and its binding as the chart renders them for one namespace."""
    command = ["helm", "template", "cloze", str(CHART), "--namespace", namespace, "--kube-version", "1.31.0"]
    settings = ["--show-only", "templates/operator.yaml", "--set", f"operator.namespaces={{{namespace}}}"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kinds = ("ServiceAccount", "Role", "RoleBinding")
    return [document for document in yaml.safe_load_all(done.stdout) if document and document["kind"] in kinds]


def operator_kubeconfig(kubeconfig: str, namespace: str) -> Document:
    """A kubeconfig of the chart's ServiceAccount in a namespace: a right that the chart forgets is missed by a test."""
    api = config.new_client_from_config(config_file=kubeconfig)
    cluster = dynamic.DynamicClient(api)
    for document in rights_of_the_chart(namespace):
        resource = cluster.resources.get(api_version=document["apiVersion"], kind=document["kind"])
        cluster.server_side_apply(
            resource, body=document, namespace=namespace, field_manager="cloze-tests", force_conflicts=True
        )
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    reply = client.CoreV1Api(api).create_namespaced_service_account_token("cloze-operator", namespace, request)
    document: Document = yaml.safe_load(Path(kubeconfig).read_text(encoding="utf-8"))
    chosen = next(entry for entry in document["contexts"] if entry["name"] == document["current-context"])
    chosen["context"]["user"] = "operator"
    return {**document, "users": [{"name": "operator", "user": {"token": reply.status.token}}]}


@dataclass
class Operator:
    """A running operator."""

    process: "subprocess.Popen[bytes]"
    address: str
    """Of its HTTP port."""
    log: Path

    def get(self, path: str) -> str | None:
        """What it answers, whatever the status; None while it doesn't."""
        try:
            with urllib.request.urlopen(f"{self.address}{path}", timeout=2) as reply:  # noqa: S310 - our own address
                return str(reply.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError:
            return None

    def leads(self) -> bool:
        """Whether it acts."""
        return "cloze_operator_leader 1.0" in (self.get("/metrics") or "")

    def said(self) -> str:
        """Its log."""
        return self.log.read_text(encoding="utf-8")


def start_operator(
    kubeconfig: str, namespace: str, registry_uri: str, log: Path, *, server: str = "", **variables: str
) -> Operator:
    """`cloze-operator` as a process with the chart's rights, for one namespace.

    server: the API server's address, when it isn't the kubeconfig's.
    """
    port = _port()
    own = log.with_name(f"{log.name}.kubeconfig")
    document = operator_kubeconfig(kubeconfig, namespace)
    for entry in document["clusters"] if server else ():
        entry["cluster"] = {"server": server}
    own.write_text(yaml.safe_dump(document), encoding="utf-8")
    environment = {
        **os.environ,
        "KUBECONFIG": str(own),
        "CLOZE_NAMESPACES": namespace,
        "CLOZE_TRAIN_IMAGE": "cloze.invalid/train:1",
        "CLOZE_SERVE_IMAGE": "cloze.invalid/serve:1",
        "MLFLOW_TRACKING_URI": registry_uri,
        "CLOZE_OPERATOR_PORT": str(port),
        "CLOZE_RESYNC_SECONDS": "5",
        "CLOZE_LEASE_NAMESPACE": namespace,
        "CLOZE_POD_NAME": log.name,
        **variables,
    }
    with log.open("ab") as output:
        command = [sys.executable, "-m", "cloze_operator"]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    return Operator(process, f"http://127.0.0.1:{port}", log)


@contextmanager
def candidate(kubeconfig: str, namespace: str, registry_uri: str, log: Path, **options: str) -> Iterator[Operator]:
    """An operator that has started, and leads or stands by. A test may have killed it at the end."""
    operator = start_operator(kubeconfig, namespace, registry_uri, log, **options)
    process = operator.process
    try:
        ready = ("ok\n", "standby\n")
        wait_for(
            lambda: process.poll() is not None or operator.get("/readyz") in ready, "the operator to be ready", 120
        )
        assert process.poll() is None, operator.said()
        yield operator
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                code = process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                # One that hangs must not outlive the tests.
                process.kill()
                pytest.fail(f"the operator doesn't end:\n{operator.said()[-4000:]}")
            assert code == 0, operator.said()[-4000:]


@contextmanager
def running_operator(kubeconfig: str, namespace: str, registry_uri: str, log: Path) -> Iterator[str]:
    """The one operator of a namespace; yields the address of its HTTP port."""
    with candidate(kubeconfig, namespace, registry_uri, log) as operator:
        wait_for(lambda: operator.get("/readyz") == "ok\n", "the operator to have synced", 60)
        yield operator.address
        assert operator.process.poll() is None, operator.said()[-4000:]


@pytest.fixture(scope="module")
def objects(api_client: client.ApiClient) -> Iterator[Objects]:
    """The namespace that a module's tests share."""
    with fresh_namespace(api_client) as name:
        yield Objects(dynamic.DynamicClient(api_client), name)


@pytest.fixture(scope="module")
def no_other_operator(api_client: client.ApiClient) -> None:
    """No operator is installed on the cluster."""
    pods = client.CoreV1Api(api_client).list_pod_for_all_namespaces(
        label_selector="app.kubernetes.io/component=operator,app.kubernetes.io/name=cloze"
    )
    busy = [pod.metadata.namespace for pod in pods.items if any(s.ready for s in pod.status.container_statuses or [])]
    if busy:
        pytest.fail(f"an operator already runs in namespace {busy[0]}: two would undo each other's work; scale it to 0")


@pytest.fixture(scope="module")
def operator_address(
    kubeconfig: str,
    objects: Objects,
    registry: StubRegistry,
    no_other_operator: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """An operator that serves the module's namespace."""
    log = tmp_path_factory.mktemp("operator") / "log"
    with running_operator(kubeconfig, objects.namespace, registry.uri, log) as address:
        yield address


@pytest.fixture(scope="module")
def operate(kubeconfig: str, no_other_operator: None) -> Callable[[str, str, Path], AbstractContextManager[str]]:
    """Runs an operator for a namespace: `with operate(namespace, registry_uri, log):`."""
    return lambda namespace, uri, log: running_operator(kubeconfig, namespace, uri, log)


@pytest.fixture
def candidates(
    kubeconfig: str, namespace: str, registry: StubRegistry, no_other_operator: None, tmp_path: Path
) -> Iterator[Callable[..., Operator]]:
    """Starts operators of the test's namespace, by name: `candidates("a", server=..., CLOZE_...=...)`."""
    with ExitStack() as stack:
        yield lambda name, **options: stack.enter_context(
            candidate(kubeconfig, namespace, registry.uri, tmp_path / name, **options)
        )


@pytest.fixture
def proxy(kubeconfig: str, tmp_path: Path) -> Iterator[Proxy]:
    """A proxy in front of the API server that does harm on demand."""
    document = yaml.safe_load(Path(kubeconfig).read_text(encoding="utf-8"))
    chosen = next(entry for entry in document["contexts"] if entry["name"] == document["current-context"])
    cluster = next(entry for entry in document["clusters"] if entry["name"] == chosen["context"]["cluster"])["cluster"]
    ca = tmp_path / "ca.crt"
    if data := cluster.get("certificate-authority-data"):
        ca.write_bytes(base64.b64decode(data))
    else:
        ca.write_bytes((Path(kubeconfig).parent / cluster["certificate-authority"]).read_bytes())
    with Proxy(cluster["server"], str(ca)).running() as running:
        yield running


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """`wait_for`, for tests: a conftest isn't imported from."""
    return wait_for


@pytest.fixture
def brief(api_client: client.ApiClient, namespace: str) -> Objects:
    """The objects of a namespace that one test has to itself."""
    return Objects(dynamic.DynamicClient(api_client), namespace)


@pytest.fixture
def other(api_client: client.ApiClient) -> Iterator[Objects]:
    """The objects of a second namespace that one test has to itself."""
    with fresh_namespace(api_client) as name:
        yield Objects(dynamic.DynamicClient(api_client), name)


class Kubelet:
    """Plays the kubelet for pods that no machine takes: the real scheduler leaves them alone, a test moves them on."""

    #: For `topology.nodeSelector`: no machine has this label.
    NOWHERE: ClassVar = {"cloze.dev/test": "nowhere"}
    #: For `resources`: no machine is this large.
    HUGE: ClassVar = {"requests": {"cpu": "10000"}}

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def pods(self, owner: str, count: int) -> list[Document]:
        """The resource's pods that haven't ended, in the order of their index, once there are that many."""

        def found() -> list[Document]:
            pods = self._objects.list("Pod", f"cloze.dev/owner={owner}")
            live = [pod for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]
            live = [pod for pod in live if not pod["metadata"].get("deletionTimestamp")]
            return sorted(live, key=lambda pod: pod["metadata"]["name"]) if len(live) == count else []

        return list(wait_for(found, f"{count} pods of {owner}", 60))

    def run(self, *pods: Document) -> None:
        """The pods' containers run."""
        for pod in pods:
            state = {"running": {"startedAt": _now()}}
            self._set(pod, "Running", state)

    def end(self, pod: Document, code: int, **outcome: Any) -> None:
        """The pod's container has ended with this code and termination message."""
        message = json.dumps({"exit_code": code, **outcome}) if outcome else ""
        state = {
            "terminated": {
                "exitCode": code,
                "reason": "Completed" if code == 0 else "Error",
                "message": message,
                "startedAt": _now(),
                "finishedAt": _now(),
            }
        }
        self._set(pod, "Succeeded" if code == 0 else "Failed", state)

    def take(self, pod: Document, reason: str) -> None:
        """The pod was taken away by somebody, and its container has been stopped."""
        since = _now()
        taken = {"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": since}
        self._objects.patch_status("Pod", pod["metadata"]["name"], {"phase": "Failed", "conditions": [taken]})

    def crash(self, pod: Document, code: int, **outcome: Any) -> None:
        """The pod's container has ended often enough to be kept waiting."""
        ended = {"exitCode": code, "reason": "Error", "message": json.dumps(outcome), "finishedAt": _now()}
        waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
        self._set(pod, "Running", waiting, ready=False, restarts=3, last={"terminated": ended})

    def _set(
        self,
        pod: Document,
        phase: str,
        state: Document,
        *,
        ready: bool | None = None,
        restarts: int = 0,
        last: Document | None = None,
    ) -> None:
        container = pod["spec"]["containers"][0]
        up = phase == "Running" if ready is None else ready
        # Back then, so that minReadySeconds has passed.
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 60))
        status = {
            "phase": phase,
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": since},
                {"type": "Ready", "status": "True" if up else "False", "lastTransitionTime": since},
            ],
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": "",
                    "ready": up,
                    "restartCount": restarts,
                    "state": state,
                    "lastState": last or {},
                }
            ],
        }
        for _ in range(5):
            with suppress(ConflictError):
                return self._objects.patch_status("Pod", pod["metadata"]["name"], status)
            time.sleep(0.1)
        raise AssertionError("the pod's status can't be written")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@pytest.fixture(scope="module")
def kubelet(objects: Objects) -> Kubelet:
    """Moves pods on."""
    return Kubelet(objects)


@pytest.fixture(scope="session")
def kubelet_of() -> Callable[[Objects], Kubelet]:
    """Moves the pods of another namespace on."""
    return Kubelet
