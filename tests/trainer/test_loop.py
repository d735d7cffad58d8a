"""The training loop at one and at two ranks, with real process groups."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.timeout(300)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the ranks left, by `ranks-rank-bad steps`."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = []
    for world, scenarios in ((1, ["nan:0", "nan:2", "nan:3"]), (2, ["nan:0"])):
        port = free_port()
        for rank in range(world):
            environment = os.environ | {
                "RANK": str(rank),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
            }
            command = [sys.executable, str(Path(__file__).with_name("one_rank.py")), str(folder), *scenarios]
            processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, log = process.communicate(timeout=240)
        assert process.returncode == 0, log
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


def test_two_ranks_train_on_what_one_does(results: dict[str, dict[str, Any]]) -> None:
    """Same losses and gradients in every step, also in an epoch's last, of which the second rank has no example."""
    one, two, other = results["1-0-0"], results["2-0-0"], results["2-1-0"]
    assert len(one["losses"]) == 6
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert torch.allclose(two["gradients"], one["gradients"], rtol=1e-3, atol=1e-6)
    assert torch.equal(two["gradients"], other["gradients"])
    assert torch.allclose(two["weights"], one["weights"], atol=1e-4)
    assert torch.equal(two["weights"], other["weights"])


def test_steps_without_a_finite_gradient_are_left_out_within_a_budget(results: dict[str, dict[str, Any]]) -> None:
    """Two in a row change no weight and are made up for; nothing is saved meanwhile."""
    result = results["1-0-2"]
    assert result["error"] == ""
    assert torch.isfinite(result["weights"]).all()
    assert not torch.isfinite(result["gradients"][1:3]).all(dim=1).any()
    assert result["losses"][1:3] == [None, None]
    assert result["losses"][-1] is not None


def test_a_run_that_stays_non_finite_diverges(results: dict[str, dict[str, Any]]) -> None:
    """The third such step in a row ends the run, and the newest checkpoint is from before the first."""
    result = results["1-0-3"]
    assert result["error"] == "Diverged"
    assert len(result["gradients"]) == 4
    assert result["checkpoints"] == ["step-00000001"]
