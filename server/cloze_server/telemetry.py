"""The server's metrics: the contract's declarations turned into Prometheus objects, with cached label children."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from cloze_api import metrics
from cloze_api.metrics import Metric
from cloze_api.task import Task
from cloze_server.paths import TASK_PATHS
from cloze_server.problems import TABLE

STAGES = ("tokenize", "queue", "infer", "post")
_TOKEN_KINDS = ("real", "padding")
# Series of errors exist from the start: a rate over one that appears with its first error doesn't see that error.
_STATUSES = sorted({200, 499, *(entry.status for entry in TABLE.values())})


def instrument(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram | Info:
    """The Prometheus object of one declared metric."""
    match metric.kind:
        case "counter":
            return Counter(metric.name, metric.help, metric.labels, registry=registry)
        case "gauge":
            return Gauge(metric.name, metric.help, metric.labels, registry=registry)
        case "histogram":
            return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)
        case "info":
            # An Info's labels are its value, set when the model is known.
            return Info(metric.name, metric.help, registry=registry)


def length_class(tokens: int | None) -> str:
    """The class of a request by the tokens of its longest input; None: it was not tokenized."""
    if tokens is None:
        return metrics.LENGTH_NONE
    return next((str(bound) for bound in metrics.LENGTHS if tokens <= bound), metrics.LENGTH_MORE)


class Telemetry:
    """Counts what one process does, in a registry of its own.

    Looking a label child up costs more than counting, so children are kept. `bind` names the model; until then
    requests are counted under the name that was asked for.
    """

    def __init__(self, model: str = "", version: str = "", *, deployment: str = "", revision: str = "") -> None:
        """`deployment` and `revision` are what this replica belongs to; empty outside a cluster."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        # Any: the four kinds share no interface but `labels`.
        make = self._make
        self._requests: Any = make(metrics.REQUESTS)
        self._request_duration: Any = make(metrics.REQUEST_DURATION)
        self._stage_duration: Any = make(metrics.STAGE_DURATION)
        self._batch_tokens: Any = make(metrics.BATCH_TOKENS)
        self._tokens: Any = make(metrics.TOKENS)
        self._queue_tokens: Any = make(metrics.QUEUE_TOKENS)
        self._in_flight: Any = make(metrics.IN_FLIGHT)
        self._truncated: Any = make(metrics.TRUNCATED)
        self._unknown: Any = make(metrics.UNKNOWN_TOKENS)
        self._predictions: Any = make(metrics.PREDICTIONS)
        self._confidence: Any = make(metrics.PREDICTION_CONFIDENCE)
        self._info: Any = make(metrics.MODEL_INFO)
        self._membership = {"deployment": deployment, "revision": revision}
        self._active = 0
        self._muted = False
        self.bind(model, version)

    def _make(self, metric: Metric) -> Any:
        return instrument(metric, self.registry)

    def bind(
        self, model: str, version: str, *, digest: str = "", task: Task | None = None, answers: Collection[str] = ()
    ) -> None:
        """Count under this model from now on; with a digest and a task, the model is reported as loaded.

        answers: the labels that its predictions may have.
        """
        labels = self._labels = (model, version)
        # Requests keep what was counted under the former name; the rest has counted nothing yet.
        for untouched in (
            *(self._stage_duration, self._batch_tokens, self._tokens, self._queue_tokens),
            *(self._truncated, self._unknown, self._in_flight, self._predictions, self._confidence),
        ):
            untouched.clear()
        self._by_status: dict[tuple[str, int], Any] = {}
        self._by_class: dict[tuple[str, str, str], Any] = {}
        self._stages = {stage: self._stage_duration.labels(*labels, stage) for stage in STAGES}
        self._kinds = {kind: self._tokens.labels(*labels, kind) for kind in _TOKEN_KINDS}
        self._batch = self._batch_tokens.labels(*labels)
        self._waiting = self._queue_tokens.labels(*labels)
        self._cut = self._truncated.labels(*labels)
        self._unread = self._unknown.labels(*labels)
        self._certainty = self._confidence.labels(*labels)
        named = list(answers)[: metrics.PREDICTION_LABELS_MAX]
        if len(answers) > len(named):
            named.append(metrics.PREDICTION_LABEL_OTHER)
        self._by_label = {label: self._predictions.labels(*labels, label) for label in named}
        # A request that began before the name was known must leave the gauge that it entered.
        self._flight = self._in_flight.labels(*labels)
        self._flight.set(self._active)
        if task is not None:
            self._info.info({"model": model, "version": version, "digest": digest, "task": task, **self._membership})
            for status in _STATUSES:
                self._count(TASK_PATHS[task], status)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Count nothing of what the model does meanwhile: warming up is nobody's request."""
        self._muted = True
        try:
            yield
        finally:
            self._muted = False

    def request_started(self) -> None:
        """One more request in flight."""
        self._active += 1
        self._flight.set(self._active)

    def request_finished(self, route: str, status: int, seconds: float, longest: int | None = None) -> None:
        """One request less in flight, answered with `status` (499: the client left first).

        longest: tokens of its longest input; None when it was not tokenized.
        """
        self._active -= 1
        self._flight.set(self._active)
        self._count(route, status).inc()
        key = (route, f"{status // 100}xx", length_class(longest))
        histogram = self._by_class.get(key)
        if histogram is None:
            histogram = self._by_class[key] = self._request_duration.labels(*self._labels, *key)
        histogram.observe(seconds)

    def _count(self, route: str, status: int) -> Any:
        """The counter of a route's replies with a status."""
        counter = self._by_status.get((route, status))
        if counter is None:
            counter = self._by_status[route, status] = self._requests.labels(*self._labels, route, str(status))
        return counter

    def stage(self, name: str, seconds: float) -> None:
        """Time that one request spent in a stage."""
        if not self._muted:
            self._stages[name].observe(seconds)

    def batch(self, lengths: Iterable[int], padded: int) -> None:
        """One batch went to the model: real tokens by sequence, and tokens with padding."""
        if self._muted:
            return
        real = sum(lengths)
        self._batch.observe(padded)
        self._kinds["real"].inc(real)
        self._kinds["padding"].inc(padded - real)

    def answered(self, *, unknown: int, truncated: int) -> None:
        """One request was answered: its tokens that the vocabulary doesn't have, and its inputs that were cut."""
        if not self._muted:
            self._unread.inc(unknown)
            self._cut.inc(truncated)

    def predicted(self, labels: Mapping[str, int], confidences: Iterable[float]) -> None:
        """One request's predictions: how many of each label, and the probability of each."""
        if self._muted:
            return
        for label, count in labels.items():
            (self._by_label.get(label) or self._by_label[metrics.PREDICTION_LABEL_OTHER]).inc(count)
        for confidence in confidences:
            self._certainty.observe(confidence)

    def queue_tokens(self, tokens: int) -> None:
        """Tokens that wait now."""
        self._waiting.set(tokens)
