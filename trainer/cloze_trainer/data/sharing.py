"""Prepared data that several runs share: one of them prepares, and the others wait for it."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cloze_trainer.console import log
from cloze_trainer.errors import InputError

_POLL_SECONDS = 1.0


@contextmanager
def turn(folder: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """While this block of code runs, no other run is in its own for the same folder (flock(2)).

    Whoever dies gives way to the next. waiting: is called while another is at it. Raises InputError where the file
    system has no locks, and OSError where it can't be used.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("ab") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    log("another run prepares these data", folder=str(folder), then="this one waits, and takes them")
                told = True
                waiting()
                time.sleep(_POLL_SECONDS)
                continue
            except OSError as error:
                raise InputError(
                    "DataCacheUnusable",
                    f"{folder.parent} has no locks ({error.strerror}), without which runs can't share it: take another "
                    "volume for the data cache, or none",
                ) from error
            break
        yield
