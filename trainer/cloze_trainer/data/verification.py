"""Whether prepared data still are what was prepared: found out before they are trained on."""

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from cloze_trainer.console import log
from cloze_trainer.files import COMPLETE, Damaged, check, is_complete, recorded


def intact(folder: Path, heard: Callable[[int, int], object] | None = None) -> bool:
    """Whether data are published in the folder, each byte as it was. Where one isn't the log says so.

    All files are read once, in parts; the log says how many bytes and how long it took. heard: told of the bytes that
    are read, and of all there are. Raises OSError where the volume can't be used.
    """
    if not is_complete(folder):
        return False
    began, done = time.monotonic(), 0
    total = sum(path.stat().st_size for path in folder.iterdir() if path.name != COMPLETE)

    def read(count: int) -> None:
        nonlocal done
        done += count
        if heard is not None:
            heard(done, total)

    try:
        check(folder, recorded(folder), read)
    except (Damaged, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EIO:
            raise
        why = error if isinstance(error, Damaged) else "a file can't be read from its disk"
        log("prepared data damaged", folder=str(folder), why=f"{why}: the data are removed and prepared again")
        return False
    log("prepared data verified", bytes=done, seconds=round(time.monotonic() - began, 2))
    return True


def discard(folder: Path) -> None:
    """Remove what is in the folder, if there is anything: its room is needed."""
    if folder.exists():
        # The marker goes first, so that a half-deleted folder doesn't count.
        (folder / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(folder)
