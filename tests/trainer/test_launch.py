"""The launcher: every failure becomes an outcome, and a fault is not taken for a lost peer for ever."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError

from cloze_api.progress import ExitCode, Outcome
from cloze_trainer import launch as launcher
from cloze_trainer import outcome
from cloze_trainer.losses import PATIENCE, PeerLosses
from cloze_trainer.place import rendezvous_seconds
from cloze_trainer.run import Run, open_run


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The launcher takes the signals over."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run_of(folder: Path, **topology: Any) -> Run:
    job = {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": "small", "uid": "u"},
        "spec": {"corpus": [{"uri": "file:///x"}], "topology": topology, "registry": {"name": "small"}},
    }
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    run = open_run(file)
    return Run(run.job, run.identity, folder, folder, None)


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> Any:
        raise error

    monkeypatch.setattr(launcher, "_agent", fail)


def test_unexpected_failure_leaves_its_trace_and_an_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The log says where and what torch said; the pod ends with a code and a reason."""
    fail_with(monkeypatch, RuntimeError("the agent has no hands"))
    result = launcher.launch(run_of(tmp_path), tmp_path / "job.json", None)
    assert (result.reason, result.exit_code) == ("InternalError", ExitCode.INTERNAL)
    log = capfd.readouterr().err
    assert "the agent has no hands" in log
    assert "test_launch.py" in log


def test_taken_progress_port_is_told(tmp_path: Path) -> None:
    """Nothing is trained without the figures that the operator asks for, and the reason says so."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = launcher.launch(run_of(tmp_path), tmp_path / "job.json", port)
    assert (result.reason, result.exit_code) == ("ProgressPortUnavailable", ExitCode.INTERNAL)
    assert str(port) in result.message


def test_rendezvous_of_one_pod_has_no_peer_to_lose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its failure is its own, and counted."""
    fail_with(monkeypatch, RendezvousConnectionError("no store"))
    result = launcher.launch(run_of(tmp_path, processesPerNode=1), tmp_path / "job.json", None)
    assert result.exit_code == ExitCode.INTERNAL


def test_lost_rendezvous_is_counted_when_it_never_gets_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blameless for a while; then the failure counts against the run, and the patience begins anew."""
    fail_with(monkeypatch, RendezvousConnectionError("no store"))
    run = run_of(tmp_path, nodes=2)
    codes = [launcher.launch(run, tmp_path / "job.json", None).exit_code for _ in range(PATIENCE + 2)]
    assert codes == [ExitCode.PEER_LOST] * PATIENCE + [ExitCode.INTERNAL, ExitCode.PEER_LOST]


def test_lost_peer_of_a_finished_run_is_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pod whose rendezvous has gone because the others are done says what they registered."""
    done = Outcome(reason="Registered", model_name="small", model_version="3", metrics={"loss": 1.0})
    outcome.finish(tmp_path, "u", done, sources={})
    fail_with(monkeypatch, RendezvousConnectionError("no store"))
    assert launcher.launch(run_of(tmp_path, nodes=2), tmp_path / "job.json", None) == done


def test_newer_checkpoint_renews_the_patience(tmp_path: Path) -> None:
    """Losses count in a row only while nothing is reached between them, also over restarts of the pod."""

    def lose(times: int) -> list[bool]:
        return [PeerLosses(tmp_path, "1").another() is None for _ in range(times)]

    def reach(step: int) -> None:
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "COMPLETE").touch()

    assert all(lose(PATIENCE))
    reach(7)
    assert all(lose(PATIENCE))
    assert lose(2) == [False, True]
    assert PeerLosses(tmp_path, "0").another() is None


def test_what_is_told_first_of_a_model_is_told_where_there_isnt_room_for_all() -> None:
    """Kubernetes has 4,096 bytes, of which a sentence may need the half."""
    figures = {f"figure_{number}": number / 7 for number in range(300)}
    told = outcome.encode(Outcome(reason="GateFailed", message="a" * 2048, metrics=figures))
    assert len(told) <= outcome.LARGEST_MESSAGE
    kept = Outcome.model_validate_json(told)
    assert list(kept.metrics.items()) == list(figures.items())[: len(kept.metrics)]
    assert len(kept.metrics) > 32
    assert len(kept.message) == 2048


def test_ranks_find_what_the_topology_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's settings, before the process group is made, and how long the gang may take."""
    run = run_of(tmp_path, nccl={"SOCKET_IFNAME": "eth0"}, rendezvousSeconds=90)
    found: list[Any] = []

    def stop(run: Run, *_: object) -> Any:
        found.extend([os.environ["NCCL_SOCKET_IFNAME"], rendezvous_seconds(run.job.spec.topology)])
        raise RuntimeError("that was all")

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(launcher, "_agent", stop)
    launcher.launch(run, tmp_path / "job.json", None)
    assert found == ["eth0", 90]
    os.environ["CLOZE_RENDEZVOUS_TIMEOUT_SECONDS"] = "5"
    assert rendezvous_seconds(run.job.spec.topology) == 5
