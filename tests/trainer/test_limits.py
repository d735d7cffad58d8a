"""CPUs and memory that the data may be prepared with."""

import os
from pathlib import Path

import pytest

from cloze_trainer import limits

AFFINITY = len(os.sched_getaffinity(0))


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """A process in group `pods/one`, of version 2."""
    (tmp_path / "membership").write_text("0::/pods/one\n")
    (tmp_path / "root" / "pods" / "one").mkdir(parents=True)
    return tmp_path


def found(groups: Path) -> int:
    return limits.cpus(groups / "membership", groups / "root")


def test_a_limit_is_rounded_up(groups: Path) -> None:
    (groups / "root/pods/one/cpu.max").write_text("10000 100000\n")
    assert found(groups) == 1
    (groups / "root/pods/one/cpu.max").write_text("150000 100000\n")
    assert found(groups) == min(2, AFFINITY)


def test_the_tightest_limit_above_counts(groups: Path) -> None:
    """A pod's limit is on its own group, which is above the container's."""
    (groups / "root/pods/one/cpu.max").write_text("max 100000\n")
    (groups / "root/pods/cpu.max").write_text("100000 100000\n")
    assert found(groups) == 1


@pytest.mark.parametrize("limit", ["max 100000\n", "6400000 100000\n", "", "nonsense"])
def test_without_a_limit_the_affinity_counts(groups: Path, limit: str) -> None:
    (groups / "root/pods/one/cpu.max").write_text(limit)
    assert found(groups) == AFFINITY


def test_other_systems_have_their_affinity_alone(tmp_path: Path) -> None:
    """No control groups, or those of version 1."""
    assert limits.cpus(tmp_path / "none", tmp_path) == AFFINITY
    (tmp_path / "membership").write_text("3:cpu,cpuacct:/pods/one\n")
    assert found(tmp_path) == AFFINITY
    assert limits.memory(tmp_path / "none", tmp_path) is None


def test_the_tightest_limit_of_memory_counts(groups: Path) -> None:
    """Of the container's group and the pod's."""
    paths = groups / "membership", groups / "root"
    (groups / "root/pods/one/memory.max").write_text("max\n")
    assert limits.memory(*paths) is None
    (groups / "root/pods/memory.max").write_text("2147483648\n")
    assert limits.memory(*paths) == 2 << 30
    (groups / "root/pods/one/memory.max").write_text("1073741824\n")
    assert limits.memory(*paths) == 1 << 30
