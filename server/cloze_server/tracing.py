"""Traces of requests, sent to a collector by OTLP over HTTP.

Whether a request is traced is decided when it arrives; a traced one's spans are made when it ends, of the times that
were noted for its headers anyway. Import this module only where traces are sent: the library takes a while to load.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cloze_server.logs import fields
from cloze_server.timing import Stage

_log = logging.getLogger(__name__)

WAITING_MAX = 4096
"""Spans that wait to be sent, above which requests are not traced."""

# What has not begun to wait yet: more than there are requests at a time.
_HEADROOM = 4 * WAITING_MAX
_EXPORT_SECONDS = 5
_BATCH_MAX = 512
_EVERY_MILLISECONDS = 2000
_FAREWELL_SECONDS = 3.0
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Trace:
    """One traced request. id: of the trace, 32 hexadecimal digits."""

    def __init__(self, tracer: Tracer, span: Span, epoch: int, made: Callable[[int], None]) -> None:
        """epoch: when the monotonic clock was 0, in nanoseconds since 1970. made: told how many spans there are."""
        self._tracer = tracer
        self._span = span
        self._made = made
        self._epoch = epoch
        self.id = f"{span.get_span_context().trace_id:032x}"

    def end(
        self, arrived: float, now: float, status: int, stages: Sequence[Stage], attributes: Mapping[str, str | int]
    ) -> None:
        """The request ended: hand its spans on. Admission is all before the first stage."""
        admission = ("admission", arrived, (stages[0][1] if stages else now) - arrived)
        within = set_span_in_context(self._span)
        for name, began, seconds in (admission, *stages):
            child = self._tracer.start_span(name, context=within, start_time=self._nanoseconds(began))
            child.end(self._nanoseconds(began + seconds))
        self._span.set_attributes({**attributes, "http.response.status_code": status})
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        self._made(len(stages) + 2)
        self._span.end(self._nanoseconds(now))

    def _nanoseconds(self, at: float) -> int:
        return self._epoch + round(at * 1e9)


class Tracing:
    """Decides which requests are traced, and sends what was traced from a thread of its own."""

    def __init__(
        self,
        endpoint: str,
        ratio: float,
        *,
        resource: Mapping[str, str],
        count: Callable[[str, int], None],
        draw: Callable[[], float] = random.random,
    ) -> None:
        """endpoint: the collector's address, without the path of traces. ratio: share of the requests that are traced,
        of those whose caller hasn't decided. resource: what is true of the whole process. count: told what became of
        how many spans, one of `metrics.TRACE_RESULTS`. draw: a number of [0, 1).
        """
        # It reports each failure, several times; what matters is said once, below.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        own = Resource.create({"service.name": "cloze-server", **resource})
        # The environment's OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces", timeout=_EXPORT_SECONDS)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                _Watched(exporter, self._settled),
                max_queue_size=WAITING_MAX + _HEADROOM,
                schedule_delay_millis=_EVERY_MILLISECONDS,
                max_export_batch_size=_BATCH_MAX,
            )
        )
        self._tracer = self._provider.get_tracer("cloze_server")
        self._ratio = ratio
        self._count = count
        self._draw = draw
        self._propagator = TraceContextTextMapPropagator()
        # Either is counted by one thread alone.
        self._spans_made, self._spans_settled = 0, 0
        self._failing = False

    def begin(self, method: str, route: str, traceparent: bytes | None, arrived: float) -> Trace | None:
        """The trace of a request that arrived; None for one that is not traced.

        traceparent: the caller's header (W3C Trace Context), which decides when there is one.
        """
        context = Context()
        if traceparent is not None:
            carrier = {"traceparent": traceparent.decode("latin-1")}
            context = self._propagator.extract(carrier, context)
        caller = get_current_span(context).get_span_context() if traceparent is not None else None
        if caller is not None and caller.is_valid:
            if not caller.trace_flags.sampled:
                return None
        elif self._draw() >= self._ratio:
            return None
        if self._spans_made - self._spans_settled > WAITING_MAX:
            self._count("dropped", 1)
            return None
        method = method if method in _METHODS else "_OTHER"
        attributes = {"http.request.method": method, "http.route": route}
        epoch = time.time_ns() - round(time.monotonic() * 1e9)
        span = self._tracer.start_span(
            f"{method} {route}",
            context=context,
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=epoch + round(arrived * 1e9),
        )
        return Trace(self._tracer, span, epoch, self._made)

    def close(self) -> None:
        """Send what waits, for a few seconds."""
        # A collector that doesn't answer would hold the process up for longer.
        farewell = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        farewell.start()
        farewell.join(_FAREWELL_SECONDS)

    def _made(self, spans: int) -> None:
        self._spans_made += spans

    def _settled(self, spans: int, sent: bool) -> None:
        """A batch was sent, or given up."""
        self._spans_settled += spans
        self._count("sent" if sent else "dropped", spans)
        if sent is self._failing:
            self._failing = not sent
            event = "traces are sent again" if sent else "traces can't be sent: those that can't are dropped"
            _log.log(logging.INFO if sent else logging.WARNING, event, extra=fields(spans=spans))


class _Watched(SpanExporter):
    """An exporter, and somebody who is told how each batch ended."""

    def __init__(self, exporter: SpanExporter, settled: Callable[[int, bool], None]) -> None:
        self._exporter = exporter
        self._settled = settled

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._settled(len(spans), result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Let connections go."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Whether nothing waits here."""
        return self._exporter.force_flush(timeout_millis)
