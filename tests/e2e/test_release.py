"""The chart's life on a real cluster: installed again, upgraded, uninstalled; users' objects outlive it."""

import json
import subprocess
from pathlib import Path

import live
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
SUSPENDED = {
    "apiVersion": "cloze.dev/v1alpha1",
    "kind": "PretrainJob",
    "metadata": {"name": "kept"},
    "spec": {
        "corpus": [{"uri": "configmap://text/corpus.jsonl", "format": "jsonl"}],
        "registry": {"name": "kept"},
        "suspend": True,
    },
}


def install(*arguments: str) -> None:
    subprocess.run([str(ROOT / "hack" / "install"), *arguments], check=True)


def revision() -> int:
    releases = subprocess.run(
        ["helm", "list", "--namespace", "cloze-system", "--output", "json"], check=True, capture_output=True, text=True
    ).stdout
    return int(json.loads(releases)[0]["revision"])


@pytest.mark.full
def test_objects_outlive_upgrade_uninstall_and_reinstall(namespace: str, platform: str) -> None:
    """Definitions and objects stay through all of it, the models' volume too, and a new operator takes over."""
    live.apply(namespace, SUSPENDED)
    live.until(
        lambda: live.state(live.get(namespace, "pretrainjob", "kept")),
        lambda now: now == "Suspended",
        60,
        "the operator has seen the job",
    )
    uid = live.get(namespace, "pretrainjob", "kept")["metadata"]["uid"]

    before = revision()
    install("--set", "operator.logLevel=DEBUG")
    assert revision() == before + 1
    live.kubectl("--namespace", platform, "rollout", "status", "deployment/cloze-operator", "--timeout=120s")

    subprocess.run(["helm", "uninstall", "cloze", "--namespace", platform, "--wait"], check=True)
    assert not live.items(platform, "deployments,services")
    assert not live.items(platform, "clusterroles,clusterrolebindings", "app.kubernetes.io/name=cloze")
    assert [claim["metadata"]["name"] for claim in live.items(platform, "persistentvolumeclaims")] == ["cloze-mlflow"]
    assert live.get(namespace, "pretrainjob", "kept")["metadata"]["uid"] == uid

    install()
    live.kubectl(
        "--namespace", namespace, "patch", "pretrainjob", "kept", "--type=merge", "-p",
        json.dumps({"metadata": {"labels": {"touched": "yes"}}}),
    )  # fmt: skip
    assert live.get(namespace, "pretrainjob", "kept")["metadata"]["uid"] == uid


def proof(platform: str) -> subprocess.CompletedProcess[str]:
    """What `helm test` finds."""
    command = ["helm", "test", "cloze", "--namespace", platform, "--logs"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_installation_is_proven_with_the_operators_own_rights(platform: str) -> None:
    """`helm test` finds all well, and says which right is missing once one is taken away."""
    done = proof(platform)
    assert done.returncode == 0, done.stdout
    for part in ("operator", "lease", "definitions", "rights", "mlflow", "prometheus"):
        assert f"ok      {part}: " in done.stdout

    role = json.loads(live.kubectl("get", "clusterrole", "cloze-operator", "--output", "json"))
    role["metadata"] = {key: role["metadata"][key] for key in ("name", "labels", "annotations")}
    without = [rule for rule in role["rules"] if "poddisruptionbudgets" not in rule["resources"]]
    live.kubectl("replace", "--filename", "-", stdin=json.dumps({**role, "rules": without}))
    try:
        done = proof(platform)
    finally:
        live.kubectl("replace", "--filename", "-", stdin=json.dumps(role))
    assert done.returncode != 0
    assert "FAILED  rights: the operator may not: get poddisruptionbudgets" in done.stdout
    assert "1 of 6 failed: rights" in done.stdout
