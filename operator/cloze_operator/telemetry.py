"""Metrics, as declared in `cloze_api.metrics`, and JSON logs."""

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from cloze_api import metrics
from cloze_api.metrics import Metric


def _counter(metric: Metric) -> Counter:
    return Counter(metric.name, metric.help, metric.labels, registry=REGISTRY)


def _gauge(metric: Metric) -> Gauge:
    return Gauge(metric.name, metric.help, metric.labels, registry=REGISTRY)


RECONCILES = _counter(metrics.RECONCILES)
RECONCILE_DURATION = Histogram(
    metrics.RECONCILE_DURATION.name,
    metrics.RECONCILE_DURATION.help,
    metrics.RECONCILE_DURATION.labels,
    buckets=metrics.RECONCILE_DURATION.buckets,
    registry=REGISTRY,
)
QUEUE_DEPTH = _gauge(metrics.QUEUE_DEPTH)
LEADER = _gauge(metrics.LEADER)
RESOURCE_STATE = _gauge(metrics.RESOURCE_STATE)
JOB_FAILURES = _counter(metrics.JOB_FAILURES)
REGISTRY_ERRORS = _counter(metrics.REGISTRY_ERRORS)
PROMETHEUS_ERRORS = _counter(metrics.PROMETHEUS_ERRORS)
EVENT_ERRORS = _counter(metrics.EVENT_ERRORS)
ROLLOUTS = _counter(metrics.ROLLOUTS)

_ROLLOUT_GAUGES = {
    metric: _gauge(metric)
    for metric in (
        metrics.ROLLOUT_IN_PROGRESS,
        metrics.ROLLOUT_STEP,
        metrics.ROLLOUT_WEIGHT,
        metrics.ROLLOUT_CHECK,
        metrics.OBJECTIVE_AVAILABILITY,
        metrics.OBJECTIVE_LATENCY,
        metrics.OBJECTIVE_LATENCY_RATIO,
        metrics.VERSION_MISMATCH,
    )
}

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line; what a log call passes in `extra` becomes fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure_logs(level: str) -> None:
    """All logs of the process go to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("kopf", "httpx", "httpcore", "aiohttp.access"):
        # They tell of each event and each request; their warnings are worth reading.
        logging.getLogger(chatty).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    # It warns that it doesn't hear signals, which aren't for it.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)


class RolloutGauges:
    """The metrics of ModelDeployments: what isn't shown any more isn't exported any more."""

    def __init__(self) -> None:
        self._shown: dict[tuple[str, str], set[tuple[Gauge, tuple[str, ...]]]] = {}

    def show(self, key: tuple[str, str], figures: Mapping[tuple[Metric, tuple[str, ...]], float]) -> None:
        """Show a ModelDeployment's values; none for one that is gone."""
        now = set()
        for (metric, labels), value in figures.items():
            gauge, own = _ROLLOUT_GAUGES[metric], (*key, *labels)
            gauge.labels(*own).set(value)
            now.add((gauge, own))
        before = self._shown.pop(key, set())
        for gauge, own in before - now:
            gauge.remove(*own)
        if now:
            self._shown[key] = now
        for result in metrics.ROLLOUT_RESULTS:
            if now and not before:
                # A rate over a series that appears with its first event doesn't see that event.
                ROLLOUTS.labels(*key, result)
            elif before and not now:
                ROLLOUTS.remove(*key, result)


class StateGauge:
    """`cloze_resource_state`: exactly one state of each resource is 1, and a resource that is gone has none."""

    def __init__(self) -> None:
        self._shown: dict[tuple[str, str, str], str] = {}

    def show(self, key: tuple[str, str, str], state: str | None) -> None:
        """Show a resource's state; None for one that is gone."""
        old = self._shown.get(key)
        if old is not None and old != state:
            RESOURCE_STATE.remove(*key, old)
            del self._shown[key]
        if state is not None:
            RESOURCE_STATE.labels(*key, state).set(1)
            self._shown[key] = state
