"""The chart is upgraded while models serve: from the design before revisions, and in the middle of a canary."""

import io
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from types import ModuleType

import live
import load
import pytest
import rollouts

from cloze_api.manifest import verify, version_tags
from cloze_api.task import Task
from cloze_trainer.registry import register
from cloze_trainer.tracking import JobTags

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
#: The last one whose operator made one Deployment, NAME-server, for each ModelDeployment.
BEFORE_REVISIONS = "b28db87"
MASKED = {"inputs": "The parcel [MASK] late"}
RESOURCES = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}


def tiny_models() -> ModuleType:
    """The server tests' exporter of tiny models."""
    specification = util.spec_from_file_location("tiny_models", ROOT / "tests" / "server" / "conftest.py")
    assert specification is not None
    assert specification.loader is not None
    module = util.module_from_spec(specification)
    sys.modules["tiny_models"] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def old_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The revision before, with its images where the cluster pulls from."""
    packed = subprocess.run(
        ["git", "-C", str(ROOT), "archive", BEFORE_REVISIONS], capture_output=True, check=False
    )  # fmt: skip
    if packed.returncode:
        pytest.skip(f"this checkout has no commit {BEFORE_REVISIONS}, which the upgrade starts from")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    # Nothing is trained here, so the large image isn't needed.
    images = [sys.executable, str(folder / "hack" / "images"), "push", "operator", "serve", "mlflow"]
    subprocess.run(images, check=True)
    return folder


@pytest.fixture
def before(platform: str, old_checkout: Path) -> Iterator[str]:
    """The platform of the revision before; the present one is back afterwards, whatever happened."""
    subprocess.run(["helm", "uninstall", "cloze", "--namespace", platform, "--wait"], check=True)
    subprocess.run([str(old_checkout / "hack" / "install")], check=True)
    yield platform
    install()


@pytest.fixture
def namespace(platform: str) -> Iterator[str]:
    """A fresh one, which enforces `restricted`."""
    name = f"upgrade-{uuid.uuid4().hex[:6]}"
    live.kubectl("create", "namespace", name)
    live.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    live.kubectl("delete", "namespace", name, "--wait=false")


def install(*arguments: str) -> None:
    """Bring the release to the present chart."""
    subprocess.run([str(ROOT / "hack" / "install"), *arguments], check=True)


def publish_twice(mlflow: str, model: str, folder: Path) -> list[str]:
    """Two versions of a tiny masked language model."""
    made = tiny_models().export(folder / "model", Task.FILL_MASK)
    manifest = verify(made.folder, made.digest)
    versions = []
    for job in ("first", "second"):
        tags = JobTags(f"{model}-{job}", job, manifest.task.value, model, repeatable=True)
        facts = version_tags(manifest)
        versions.append(register(mlflow, tags, made.folder, made.digest, facts=facts, params={}, figures={}).version)
    return versions


def deployments(namespace: str) -> set[str]:
    return {each["metadata"]["name"] for each in live.items(namespace, "deployments")}


def older(namespace: str, model: str, version: str) -> None:
    """A ModelDeployment that serves by the operator before revisions."""
    resource = {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "mails"},
        "spec": {"model": {"name": model, "version": version}, "replicas": 2, "resources": RESOURCES},
    }
    live.apply(namespace, resource)
    live.kubectl("--namespace", namespace, "wait", "--for=condition=Ready", "modeldeployment/mails", "--timeout=300s")
    assert deployments(namespace) == {"mails-server"}


def taken_over(namespace: str, version: str) -> None:
    """The revision's own Deployment serves the version, alone."""
    rollouts.await_state(namespace, "mails", version, "Ready")
    left = live.until(lambda: deployments(namespace), lambda names: "mails-server" not in names, 240, "one is left")
    assert len(left) == 1
    (revision,) = left
    selector = live.get(namespace, "service", "mails")["spec"]["selector"]
    pods = live.items(namespace, "pods", ",".join(f"{key}={value}" for key, value in selector.items()))
    assert {pod["metadata"]["name"].rsplit("-", 2)[0] for pod in pods if live.is_ready(pod)} == {revision}


