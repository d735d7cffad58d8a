"""Sends figures to MLflow while the training goes on, and plots at its end; MLflow's absence costs it nothing."""

import contextlib
import queue
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloze_trainer.console import log

_FLUSH_SECONDS = 10.0
_RETRY_SECONDS = 30.0
# Figures that wait for MLflow; older ones are dropped beyond it.
_LARGEST_BACKLOG = 50_000
# Of the run's artifacts.
_PLOTS_FOLDER = "plots"


@dataclass(frozen=True, slots=True)
class JobTags:
    """What marks the run and the version of a job.

    experiment: the registered model's name. repeatable: whether the same job may be carried out again, with another
    result, as on a person's own machine.
    """

    uid: str
    job: str
    task: str
    experiment: str
    repeatable: bool = False


class Silent:
    """Tracks nothing: on ranks other than 0, and without MLflow."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Forget the figures."""

    def keep(self, path: Path) -> None:
        """Leave the file where it is."""

    def close(self, *, failed: bool = False, report: Mapping[str, Any] | None = None) -> None:
        """Nothing to send."""

    def pause(self) -> None:
        """Nothing to send."""


class MlflowTracker:
    """Buffers figures and sends them from a thread of its own."""

    def __init__(self, tracking_uri: str, tags: JobTags) -> None:
        self._uri, self._tags = tracking_uri, tags
        self._rows: queue.SimpleQueue[tuple[int, str, float, int]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._failed = self._paused = False
        self._report: Mapping[str, Any] = {}
        self._files: list[Path] = []
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a step."""
        stamp = int(time.time() * 1000)
        for name, value in values.items():
            self._rows.put((step, name, value, stamp))

    def keep(self, path: Path) -> None:
        """Log the file at the run's end, too."""
        self._files.append(path)

    def close(self, timeout: float = 30.0, *, failed: bool = False, report: Mapping[str, Any] | None = None) -> None:
        """Send what is left, and plots; what MLflow doesn't take in this time is dropped.

        failed: whether the run has failed for good. report: a classifier's `evaluation.json`, for its plots.
        """
        self._failed, self._report = failed, report or {}
        self._closing.set()
        self._thread.join(timeout)

    def pause(self, timeout: float = 5.0) -> None:
        """Send what is left of a run that is suspended, within the time that its pod has to end. Nothing is plotted."""
        self._paused = True
        self._closing.set()
        self._thread.join(timeout)

    def _work(self) -> None:
        # Imported here: it takes seconds, which the data preparation hides.
        from cloze_trainer import registry  # noqa: PLC0415
        from cloze_trainer.connection import client  # noqa: PLC0415

        backlog: list[tuple[int, str, float, int]] = []
        run_id = ""
        warned = False
        while True:
            closing = self._closing.wait(_RETRY_SECONDS if warned else _FLUSH_SECONDS)
            with contextlib.suppress(queue.Empty):
                while True:
                    backlog.append(self._rows.get_nowait())
            del backlog[:-_LARGEST_BACKLOG]
            failed = closing and self._failed
            if backlog or failed:
                try:
                    connection = client(self._uri)
                    run_id = run_id or registry.find_or_create_run(connection, self._tags)
                    registry.log_metrics(connection, run_id, backlog)
                    backlog.clear()
                    if failed:
                        connection.set_terminated(run_id, "FAILED")
                    warned = False
                except Exception as error:  # noqa: BLE001 - nothing that MLflow does may end the training
                    if not warned:
                        log("tracking delayed", why=type(error).__name__, waiting=len(backlog))
                    warned = True
            if closing:
                if run_id and not warned and not self._paused:
                    self._draw(run_id)
                return

    def _draw(self, run_id: str) -> None:
        """Log files, and plots of what MLflow was told, also by the run's earlier starts, and of the evaluation."""
        from cloze_trainer.connection import client  # noqa: PLC0415

        try:
            connection = client(self._uri)
            for path in self._files:
                connection.log_artifact(run_id, str(path), path.parent.name)
            # The import takes a second, and a run that is suspended never needs it.
            from cloze_trainer import plots  # noqa: PLC0415

            drawn = dict(plots.evaluation(self._report)) if self._report else {}
            curves = {}
            for name in plots.CURVES:
                history = sorted(connection.get_metric_history(run_id, name), key=lambda each: each.timestamp)
                curves[name] = [(each.step, each.value) for each in history]
            if (training := plots.training(curves)) is not None:
                drawn["training"] = training
            with tempfile.TemporaryDirectory(prefix="plots-") as folder:
                for name, image in drawn.items():
                    Path(folder, f"{name}.png").write_bytes(image)
                connection.log_artifacts(run_id, folder, _PLOTS_FOLDER)
        except Exception as error:  # noqa: BLE001 - nor may a plot
            log("artifacts not logged", why=type(error).__name__)
