"""The chart on the current cluster, a namespace that enforces `restricted`, and real text in ConfigMaps."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import live

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = "cloze-system"


@pytest.fixture(scope="session")
def platform() -> Iterator[str]:
    """The namespace of the installed chart: operator and MLflow are ready."""
    assert os.environ.get("KUBECONFIG"), "set KUBECONFIG: run the tests with `make e2e` or `make test`"
    if os.environ.get("CLOZE_KUBECONFIG") and _releases():
        pytest.exit(
            f"the cluster of CLOZE_KUBECONFIG has a Cloze in {SYSTEM}, which these tests would uninstall: "
            "use another cluster, or uninstall it first",
            returncode=2,
        )
    subprocess.run([str(ROOT / "hack" / "install")], check=True)
    yield SYSTEM
    if os.environ.get("CLOZE_KUBECONFIG"):
        subprocess.run(["helm", "uninstall", "cloze", "--namespace", SYSTEM, "--wait"], check=True)


def _releases() -> list[object]:
    listed = subprocess.run(
        ["helm", "list", "--namespace", SYSTEM, "--output", "json"], check=True, capture_output=True, text=True
    )
    releases: list[object] = json.loads(listed.stdout)
    return releases


@pytest.fixture(scope="session")
def text() -> Path:
    """Folder of the demo's files: real text, split."""
    command = [sys.executable, str(ROOT / "hack" / "demo"), "data"]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def namespace(platform: str, text: Path) -> Iterator[str]:
    """A fresh namespace with the first rows of each file in the ConfigMap `text`."""
    name = f"e2e-{uuid.uuid4().hex[:6]}"
    live.kubectl("create", "namespace", name)
    live.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    data = {}
    # Documents in their order; mails from all over their file, as it is sorted by label.
    for file, count in (("corpus.jsonl", 25), ("spam-train.jsonl", 200), ("spam-test.jsonl", 40)):
        lines = (text / file).read_text(encoding="utf-8").splitlines(keepends=True)
        step = 1 if file == "corpus.jsonl" else len(lines) // count
        data[file] = "".join(lines[::step][:count])
    data["wrong.jsonl"] = '{"text": "fine", "label": "ham"}\n{"text": "no label here"}\n'
    assert len(json.dumps(data)) < 1_000_000
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "text"}, "data": data}
    live.create(name, body)
    yield name
    live.kubectl("delete", "namespace", name, "--wait=false")