def test_models_of_the_design_before_serve_through_the_upgrade(before: str, namespace: str, tmp_path: Path) -> None:
    """One that is at rest and one whose pods are just being replaced: both go on, and no request is lost."""
    with live.forwarded(before, "cloze-mlflow", 5000) as mlflow:
        first, second = publish_twice(mlflow, namespace, tmp_path)
    older(namespace, namespace, first)
    with load.on(namespace, "http://mails/v1/fill-mask", MASKED) as at_rest:
        install()
        taken_over(namespace, first)
    assert at_rest.keys() == {"200"}

    live.kubectl("--namespace", namespace, "delete", "modeldeployment", "mails", "--wait")
    live.until(lambda: deployments(namespace), lambda names: not names, 120, "all is gone")
    subprocess.run(["helm", "rollback", "cloze", "1", "--namespace", before, "--wait"], check=True)
    older(namespace, namespace, first)
    with load.on(namespace, "http://mails/v1/fill-mask", MASKED) as in_between:
        rollouts.ask_for(namespace, "mails", second)
        live.until(
            lambda: live.get(namespace, "deployment", "mails-server").get("status", {}),
            lambda status: status.get("updatedReplicas", 0) < status.get("replicas", 0),
            60,
            "the older rollout is under way",
        )
        install()
        taken_over(namespace, second)
    assert in_between.keys() == {"200"}


def test_canary_goes_on_through_an_upgrade(platform: str, namespace: str) -> None:
    """Another setting restarts the operators in the middle of a canary: same step, same pods, and then to its end."""
    with live.forwarded(platform, "cloze-mlflow", 5000) as mlflow:
        first, second = (rollouts.publish(mlflow, namespace, seed=seed) for seed in (1, 2))
    # A step of an hour leaves time to look; a person ends it.
    steps = [{"replicas": 1, "holdSeconds": 3600}]
    resource = {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "echo"},
        "spec": {
            "model": {"name": namespace, "version": first},
            "replicas": 2,
            "resources": RESOURCES,
            "traffic": {"provider": "ReplicaRatio"},
            "rollout": {"steps": steps},
        },
    }
    live.apply(namespace, resource)
    rollouts.await_state(namespace, "echo", first, "Ready")
    with load.on(namespace, "http://echo/v1/echo", {"inputs": "on and on"}) as sent:
        rollouts.ask_for(namespace, "echo", second)
        rollouts.await_step(namespace, "echo", "1/2")
        pods = serving(namespace)
        began = rollouts.status(namespace, "echo")["rollout"]
        install("--set", "operator.resyncSeconds=15")
        live.kubectl("--namespace", platform, "rollout", "status", "deployment/cloze-operator", "--timeout=120s")
        live.until(lambda: leads(platform), bool, 60, "one of the new operators leads")
        now = rollouts.status(namespace, "echo")["rollout"]
        assert [now[key] for key in ("state", "step")] == [began[key] for key in ("state", "step")]
        assert serving(namespace) == pods
        rollouts.command(namespace, "echo", "promote")
        rollouts.await_state(namespace, "echo", second, "Ready")
    assert sent.keys() == {"200"}
    told = rollouts.events(namespace, "echo")
    assert told.count("RolloutStarted") == told.count("Promoted") == 1


def leads(platform: str) -> bool:
    """Whether the operator that leads is one of those that are there."""
    holder = str(live.get(platform, "lease", "cloze-operator")["spec"].get("holderIdentity", ""))
    pods = live.items(platform, "pods", "app.kubernetes.io/component=operator")
    return any(holder.startswith(pod["metadata"]["name"]) for pod in pods if live.is_ready(pod))


def serving(namespace: str) -> set[str]:
    """Pods by identity."""
    return {pod["metadata"]["uid"] for pod in live.items(namespace, "pods", "cloze.dev/owner=echo")}
