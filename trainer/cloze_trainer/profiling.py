"""A trace of a few training steps of rank 0, on request, for Perfetto or chrome://tracing."""

from pathlib import Path
from types import TracebackType
from typing import Protocol

from torch.profiler import ProfilerAction, profile

from cloze_api.training import Profile
from cloze_trainer.console import log

# Compressed; a browser takes no more.
_LARGEST_BYTES = 64 << 20


class Keeper(Protocol):
    """Where a trace is shown besides the workspace."""

    def keep(self, path: Path) -> None:
        """Take the file, which stays; never fails."""


class Profiler:
    """Watches a window of steps. Nothing is watched where `asked` is None, and no weight changes by being watched."""

    def __init__(self, asked: Profile | None, folder: Path, keeper: Keeper) -> None:
        self._asked, self._path, self._keeper = asked, folder / "trace.json.gz", keeper
        self._running: profile | None = None

    def at(self, step: int) -> None:
        """Say how many steps are done.

        A run that goes on from within the window, or from beyond it, makes no trace, and shows an earlier start's.
        """
        if self._asked is None:
            return
        first = self._asked.from_step
        if step > first and self._running is None:
            self._asked = None
            if self._path.is_file():
                log("profile of an earlier start", path=str(self._path))
                self._keeper.keep(self._path)
            else:
                log("no profile", why=f"step {first} of spec.profile.fromStep is done, the training goes on at {step}")
        elif step == first and self._running is None:
            # Steps are marked where there is a schedule; this one records until the end.
            self._running = profile(schedule=lambda _: ProfilerAction.RECORD)
            self._running.start()
        elif self._running is not None:
            if first <= step < first + self._asked.steps:
                self._running.step()
            else:
                self._finish()

    def _finish(self) -> None:
        running, self._running, self._asked = self._running, None, None
        if running is None:
            return
        # No failure to keep a trace is the training's.
        try:
            running.stop()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # A kill leaves no half of one that a later start would show.
            written = self._path.with_name(f".{self._path.name}")
            running.export_chrome_trace(str(written))
            if (size := written.stat().st_size) > _LARGEST_BYTES:
                written.unlink()
                log("profile dropped", bytes=size, why="it is too large: ask for fewer steps in spec.profile.steps")
                return
            written.replace(self._path)
        except (OSError, RuntimeError) as error:
            log("profile not written", why=type(error).__name__)
            return
        log("profile written", path=str(self._path), bytes=size)
        self._keeper.keep(self._path)

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        # The training may end within the window.
        self._finish()
