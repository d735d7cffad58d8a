"""Progress of a run: rank 0 leaves its figures in a small file, and its pod serves them over HTTP."""

import contextlib
import json
import math
import os
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cloze_api import metrics
from cloze_api.progress import Progress
from cloze_trainer.console import Reporter
from cloze_trainer.files import write_json

ENV_PROGRESS_FILE = "CLOZE_PROGRESS_FILE"
_WRITE_SECONDS = 0.5
_RATE_WINDOW_SECONDS = 30.0
# Between passes over the data.
_NO_PASS: dict[str, None] = dict.fromkeys(("doing", "documents", "done_bytes", "total_bytes"))
#: Figures of a step that are gauges.
_FIGURES = {
    "gradient_norm": metrics.TRAIN_GRADIENT_NORM,
    "padding_share": metrics.TRAIN_PADDING,
    "memory_bytes": metrics.TRAIN_MEMORY,
    "flops_share": metrics.TRAIN_UTILIZATION,
}
_EVALUATED_MOST = 12
#: Figures of an evaluation within the training that are gauges; others differ from task to task.
_EVALUATED = {
    "masked_loss": metrics.TRAIN_MASKED_LOSS,
    "masked_accuracy": metrics.TRAIN_MASKED_ACCURACY,
    "perplexity": metrics.TRAIN_PERPLEXITY,
}


class _Durations:
    """How many checkpoints took how long. counts: by the metric's buckets. total: seconds of all."""

    def __init__(self) -> None:
        self._bounds = metrics.TRAIN_CHECKPOINT_DURATION.buckets
        self.counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.total += seconds


class ProgressFile:
    """Rank 0's figures. `path` is None on the other ranks, where nothing is written."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._reporter = Reporter()
        self._progress = Progress(stage="data")
        self._tokens = self._repeated = 0
        self._leg, self._legs, self._leg_steps = 0, 1, 0
        self._written = -_WRITE_SECONDS
        self._marks: deque[tuple[float, int, int]] = deque()
        self._checkpoints = _Durations()
        self._blocked_seconds, self._missed = 0.0, 0
        self._rollbacks, self._skipped, self._left_out = 0, 0, 0
        self._figures: dict[str, float] = {}
        self._evaluated: dict[str, float] = {}

    def stage(self, stage: str) -> None:
        """Say what begins."""
        self._progress = self._progress.model_copy(update={"stage": stage, "eta_seconds": None, **_NO_PASS})
        self._write(force=True)

    def advance(
        self, doing: str, *, documents: int | None = None, done_bytes: int | None = None, total_bytes: int | None = None
    ) -> None:
        """As in `passes.Listener`."""
        told = {"doing": doing, "documents": documents, "done_bytes": done_bytes, "total_bytes": total_bytes}
        self._progress = self._progress.model_copy(update=told)
        self._write(force=False)

    def leg(self, number: int, of: int) -> None:
        """Say which of several trainings of as many steps each begins, counted from 0: steps go on over all of them."""
        self._leg, self._legs = number, of
        self._marks.clear()

    def step(self, step: int, total_steps: int, *, loss: float | None, tokens: int) -> None:
        """Say what a step reached. tokens: real tokens since the training began, over all ranks.

        Both are smaller than before where the training went back; the metric counts what was trained on again.
        """
        now = self._clock()
        self._leg_steps = total_steps
        step, total_steps = step + self._leg * total_steps, total_steps * self._legs
        if tokens < self._tokens - self._repeated:
            self._repeated = self._tokens - tokens
            self._marks.clear()
        self._tokens = tokens + self._repeated
        self._marks.append((now, step, self._tokens))
        while now - self._marks[0][0] > _RATE_WINDOW_SECONDS and len(self._marks) > 2:
            self._marks.popleft()
        first_time, first_step, first_tokens = self._marks[0]
        rate = eta = None
        if step > first_step and now > first_time:
            rate = (self._tokens - first_tokens) / (now - first_time)
            eta = round((total_steps - step) * (now - first_time) / (step - first_step))
        self._progress = self._progress.model_copy(
            update={
                **_NO_PASS,
                "stage": "training",
                "step": step,
                "total_steps": total_steps,
                "loss": loss,
                "tokens_per_second": rate,
                "eta_seconds": eta,
                "figures": {**self._figures, **self._evaluated},
            }
        )
        self._write(force=step == total_steps)

    def checkpoint(self, step: int, seconds: float | None = None) -> None:
        """Say that a step's checkpoint is durable."""
        self._progress = self._progress.model_copy(update={"checkpoint_step": step + self._leg * self._leg_steps})
        if seconds is not None:
            self._checkpoints.add(seconds)
        self._write(force=True)

    def saving(self, *, blocked_seconds: float, missed: int) -> None:
        """Say for how long the training has waited for its checkpoints, and how many were left out."""
        self._blocked_seconds, self._missed = blocked_seconds, missed

    def trouble(self, *, rollbacks: int, skipped: int, left_out: int) -> None:
        """Say how often the training went back to a checkpoint, how many batches it has passed over, and how many
        updates it has left out.
        """
        self._rollbacks, self._skipped, self._left_out = rollbacks, skipped, left_out

    def figures(self, values: Mapping[str, float]) -> None:
        """Tell figures of the last step, by the names that `_FIGURES` has."""
        self._figures = dict(values)

    def evaluated(self, values: Mapping[str, float]) -> None:
        """Tell figures of an evaluation within the training, the main ones first, which are told on with each step."""
        finite = ((name, value) for name, value in values.items() if math.isfinite(value))
        self._evaluated = dict(islice(finite, _EVALUATED_MOST))

    def over(self, step: int) -> None:
        """Say that the training ends with this step, which may be earlier than was expected."""
        step += self._leg * self._leg_steps
        if self._leg + 1 == self._legs:
            self._progress = self._progress.model_copy(update={"total_steps": step, "eta_seconds": 0})
            self._write(force=True)

    @property
    def tokens_per_second(self) -> float | None:
        """Rate over the last half minute."""
        return self._progress.tokens_per_second

    def _write(self, *, force: bool) -> None:
        now = self._clock()
        if self._path is None or (not force and now - self._written < _WRITE_SECONDS):
            return
        self._written = now
        self._reporter.show(self._progress)
        document = {
            "progress": self._progress.model_dump(mode="json", by_alias=True),
            "tokens": self._tokens,
            "checkpoint_seconds": self._checkpoints.total,
            "checkpoint_counts": self._checkpoints.counts,
            "checkpoint_blocked_seconds": self._blocked_seconds,
            "missed_checkpoints": self._missed,
            "rollbacks": self._rollbacks,
            "skipped": self._skipped,
            "left_out": self._left_out,
            "figures": {**self._figures, **self._evaluated},
        }
        # A file system that is full must not end the training for the sake of its progress.
        with contextlib.suppress(OSError):
            write_json(self._path, document, durable=False)


