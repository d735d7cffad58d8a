"""What the Makefile's recipes do before they meet a cluster."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEETS_A_CLUSTER = re.compile(r"\b(kubectl|helm|pytest|hack/demo run|hack/install|hack/test-full chaos)\b")


def recipes() -> dict[str, str]:
    """The recipe of each target."""
    found: dict[str, str] = {}
    for block in re.split(r"\n(?=\S)", (ROOT / "Makefile").read_text()):
        head, _, body = block.partition("\n\t")
        if match := re.match(r"([a-z][a-z0-9-]*):", head):
            found[match[1]] = body
    return found


def test_every_recipe_that_meets_a_cluster_takes_its_environment() -> None:
    """Without it the recipe would talk to whatever cluster the person's own kubeconfig names."""
    without = {"unit"}
    meeting = {name: body for name, body in recipes().items() if MEETS_A_CLUSTER.search(body) and name not in without}
    assert {"demo", "install", "uninstall", "integration", "e2e", "demo-clean", "chaos"} <= meeting.keys()
    for name, body in meeting.items():
        for line in body.splitlines():
            if MEETS_A_CLUSTER.search(line):
                assert "$(ON_CLUSTER)" in line, f"{name}: {line}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A Makefile, `with-cluster`, and a stand-in for the cluster command that says what it was asked."""
    root = tmp_path / "checkout"
    (root / "hack").mkdir(parents=True)
    for path in ("Makefile", "hack/with-cluster"):
        shutil.copy(ROOT / path, root / path)
    (root / "requirements").mkdir()
    (root / "requirements/uv.txt").touch()
    (root / "hack/cluster").write_text(
        "import os, sys\n"
        "with open('asked', 'a') as log:\n"
        "    print(os.environ.get('CLOZE_CLUSTER'), *sys.argv[1:], file=log)\n"
        "if sys.argv[1] == 'up':\n"
        "    print(os.environ['OUTCOME'])\n"
        "    sys.exit(os.environ['OUTCOME'] == 'broken')\n"
        "sys.exit(sys.argv[1] == 'env')\n"
    )
    evidence = root / "hack/keep-evidence"
    evidence.write_text("#!/bin/sh\necho $CLOZE_CLUSTER evidence >> asked\n")
    evidence.chmod(0o755)
    return root


def run(checkout: Path, *command: str, outcome: str = "started") -> tuple[int, list[str]]:
    """Exit code, and what the cluster command was asked."""
    environment = {**os.environ, "OUTCOME": outcome, "CLOZE_CLUSTER": "probe", "HOME": str(checkout)}
    # The variables of a make that runs these tests would win.
    for variable in ("CLOZE_KUBECONFIG", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES"):
        environment.pop(variable, None)
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    log = checkout / "asked"
    return done.returncode, log.read_text().splitlines() if log.exists() else []


def test_a_recipe_stops_when_there_is_no_cluster(checkout: Path) -> None:
    """`uninstall` must not go on to whatever else kubectl and helm would reach."""
    stub = checkout / "bin"
    stub.mkdir()
    (stub / "helm").write_text("#!/bin/sh\necho helm ran >> asked\n")
    (stub / "helm").chmod(0o755)
    command = ("env", f"PATH={stub}:{os.environ['PATH']}", "make", "uninstall")
    code, asked = run(checkout, *command)
    assert code != 0
    assert asked == ["probe env"]


@pytest.mark.parametrize("code", [0, 3])
def test_a_cluster_that_was_started_is_forgotten_again(checkout: Path, code: int) -> None:
    """The command's exit code comes through; after a failure what the cluster knew is kept first."""
    ended, asked = run(checkout, "hack/with-cluster", "sh", "-c", f"exit {code}")
    assert ended == code
    assert asked == ["probe up", *(["probe evidence"] if code else []), "probe reset --images"]


def test_a_cluster_that_was_up_is_left_alone(checkout: Path) -> None:
    """Nothing stops a cluster that it didn't start."""
    assert run(checkout, "hack/with-cluster", "false", outcome="running") == (1, ["probe up"])


def test_nothing_runs_and_nothing_is_reset_when_the_cluster_did_not_start(checkout: Path) -> None:
    """`up` itself has stopped what it had started; its logs must stay."""
    code, asked = run(checkout, "hack/with-cluster", "touch", "ran", outcome="broken")
    assert code != 0
    assert asked == ["probe up"]
    assert not (checkout / "ran").exists()


def test_a_cluster_named_to_make_is_not_the_one_that_is_tested(checkout: Path) -> None:
    """`make CLOZE_CLUSTER=mine full-chaos` runs its parts on the test's own cluster."""
    (checkout / ".venv").mkdir()
    (checkout / "pyproject.toml").touch()
    (checkout / "requirements/dev.txt").touch()
    current = checkout / ".venv/.current"
    current.touch()
    os.utime(current, (4e9, 4e9))
    uv = next(iter((checkout / ".cache/cloze").glob("*")), None)
    assert uv is None
    _, asked = run(
        checkout, "make", "CLOZE_CLUSTER=mine", f"UV={checkout}/Makefile", "TEST_CLUSTER=other", "full-chaos"
    )
    assert asked[0] == "other up"
    assert all(line.startswith("other ") for line in asked), asked
