"""The server's metrics: the contract's declarations turned into Prometheus objects, with cached label children."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from cloze_api import metrics
from cloze_api.metrics import Metric
from cloze_api.task import Task
from cloze_server.paths import OIP_INFER, TASK_PATHS
from cloze_server.problems import TABLE
from cloze_server.segments import Segment, SegmentCounter, SegmentInstruments

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
            return Info(metric.name, metric.help, metric.labels, registry=registry)


def length_class(tokens: int | None) -> str:
    """The class of a request by the tokens of its longest input; None: it was not tokenized."""
    if tokens is None:
        return metrics.LENGTH_NONE
    return next((str(bound) for bound in metrics.LENGTHS if tokens <= bound), metrics.LENGTH_MORE)


class Instruments:
    """The metrics of one process, in a registry of its own; the models that it serves share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        # Any: the four kinds share no interface but `labels`.
        make = self._make
        self.requests: Any = make(metrics.REQUESTS)
        self.request_duration: Any = make(metrics.REQUEST_DURATION)
        self.stage_duration: Any = make(metrics.STAGE_DURATION)
        self.batch_tokens: Any = make(metrics.BATCH_TOKENS)
        self.batch_splits: Any = make(metrics.BATCH_SPLITS)
        self.tokens: Any = make(metrics.TOKENS)
        self.queue_tokens: Any = make(metrics.QUEUE_TOKENS)
        self.in_flight: Any = make(metrics.IN_FLIGHT)
        self.truncated: Any = make(metrics.TRUNCATED)
        self.unknown: Any = make(metrics.UNKNOWN_TOKENS)
        self.predictions: Any = make(metrics.PREDICTIONS)
        self.confidence: Any = make(metrics.PREDICTION_CONFIDENCE)
        self.abstained: Any = make(metrics.ABSTAINED)
        self.segments = SegmentInstruments(make)
        self.info: Any = make(metrics.MODEL_INFO)
        self.key_file_errors: Any = make(metrics.KEY_FILE_ERRORS)
        self.cached: Any = make(metrics.CACHE_REQUESTS)
        self.fallbacks: Any = make(metrics.FALLBACKS)
        self._cache_bytes: Any = make(metrics.CACHE_BYTES)
        self._cache_evictions: Any = make(metrics.CACHE_EVICTIONS)
        reloads: Any = make(metrics.RELOADS)
        self._reloads = {result: reloads.labels(result) for result in metrics.RELOAD_RESULTS}
        self.connections: Any = make(metrics.CONNECTIONS)
        ended: Any = make(metrics.CONNECTIONS_ENDED)
        self._ended = {reason: ended.labels(reason) for reason in metrics.CONNECTION_ENDS}
        feedback: Any = make(metrics.FEEDBACK)
        traced: Any = make(metrics.TRACE_SPANS)
        self._traced = {result: traced.labels(result) for result in metrics.TRACE_RESULTS}
        self._feedback = {result: feedback.labels(result) for result in metrics.FEEDBACK_RESULTS}

    def connection_ended(self, reason: str) -> None:
        """The server ended a connection, for one of `metrics.CONNECTION_ENDS`."""
        self._ended[reason].inc()

    def feedback(self, result: str, number: int) -> None:
        """What became of so much feedback: one of `metrics.FEEDBACK_RESULTS`."""
        self._feedback[result].inc(number)

    def traced(self, result: str, spans: int) -> None:
        """What became of so many spans: one of `metrics.TRACE_RESULTS`."""
        self._traced[result].inc(spans)

    def replies(self, size: int, evicted: int) -> None:
        """Bytes of the replies that are kept now, and how many more were let go."""
        self._cache_bytes.set(size)
        self._cache_evictions.inc(evicted)

    def reloaded(self, result: str) -> None:
        """What became of a changed artifact: one of `metrics.RELOAD_RESULTS`."""
        self._reloads[result].inc()

    def _make(self, metric: Metric) -> Any:
        return instrument(metric, self.registry)


class RequestCounter:
    """Counts requests under one model's name and version; both are empty for those that name none of several.

    Looking a label child up costs more than counting, so children are kept.
    """

    def __init__(self, instruments: Instruments, model: str = "", version: str = "") -> None:
        self._instruments = instruments
        self._active = 0
        self._count_as(model, version)

    def _count_as(self, model: str, version: str) -> None:
        self._labels = (model, version)
        self._by_status: dict[tuple[str, int], Any] = {}
        self._by_class: dict[tuple[str, str, str], Any] = {}
        self._segments = SegmentCounter(self._instruments.segments, model, version)
        # A request that began before the name was known must leave the gauge that it entered.
        self._flight = self._instruments.in_flight.labels(*self._labels)
        if self._active:
            self._flight.set(self._active)

    def request_started(self) -> None:
        """One more request in flight."""
        self._active += 1
        self._flight.set(self._active)

    def request_left(self) -> None:
        """One request less in flight: it was answered, or turned out to be another model's."""
        self._active -= 1
        self._flight.set(self._active)

    def request_finished(
        self,
        route: str,
        status: int,
        seconds: float,
        longest: int | None = None,
        *,
        exemplar: Mapping[str, str] | None = None,
        segments: Sequence[Segment] = (),
    ) -> None:
        """One request less in flight, answered with `status` (499: the client left first).

        longest: tokens of its longest input; None when it was not tokenized. exemplar: what leads to it from the
        metric, for a scraper that asks for OpenMetrics. segments: what it said of itself.
        """
        self.request_left()
        self._count(route, status).inc()
        key = (route, f"{status // 100}xx", length_class(longest))
        histogram = self._by_class.get(key)
        if histogram is None:
            histogram = self._by_class[key] = self._instruments.request_duration.labels(*self._labels, *key)
        histogram.observe(seconds, exemplar or None)
        self._segments.finished(segments, status, seconds)

    def _count(self, route: str, status: int) -> Any:
        """The counter of a route's replies with a status."""
        counter = self._by_status.get((route, status))
        if counter is None:
            counter = self._by_status[route, status] = self._instruments.requests.labels(
                *self._labels, route, str(status)
            )
        return counter