def own_file(rank: int) -> ProgressFile:
    """The progress file that the launcher named, on rank 0; elsewhere one that writes nothing."""
    named = os.environ.get(ENV_PROGRESS_FILE)
    return ProgressFile(Path(named) if named and rank == 0 else None)


class _Figures(Collector):
    """Rank 0's figures as Prometheus metrics; none on the other pods."""

    def __init__(self, path: Path, run: tuple[str, str]) -> None:
        self._path, self._run = path, run

    def collect(self) -> Iterator[Metric]:
        document = _read(self._path)
        if document is None:
            return
        progress = Progress.model_validate(document["progress"])
        stage = GaugeMetricFamily(metrics.TRAIN_STAGE.name, metrics.TRAIN_STAGE.help, labels=metrics.TRAIN_STAGE.labels)
        stage.add_metric([*self._run, progress.stage], 1)
        yield stage
        gauges = (
            (metrics.TRAIN_STEP, progress.step),
            (metrics.TRAIN_LOSS, progress.loss),
            (metrics.TRAIN_TOKENS_RATE, progress.tokens_per_second),
            *((metric, document["figures"].get(name)) for name, metric in (_FIGURES | _EVALUATED).items()),
        )
        for metric, value in gauges:
            if value is not None:
                gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
                gauge.add_metric(self._run, value)
                yield gauge
        counters = (
            (metrics.TRAIN_TOKENS, document["tokens"]),
            (metrics.TRAIN_CHECKPOINT_BLOCKED, document["checkpoint_blocked_seconds"]),
            (metrics.TRAIN_MISSED_CHECKPOINTS, document["missed_checkpoints"]),
            (metrics.TRAIN_ROLLBACKS, document["rollbacks"]),
            (metrics.TRAIN_SKIPPED_BATCHES, document["skipped"]),
            (metrics.TRAIN_LEFT_OUT_UPDATES, document["left_out"]),
            (metrics.TRAIN_DATA_WAIT, document["figures"].get("data_wait_seconds", 0.0)),
        )
        for metric, value in counters:
            counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
            counter.add_metric(self._run, value)
            yield counter
        duration = metrics.TRAIN_CHECKPOINT_DURATION
        bounds = [*(str(float(bound)) for bound in duration.buckets), "+Inf"]
        reached = accumulate(map(float, document["checkpoint_counts"]))
        histogram = HistogramMetricFamily(duration.name, duration.help, labels=duration.labels)
        histogram.add_metric(self._run, list(zip(bounds, reached, strict=True)), document["checkpoint_seconds"])
        yield histogram


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def serve(port: int, path: Path, run: tuple[str, str]) -> ThreadingHTTPServer:
    """Serve `/progress`, `/metrics` and `/healthz` on all interfaces, in threads of their own.

    path: where rank 0 leaves its figures when it runs in this pod. run: kind and name, the metrics' labels.
    """
    registry = CollectorRegistry()
    registry.register(_Figures(path, run))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def do_GET(self) -> None:
            if self.path == "/healthz":
                self._reply(HTTPStatus.OK, "text/plain", b"ok\n")
            elif self.path == "/metrics":
                self._reply(HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", generate_latest(registry))
            elif self.path == "/progress" and (document := _read(path)) is not None:
                self._reply(HTTPStatus.OK, "application/json", json.dumps(document["progress"]).encode())
            else:
                self._reply(HTTPStatus.NOT_FOUND, "text/plain", b"rank 0 is not in this pod\n")

        def _reply(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
            """Requests are not logged."""

    server = ThreadingHTTPServer(("", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="progress", daemon=True).start()
    return server
