"""Helper processes for what one processor would take long for: what they give comes in the order of what they get.

A helper is this interpreter with what its work needs, without torch. It reads tasks from a pipe, and ends with that:
however this process ends, none is left behind.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from cloze_trainer.console import log
from cloze_trainer.errors import InputError, TrainerError, trace

T = TypeVar("T")
R = TypeVar("R")

MOST: Final = 16
"""Helpers at most: one process reads for all of them."""
# What each is counted with, of which it takes half, and the part of the pod's memory that is for all of them.
_BYTES_EACH: Final = 128 << 20
_SHARE: Final = 4
# What is done here first: helpers take a second to start, which a small corpus doesn't take in all.
_ALONE: Final = 4
_PROGRAM: Final = "from cloze_trainer.data.crew import help_out; help_out()"
# Of libraries of NumPy's, which begin threads when they are loaded.
_THREADS: Final = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def affordable(cpus: int, memory: int | None) -> int:
    """How many helpers a pod with so many CPUs and bytes of memory may have; None is no limit. At least 1."""
    room = MOST if memory is None else memory // _SHARE // _BYTES_EACH
    return max(1, min(cpus, room, MOST))


class Crew:
    """Helpers for a block of code.

    size: how many; with 1 all is done in this process.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._helpers: list[_Helper] = []
        self._idle: queue.SimpleQueue[_Helper] = queue.SimpleQueue()
        self._askers: ThreadPoolExecutor | None = None

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for helper in self._helpers:
            helper.process.kill()
        if self._askers is not None:
            self._askers.shutdown(cancel_futures=True)
        for helper in self._helpers:
            helper.close()

    def map(self, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """What the work makes of each task, in their order. At most twice as many as helpers are in memory.

        Work, tasks and results are pickled; the work is a function of its task alone. Raises what it raises in this
        process; of a helper, InputError, or TrainerError for anything else and for a helper that is killed.
        """
        waiting = iter(tasks)
        if self._askers is None:
            yield from map(work, waiting if self._size == 1 else islice(waiting, _ALONE))
        asked: deque[Future[R]] = deque()
        for task in waiting:
            asked.append(self._start().submit(self._ask, work, task))
            if len(asked) == 2 * self._size:
                yield asked.popleft().result()
        while asked:
            yield asked.popleft().result()

    def _start(self) -> ThreadPoolExecutor:
        if self._askers is None:
            log("helpers start", processes=self._size)
            # One thread for each helper, which waits for its answers.
            self._askers = ThreadPoolExecutor(self._size, thread_name_prefix="crew")
            for _ in range(self._size):
                self._helpers.append(_Helper())
                self._idle.put(self._helpers[-1])
        return self._askers

    def _ask(self, work: Callable[[T], R], task: T) -> R:
        helper = self._idle.get()
        try:
            result: R = helper.ask(work, task)
            return result
        finally:
            self._idle.put(helper)


class _Helper:
    """One of the processes, as the one that asks sees it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - this very interpreter
            # What lies in the folder that a person works in is no module of ours.
            [sys.executable, "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | _THREADS,
        )

    def ask(self, work: Callable[[T], R], task: T) -> R:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            pickle.dump((work, task), self.process.stdin, pickle.HIGHEST_PROTOCOL)
            self.process.stdin.flush()
            done, answer = pickle.load(self.process.stdout)  # noqa: S301 - of our own process
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise TrainerError(
                "HelperKilled",
                f"a process that helps to prepare the data ended with code {self.process.wait()}: most often the pod "
                "went over its memory limit; raise topology.resources.limits.memory",
            ) from error
        if done:
            result: R = answer
            return result
        raise answer.error()

    def close(self) -> None:
        with suppress(OSError):
            # What wasn't sent any more is flushed in vain.
            self.process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
        self.process.stdout.close()  # type: ignore[union-attr]  # likewise
        self.process.wait()


class _Failure:
    """What went wrong in a helper, without the user's text."""

    def __init__(self, error: Exception) -> None:
        self.kind, self.place = type(error).__name__, trace(error)
        self.told = (error.reason, error.message) if isinstance(error, InputError) else None

    def error(self) -> TrainerError:
        if self.told:
            return InputError(*self.told)
        log("trace", helper=True, text=self.place, error=self.kind)
        return TrainerError(
            "HelperFailed",
            f"a process that helps to prepare the data failed with {self.kind}: the log has the place; it is tried "
            "again",
        )


def help_out() -> None:
    """Be a helper: do what comes by standard input until there is no more."""
    # The process that asks hears signals, and ends its helpers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        Path("/proc/self/comm").write_text("cloze-helper", encoding="ascii")
    tasks, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # What a library might print is no answer.
    os.dup2(2, 1)
    while True:
        try:
            work, task = pickle.load(tasks)  # noqa: S301 - of our own process
        except EOFError:
            return
        answer: tuple[bool, Any]
        try:
            answer = True, work(task)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            answer = False, _Failure(error)
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()
