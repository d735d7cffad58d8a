"""Where ranks are born: a process that has imported what they need, and is forked for each of them.

Torch takes seconds to import. The nursery does so once for all ranks of the pod, while the launcher does for itself,
and a rank that is started again for a peer's sake begins at once. It computes nothing and touches no GPU, so that a
fork of it is as good as a fresh interpreter.
"""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path

from cloze_trainer import outcome
from cloze_trainer.progress import ENV_PROGRESS_FILE

METHOD = "forkserver"
"""How torch elastic is to start the ranks."""

_PRELOADED = ["cloze_trainer.worker", "cloze_trainer.main"]
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_RS_NUM_THREADS", "RAYON_NUM_THREADS")


def open_nursery(threads: int) -> None:
    """Start it; returns at once. threads: of each rank, which torch's libraries read when they are loaded."""
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    # Another run's, that this one was started from, would stay what the ranks go by.
    for name in (outcome.ENV_FOLDER, ENV_PROGRESS_FILE):
        os.environ.pop(name, None)
    # DDP warns about a flag that is set on purpose: see `parallel.share_out`.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    _hide_program()
    multiprocessing.get_context(METHOD).set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


def _hide_program() -> None:
    """Keep multiprocessing from running the program in each rank: one without a guard would begin a run of its own."""
    program = sys.modules["__main__"]
    program.__spec__ = None
    vars(program).pop("__file__", None)


def settle_in(environment: Mapping[str, str]) -> None:
    """Make this process a rank: take what the launcher decided since the nursery began, and be told apart from it.

    environment: the launcher's. The rank's own place in the gang is in this process's already.
    """
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    # What a terminal or a supervisor tells the launcher's session is passed on by the launcher.
    os.setsid()
    # Shown by `ps` and `top`; at most 15 characters (PR_SET_NAME, prctl(2)).
    Path("/proc/self/comm").write_text(f"cloze-rank-{os.environ['RANK']}"[:15], encoding="ascii")


def begin(file: str, environment: Mapping[str, str]) -> None:
    """Carry out the job in the file as a new rank; environment as in `settle_in`."""
    settle_in(environment)
    from cloze_trainer import worker  # noqa: PLC0415 - the launcher names this function, and needs nothing of it

    worker.main(Path(file))