class Telemetry(RequestCounter):
    """Counts what one model does, and its requests.

    `bind` names the model; until then requests are counted under the name that was asked for.
    """

    def __init__(
        self,
        model: str = "",
        version: str = "",
        *,
        deployment: str = "",
        revision: str = "",
        instruments: Instruments | None = None,
    ) -> None:
        """`deployment` and `revision` are what this replica belongs to; empty outside a cluster."""
        super().__init__(instruments or Instruments(), model, version)
        self.registry = self._instruments.registry
        self._membership = {"deployment": deployment, "revision": revision}
        self._muted = False
        self.bind(model, version)

    def bind(
        self, model: str, version: str, *, digest: str = "", task: Task | None = None, answers: Collection[str] = ()
    ) -> None:
        """Count under this model from now on; with a digest and a task, the model is reported as loaded.

        answers: the labels that its predictions may have.
        """
        instruments = self._instruments
        # Requests keep what was counted under the former name; the rest has counted nothing yet.
        former = dict(zip(("model", "version"), self._labels, strict=True))
        # A second object for the same model finds them in use.
        renamed = self._labels != (model, version)
        for untouched in (
            *(instruments.stage_duration, instruments.batch_tokens, instruments.tokens, instruments.queue_tokens),
            *(instruments.truncated, instruments.unknown, instruments.in_flight),
            *(instruments.predictions, instruments.confidence, instruments.abstained, instruments.cached),
            *(instruments.fallbacks, instruments.batch_splits),
        ):
            if renamed:
                untouched.remove_by_labels(former)
        self._count_as(model, version)
        labels = self._labels
        self._stages = {stage: instruments.stage_duration.labels(*labels, stage) for stage in STAGES}
        self._kinds = {kind: instruments.tokens.labels(*labels, kind) for kind in _TOKEN_KINDS}
        self._batch = instruments.batch_tokens.labels(*labels)
        self._splits = instruments.batch_splits.labels(*labels)
        self._waiting = instruments.queue_tokens.labels(*labels)
        self._cut = instruments.truncated.labels(*labels)
        self._unread = instruments.unknown.labels(*labels)
        self._certainty = instruments.confidence.labels(*labels)
        self._withheld = instruments.abstained.labels(*labels)
        self._fell_back = {result: instruments.fallbacks.labels(*labels, result) for result in metrics.FALLBACK_RESULTS}
        self._cached = {result: instruments.cached.labels(*labels, result) for result in metrics.CACHE_RESULTS}
        named = list(answers)[: metrics.PREDICTION_LABELS_MAX]
        if len(answers) > len(named):
            named.append(metrics.PREDICTION_LABEL_OTHER)
        self._by_label = {label: instruments.predictions.labels(*labels, label) for label in named}
        if task is not None:
            instruments.info.labels(**self._membership, model=model, version=version, digest=digest, task=task).info({})
            for route in (TASK_PATHS[task], OIP_INFER):
                for status in _STATUSES:
                    self._count(route, status)

    def replaced(self, digest: str, task: Task) -> None:
        """The artifact with this digest is not the loaded one any more."""
        labels = {**self._membership, "model": self._labels[0], "version": self._labels[1]}
        self._instruments.info.remove_by_labels({**labels, "digest": digest, "task": task})

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Count nothing of what the model does meanwhile: warming up is nobody's request."""
        self._muted = True
        try:
            yield
        finally:
            self._muted = False

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

    def split(self) -> None:
        """A batch was divided in two. Counted while warming up too: it says that memory is too small."""
        self._splits.inc()

    def answered(self, *, unknown: int, truncated: int) -> None:
        """One request was answered: its tokens that the vocabulary doesn't have, and its inputs that were cut."""
        if not self._muted:
            self._unread.inc(unknown)
            self._cut.inc(truncated)

    def predicted(
        self,
        labels: Mapping[str, int],
        confidences: Sequence[float],
        abstained: int = 0,
        segments: Sequence[Segment] = (),
    ) -> None:
        """One request's predictions: how many of each label, the probability of each, how many were abstained.

        segments: what the request said of itself.
        """
        if self._muted:
            return
        self._withheld.inc(abstained)
        named: dict[str, int] = {}
        for label, count in labels.items():
            name = label if label in self._by_label else metrics.PREDICTION_LABEL_OTHER
            named[name] = named.get(name, 0) + count
            self._by_label[name].inc(count)
        self._segments.predicted(segments, named, confidences, abstained)
        for confidence in confidences:
            self._certainty.observe(confidence)

    def fell_back(self, results: Mapping[str, int]) -> None:
        """Inputs that the fallback was asked for: how many of each of `metrics.FALLBACK_RESULTS`."""
        for result, count in results.items():
            self._fell_back[result].inc(count)

    def cached(self, result: str) -> None:
        """How the cache of replies answered: one of `metrics.CACHE_RESULTS`."""
        self._cached[result].inc()

    def queue_tokens(self, tokens: int) -> None:
        """Tokens that wait now."""
        self._waiting.set(tokens)
