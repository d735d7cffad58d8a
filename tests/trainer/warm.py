"""Starts Python programs in forks of an interpreter that has imported what they need.

Torch and the trainer take an interpreter ten seconds to import, and a small training two. What a program does
is the same: it is the fork's `__main__`, and has the environment, folder and arguments that it would have. But the
forks have one seed for hashes, so a test of what mustn't depend on it starts the real command.
"""

import atexit
import contextlib
import errno
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import util
from pathlib import Path
from typing import IO, Any, NoReturn

PRELOADED = (
    "cloze_trainer.launch",
    "cloze_trainer.worker",
    "cloze_trainer.main",
    # What they import when they need it; but MLflow, which begins a thread.
    "opacus.accountants.utils",
    "peft.tuners.lora",
    "torch._functorch.aot_autograd",
    "torch._inductor.config",
)
# Read by torch's libraries when they are loaded.
LOADED_WITH = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_RS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
_REQUEST_BYTES = 1 << 20


class Process:
    """As much of `subprocess.Popen` as tests use."""

    def __init__(self, args: Sequence[str], told: socket.socket) -> None:
        self.args = args
        self._told = told
        self.pid = int(self._hear())
        self.returncode: int | None = None

    def _hear(self) -> bytes:
        said = self._told.recv(32)
        assert said, "the warm interpreter has ended"
        return said

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, or minus the signal that ended it. Raises TimeoutExpired."""
        if self.returncode is None:
            self._told.settimeout(timeout)
            try:
                self.returncode = int(self._hear())
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._told.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(args: Sequence[str], environment: Mapping[str, str], output: IO[Any] | int) -> Process:
    """Start a Python program, by its file and arguments, in a session of its own; it writes to the output."""
    told, tells = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = json.dumps({"args": list(args), "environment": dict(environment), "folder": str(Path.cwd())}).encode()
    file = output if isinstance(output, int) else output.fileno()
    with tells:
        socket.send_fds(_interpreter(), [request], [file, tells.fileno()])
    return Process(args, told)


@functools.cache
def _interpreter() -> socket.socket:
    """A connection to the one of this test run, whose processes share it; it ends with the last of them."""
    # Abstract, so that nothing of it is left; whoever has the name first starts it.
    address = f"\0cloze-tests-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= LOADED_WITH | {"TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}
    connection = _socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST_BYTES)
    with _socket() as listener:
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            listener.listen()
            subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno())],
                env=environment,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        while True:
            try:
                connection.connect(address)
            except ConnectionRefusedError:
                continue  # it has its name, and listens in a moment
            return connection


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@dataclass(frozen=True, slots=True)
class _Fork:
    pid: int
    tells: socket.socket
    asker: socket.socket

    def reap(self) -> None:
        """Tell how it ended."""
        _, status = os.waitpid(self.pid, 0)
        # Whoever asked may not want to know any more.
        with self.tells, contextlib.suppress(OSError):
            self.tells.send(str(os.waitstatus_to_exitcode(status)).encode())


def _accept(listener: socket.socket, askers: set[socket.socket]) -> None:
    asker, _ = listener.accept()
    _, user, _ = struct.unpack("3i", asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    # An abstract address is anybody's.
    if user == os.getuid():
        askers.add(asker)


def _serve(listener: socket.socket) -> dict[str, Any]:
    """Fork for each request, and tell of each fork its number and how it ended. Returns in a fork, with its request."""
    forks: dict[int, _Fork] = {}
    askers: set[socket.socket] = set()
    while True:
        ready, _, _ = select.select([listener, *askers, *forks], [], [])
        if listener in ready:
            _accept(listener, askers)
        for end in forks.keys() & ready:
            forks.pop(end).reap()
            os.close(end)
        for asker in askers & set(ready):
            request, files, _, _ = socket.recv_fds(asker, _REQUEST_BYTES, 2)
            if not request:
                askers.remove(asker)
                asker.close()
                for fork in forks.values():
                    if fork.asker is asker:
                        os.killpg(fork.pid, signal.SIGTERM)
                if not askers:
                    os._exit(0)
                continue
            output, tells = files[0], socket.socket(fileno=files[1])
            pid = os.fork()
            if pid == 0:
                os.setsid()
                for number in forks:
                    os.close(number)
                for other in (listener, tells, *askers, *(fork.tells for fork in forks.values())):
                    other.close()
                for standard in (1, 2):
                    os.dup2(output, standard)
                os.close(output)
                return dict(json.loads(request))
            os.close(output)
            tells.send(str(pid).encode())
            forks[os.pidfd_open(pid)] = _Fork(pid, tells, asker)


def _fork_interpreters() -> None:
    """Let multiprocessing start its forkserver, the nursery of the ranks, as a fork of this process.

    It would start an interpreter anew: `spawnv_passfds` is how, with a command for the new one to run. A Python that
    does it in another way starts it in that way, which is only slow; and so does a run whose threads are others than
    this process was loaded with.
    """
    cold = util.spawnv_passfds

    def warm(path: bytes, args: Sequence[Any], files: Sequence[int]) -> int:
        fits = all(os.environ.get(name) == value for name, value in LOADED_WITH.items())
        if args[-2] != "-c" or "forkserver" not in args[-1] or not fits:
            return cold(path, args, files)
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            return pid
        code = 1
        try:
            kept = {0, 1, 2, *files}
            for number in sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir()):
                if number not in kept:
                    with contextlib.suppress(OSError):
                        os.close(number)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            exec(args[-1], {"__name__": "__main__"})  # noqa: S102 - multiprocessing's own command
            code = 0
        except SystemExit:
            code = 0
        finally:
            os._exit(code)

    util.spawnv_passfds = warm


def _end_with(code: int) -> NoReturn:
    """As an interpreter ends, but for its modules: to clear them away takes half a second of copying their pages."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(request: Mapping[str, Any]) -> int:
    """Be the program; its exit code."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = request["args"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    _fork_interpreters()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:  # noqa: BLE001 - as an interpreter does
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """The interpreter: `warm.py SOCKET`."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    for module in PRELOADED:
        importlib.import_module(module)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork has no other thread, and its locks stay locked"
    # Collections would copy the pages of what lives for ever anyway.
    gc.collect()
    gc.freeze()
    _end_with(_run(_serve(listener)))


if __name__ == "__main__":
    main()
