"""Starts the ranks of this pod with torch elastic, and says how they ended.

`torchrun` exits with 1 whatever its worker's code was; here the first failure's own code is the pod's. A lost peer is
not a failure of this pod: its agent meets the others again in the rendezvous and the ranks start from the newest
checkpoint. Only when the rendezvous itself is gone (it lives in the pod with index 0) does the pod end.
"""

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, MultiprocessContext, SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousError
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from cloze_api.progress import ExitCode, Outcome
from cloze_trainer import nursery, outcome
from cloze_trainer.console import log
from cloze_trainer.errors import PeerLost, RankStuck, TrainerError, classify, technical, trace
from cloze_trainer.losses import PeerLosses
from cloze_trainer.place import ENV_INDEX, Place, interface_of, place_of, rendezvous_seconds
from cloze_trainer.progress import ENV_PROGRESS_FILE, serve
from cloze_trainer.run import Run

# An agent without a heartbeat for 2 s × 5 is taken out of the rendezvous.
_HEARTBEAT_SECONDS, _MISSED_HEARTBEATS = 2, 5
_STORE_TIMEOUT_SECONDS = 60
# Restarts for a peer's sake within one life of the pod; beyond them Kubernetes' own back-off is better.
_PEER_RESTARTS = 50
# What the ranks may take to end beyond the pod's grace period, which decides in Kubernetes; this bounds a run outside.
_STOP_SECONDS = 60
# Codes of ranks that ended for another pod's sake.
_FOR_OTHERS = {int(ExitCode.PEER_LOST), int(ExitCode.SUSPENDED)}


class _RunFinished(Exception):
    """Another pod finished the run while this one waited for its peers."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


class _Agent(LocalElasticAgent):
    """torch's agent, which restarts the ranks only when a peer was lost."""

    def __init__(self, spec: WorkerSpec, run: Run, scratch: Path) -> None:
        super().__init__(
            spec,
            logs_specs=DefaultLogsSpecs(log_dir=str(scratch / "logs")),
            start_method=nursery.METHOD,
            shutdown_timeout=run.job.spec.topology.grace_seconds + _STOP_SECONDS,
        )
        self._run, self._scratch = run, scratch

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        if (done := self._run.finished()) is not None:
            raise _RunFinished(done)
        super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        # What an earlier start of the ranks left; rank 0 may be in another pod now.
        for path in (self._scratch / "progress.json", *self._scratch.glob("[0-9]*.json")):
            path.unlink(missing_ok=True)
        log("ranks start", ranks=[worker.global_rank for worker in worker_group.workers])
        workers: dict[int, Any] = super()._start_workers(worker_group)
        return workers

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is WorkerState.FAILED:
            self._add_failures(worker_group, result)
            failure = _explaining(result.failures, self._scratch)
            code = failure.exitcode
            if code not in _FOR_OTHERS:
                self._remaining_restarts = 0
            elif code == ExitCode.PEER_LOST and (exhausted := _losses(self._run).another()) is not None:
                raise exhausted
            if code == ExitCode.PEER_LOST and _failed(failure, self._scratch).reason == RankStuck.REASON:
                # This pod's end tells it to the operator.
                self._remaining_restarts = 0
        return result

    def _add_failures(self, worker_group: WorkerGroup, result: RunResult) -> None:
        """Torch names the rank whose end it saw first only; it has ended all others meanwhile."""
        context = self._pcontext
        assert isinstance(context, MultiprocessContext)
        assert context._pc is not None
        for worker, process in zip(worker_group.workers, context._pc.processes, strict=True):
            if process.exitcode not in (0, -signal.SIGTERM):
                failure = ProcessFailure(worker.local_rank, process.pid, process.exitcode, error_file="")
                result.failures.setdefault(worker.global_rank, failure)


def worst(failures: Mapping[int, ProcessFailure]) -> ProcessFailure:
    """The failure that explains the others: the earliest of those that aren't for another rank's sake."""
    ordered = sorted(failures.values(), key=lambda failure: (failure.exitcode in _FOR_OTHERS, failure.timestamp))
    return ordered[0]


def _explaining(failures: Mapping[int, ProcessFailure], scratch: Path) -> ProcessFailure:
    """As `worst`, but a rank that was waited for is killed with the others: those that name it explain that."""
    named = {
        rank: failure for rank, failure in failures.items() if _failed(failure, scratch).reason == RankStuck.REASON
    }
    return worst(named or failures)


