"""The operator as a process: metrics, restarts, and what it leaves behind when it is gone."""

import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

pytestmark = pytest.mark.cluster

Document = dict[str, Any]


def suspended_job(name: str) -> Document:
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": name},
        "spec": {
            "corpus": [{"uri": "https://example.org/text"}],
            "registry": {"name": name},
            "storage": {"size": "1Mi"},
            "suspend": True,
        },
    }


def exported(address: str) -> str:
    """The operator's metrics."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=5) as reply:  # noqa: S310 - our own address
        return str(reply.read().decode())


def errors(address: str) -> float:
    """How often the operator has failed to reconcile a PretrainJob."""
    name = 'cloze_operator_reconciles_total{kind="PretrainJob",result="error"}'
    return sum(float(line.rsplit(" ", 1)[1]) for line in exported(address).splitlines() if line.startswith(name))


def test_restart_repeats_nothing_and_loses_nothing(
    brief: Any, operate: Any, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    """A second operator finds everything as it should be: it writes nothing, and its metrics show the state."""
    with operate(brief.namespace, "http://127.0.0.1:1", tmp_path / "first"):
        brief.create(suspended_job("calm"))
        brief.wait_for_reason("PretrainJob", "calm", "Running", "Suspended")
    children = {"Job": "calm-pretrain", "Service": "calm-pretrain", "ConfigMap": "calm-pretrain-spec"}
    before = {kind: brief.get(kind, name)["metadata"]["resourceVersion"] for kind, name in children.items()}
    version = brief.get("PretrainJob", "calm")["metadata"]["resourceVersion"]
    labels = f'kind="PretrainJob",name="calm",namespace="{brief.namespace}",state="Suspended"'
    state = f"cloze_resource_state{{{labels}}}"
    with operate(brief.namespace, "http://127.0.0.1:1", tmp_path / "second") as address:
        eventually(lambda: f"{state} 1.0" in exported(address), "the state's metric", 30)
        text = exported(address)
        with urllib.request.urlopen(f"{address}/healthz", timeout=5) as reply:  # noqa: S310 - our own address
            assert reply.status == 200
    assert 'cloze_operator_reconciles_total{kind="PretrainJob",result="error"}' not in text
    assert {kind: brief.get(kind, name)["metadata"]["resourceVersion"] for kind, name in children.items()} == before
    assert brief.get("PretrainJob", "calm")["metadata"]["resourceVersion"] == version


def test_namespace_deletes_cleanly_with_the_operator_gone(
    brief: Any, operate: Any, tmp_path: Path, api_client: client.ApiClient, eventually: Callable[..., Any]
) -> None:
    """Nothing of ours holds a namespace up: no finalizers, only owner references."""
    with operate(brief.namespace, "http://127.0.0.1:1", tmp_path / "log"):
        brief.create(suspended_job("gone"))
        brief.wait_for_reason("PretrainJob", "gone", "Running", "Suspended")
    core = client.CoreV1Api(api_client)
    core.delete_namespace(brief.namespace)
    names = lambda: [item.metadata.name for item in core.list_namespace().items]  # noqa: E731 - asked again and again
    eventually(lambda: brief.namespace not in names(), "the namespace to be gone", 60)


def test_deleting_a_resource_leaves_no_orphan(
    brief: Any, operate: Any, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    """The garbage collector takes all children with their owner, operator or not."""
    with operate(brief.namespace, "http://127.0.0.1:1", tmp_path / "log"):
        brief.create(suspended_job("orphan"))
        brief.wait_for_reason("PretrainJob", "orphan", "Running", "Suspended")
    brief.delete("PretrainJob", "orphan")
    kinds = ("Job", "Service", "ConfigMap", "PersistentVolumeClaim")
    left = lambda: [kind for kind in kinds if brief.list(kind, "cloze.dev/owner=orphan")]  # noqa: E731 - asked again
    eventually(lambda: not left(), "the children to be gone", 60)


def test_poisoned_object_shows_its_error_and_blocks_nobody(
    brief: Any, operate: Any, tmp_path: Path, api_client: client.ApiClient, eventually: Callable[..., Any]
) -> None:
    """What the API server refuses stands in the resource's own status, and the others are reconciled."""
    core = client.CoreV1Api(api_client)
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"persistentvolumeclaims": "1"}}}
    core.create_namespaced_resource_quota(brief.namespace, quota)
    with operate(brief.namespace, "http://127.0.0.1:1", tmp_path / "log") as address:
        brief.create(suspended_job("first"))
        brief.wait_for_reason("PretrainJob", "first", "Running", "Suspended")
        brief.create(suspended_job("second"))
        found = brief.wait_for_reason("PretrainJob", "second", "ReconcileFailed", "Forbidden")
        assert "exceeded quota" in found["message"]
        assert brief.get("PretrainJob", "second")["status"]["state"] == "Pending"
        # The status is written before the failure is counted.
        before = eventually(lambda: errors(address), "the failure is counted")
        time.sleep(10)
        # Each wait is twice as long as the one before: the failure's own condition doesn't wake the operator up.
        assert errors(address) - before <= 4
        third = {**suspended_job("third"), "kind": "FineTuneJob"}
        third["spec"] = {
            "base": {"pretrainJob": {"name": "first"}},
            "task": "token-classification",
            "dataset": {"train": "https://example.org/a", "test": "https://example.org/b"},
            "registry": {"name": "third"},
        }
        brief.create(third)
        brief.wait_for_reason("FineTuneJob", "third", "BaseReady", "WaitingForPretrainJob", 10)
        brief.delete("PretrainJob", "first")
        brief.wait_for_reason("PretrainJob", "second", "Running", "Suspended", 60)
        assert brief.condition("PretrainJob", "second", "ReconcileFailed") == {}