def _environment(run: Run, place: Place, scratch: Path) -> None:
    """What the ranks find in their environment, besides what the nursery has."""
    os.environ.update({f"NCCL_{name}": value for name, value in run.job.spec.topology.nccl.items()})
    os.environ[outcome.ENV_FOLDER] = str(scratch)
    os.environ[ENV_PROGRESS_FILE] = str(scratch / "progress.json")
    # A shared store would be kept for the pod's life, and a later round would look for it in a pod that is gone.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := interface_of(place.address)):
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    # Its own reports of failed children are stack traces of ours; the outcome says more.
    for name in ("torch.distributed.elastic", "torch.distributed", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _agent(run: Run, file: Path, place: Place, scratch: Path) -> _Agent:
    seconds = rendezvous_seconds(run.job.spec.topology)
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=place.endpoint,
        run_id=run.identity,
        min_nodes=place.nodes,
        max_nodes=place.nodes,
        local_addr=place.address,
        is_host=place.hosts,
        join_timeout=seconds,
        timeout=seconds,
        read_timeout=_STORE_TIMEOUT_SECONDS,
        keep_alive_interval=_HEARTBEAT_SECONDS,
        keep_alive_max_attempt=_MISSED_HEARTBEATS,
    )
    spec = WorkerSpec(
        role="trainer",
        local_world_size=place.processes,
        entrypoint=nursery.begin,
        args=(str(file), dict(os.environ)),
        rdzv_handler=get_rendezvous_handler(parameters),
        max_restarts=_PEER_RESTARTS,
        monitor_interval=0.1,
        local_addr=place.address,
    )
    return _Agent(spec, run, scratch)


def _hear(number: int, _frame: FrameType | None) -> None:
    """Until the ranks run, where torch's own handler takes over."""
    raise SignalException("stopped before the ranks ran", signal.Signals(number))


def _failed(failure: ProcessFailure, scratch: Path) -> Outcome:
    """The outcome of a failed rank: what it left, or what its end says."""
    left = outcome.read(scratch / f"{failure.local_rank}.json")
    if left is not None and left.exit_code != ExitCode.SUCCESS:
        return left
    if failure.exitcode == -signal.SIGKILL:
        return Outcome(
            reason="RankKilled",
            message="a rank was killed by the system: most often it went over its memory limit; raise "
            "topology.resources.limits.memory or lower optimization.batchSequences",
            exit_code=ExitCode.INTERNAL,
        )
    return Outcome(
        reason="RankCrashed", message=f"a rank ended with code {failure.exitcode}", exit_code=ExitCode.INTERNAL
    )


def launch(run: Run, file: Path, progress_port: int | None) -> Outcome:
    """Run this pod's ranks to their end, and return how it was. Never raises for a failure of the run."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _hear)
    scratch = Path(tempfile.mkdtemp(prefix="cloze-"))
    server = None
    try:
        if progress_port is not None:
            server = _serve(progress_port, scratch, run)
        return _supervise(run, file, scratch)
    except SignalException:
        left = outcome.read(scratch / "0.json")
        if left is not None and left.exit_code == ExitCode.SUSPENDED:
            return left
        return Outcome(reason="Suspended", message="stopped by a signal", exit_code=ExitCode.SUSPENDED)
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes an outcome
        failure = classify(error, ranks=run.job.spec.topology.world_size)
        if not isinstance(error, TrainerError):
            log("trace", text=trace(error), error=technical(error))
        return _peer_lost(run, failure) if isinstance(failure, PeerLost) else outcome.failed(failure)
    finally:
        if server is not None:
            server.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def _serve(port: int, scratch: Path, run: Run) -> ThreadingHTTPServer:
    try:
        return serve(port, scratch / "progress.json", (run.kind, run.job.metadata.name))
    except (OSError, OverflowError) as error:
        raise TrainerError(
            "ProgressPortUnavailable", f"the progress port {port} can't be listened on ({error}): name another one"
        ) from error


def _supervise(run: Run, file: Path, scratch: Path) -> Outcome:
    try:
        place = place_of(run)
        _environment(run, place, scratch)
        result = _agent(run, file, place, scratch).run()
    except _RunFinished as finished:
        return finished.outcome
    except RendezvousError as error:
        if run.job.spec.topology.nodes == 1:
            raise
        # The others close it when they are done, or when one of them failed for good.
        closed = isinstance(error, RendezvousClosedError)
        why = "was closed by another pod" if closed else "is gone or the gang wasn't whole in time"
        log("rendezvous lost", why=why, error=technical(error))
        return _peer_lost(run, PeerLost(f"the rendezvous {why}; the gang starts again when all pods run"))
    if result.is_failed():
        failed = _failed(_explaining(result.failures, scratch), scratch)
        if failed.exit_code != ExitCode.PEER_LOST:
            return failed
        return _peer_lost(run, PeerLost(failed.message, failed.reason), counted=True)
    left = outcome.read(scratch / "0.json")
    return left or Outcome(reason="Completed", message="rank 0 has the result")


def _peer_lost(run: Run, lost: PeerLost, *, counted: bool = False) -> Outcome:
    """The outcome for a pod whose peers are gone: success when they had finished the run.

    counted: whether the agent has counted this loss already.
    """
    if (done := run.finished()) is not None:
        return done
    return outcome.failed((None if counted else _losses(run).another()) or lost)


def _losses(run: Run) -> PeerLosses:
    return PeerLosses(run.workspace, os.environ.get(ENV_INDEX, "0"))
