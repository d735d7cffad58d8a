"""Traces as a collector gets them, and what leads from a metric to a request."""

# What is awaited lives in another thread, so there is no event to wait for.

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from cloze_api.task import Task
from cloze_server import tracing
from cloze_server.dummy import dummy_model
from cloze_server.exits import FatalError
from cloze_server.settings import read

pytestmark = pytest.mark.anyio

_TRACE, _PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
_OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}


class Collector:
    """An OTLP receiver over HTTP. status: of its replies."""

    def __init__(self) -> None:
        self.status = 200
        self.requests = 0
        self.spans: list[Any] = []
        self.resources: list[Any] = []
        self.raw = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            """Takes what is posted to /v1/traces."""

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.requests += 1
                if collector.status == 200:
                    assert self.path == "/v1/traces"
                    assert self.headers["content-type"] == "application/x-protobuf"
                    collector.raw += body
                    for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                        collector.resources.append(each.resource)
                        collector.spans += [span for scope in each.scope_spans for span in scope.spans]
                self.send_response(collector.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A receiver that ends with the test."""
    made = Collector()
    yield made
    made.close()


def classifier() -> Any:
    """A model whose batches take a moment."""
    return dummy_model(Task.SEQUENCE_CLASSIFICATION, 0.01)


def attributes(span: Any) -> dict[str, Any]:
    """A span's attributes."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


async def test_a_request_is_a_span_with_its_stages(serving: Any, collector: Collector) -> None:
    """In their order, within the request's time, under the caller's span; nothing of the text is in them."""
    headers = {"traceparent": f"00-{_TRACE}-{_PARENT}-01"}
    settings = {"otlp_endpoint": collector.url, "trace_sample_ratio": 1e-9, "deployment": "mails", "revision": "r1"}
    async with serving(classifier, **settings) as client:
        await client.post("/v1/classify", json={"inputs": "pineapple"}, headers=headers)
    server = next(span for span in collector.spans if span.name == "POST /v1/classify")
    children = [span for span in collector.spans if span is not server]
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (_TRACE, _PARENT)
    assert server.kind == 2
    assert [span.name for span in children] == ["admission", "tokenize", "queue", "infer", "post"]
    assert {(span.trace_id, span.parent_span_id) for span in children} == {(server.trace_id, server.span_id)}
    begins = [span.start_time_unix_nano for span in children]
    assert begins == sorted(begins)
    assert begins[0] == server.start_time_unix_nano
    assert all(span.end_time_unix_nano <= server.end_time_unix_nano for span in children)
    durations = {span.name: span.end_time_unix_nano - span.start_time_unix_nano for span in children}
    assert durations["infer"] >= 10e6
    assert attributes(server) == {
        "http.request.method": "POST",
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "cloze.model": "dummy",
        "cloze.version": "local",
        "cloze.digest": "sha256:" + "0" * 64,
        "cloze.longest_input_tokens": 11,
    }
    assert b"pineapple" not in collector.raw
    resource = {each.key: each.value.string_value for each in collector.resources[0].attributes}
    expected = {"service.name": "cloze-server", "cloze.deployment": "mails", "cloze.revision": "r1"}
    assert expected.items() <= resource.items()


async def test_a_failed_request_is_traced_as_far_as_it_came(serving: Any, collector: Collector) -> None:
    """A refused one has its admission alone; only the server's own failures are errors."""
    settings = {"otlp_endpoint": collector.url, "trace_sample_ratio": 1.0, "timeout_seconds": 0.04}
    async with serving(lambda: dummy_model(Task.SEQUENCE_CLASSIFICATION, 0.1), **settings) as client:
        await client.post("/v1/classify", json={})
        await client.post("/v1/classify", json={"inputs": "x"})
        await client.request("BREW", "/coffee")
    by_status = {attributes(span)["http.response.status_code"]: span for span in collector.spans if span.kind == 2}
    stages = {
        status: [each.name for each in collector.spans if each.parent_span_id == span.span_id]
        for status, span in by_status.items()
    }
    assert stages[422] == ["admission"]
    assert stages[504] == ["admission", "tokenize"]
    assert (by_status[422].status.code, by_status[504].status.code) == (0, 2)
    assert by_status[404].name == "_OTHER unmatched"


@pytest.mark.parametrize(
    ("traceparent", "draw", "traced"),
    [
        (None, 0.1, True),
        (None, 0.5, False),
        (f"00-{_TRACE}-{_PARENT}-01", 0.9, True),
        (f"00-{_TRACE}-{_PARENT}-00", 0.1, False),
        ("nonsense", 0.1, True),
        ("nonsense", 0.9, False),
        (f"00-{'0' * 32}-{_PARENT}-01", 0.9, False),
    ],
)
def test_the_caller_decides_and_else_the_ratio(
    collector: Collector, traceparent: str | None, draw: float, traced: bool
) -> None:
    """At the head: by a header that is valid, or by chance."""
    decider = tracing.Tracing(collector.url, 0.5, resource={}, count=lambda result, spans: None, draw=lambda: draw)
    coded = None if traceparent is None else traceparent.encode()
    trace = decider.begin("GET", "/v1/models", coded, 0.0)
    assert (trace is not None) == traced
    if trace is not None and draw > 0.5:
        assert trace.id == _TRACE
    decider.close()


async def test_a_collector_that_fails_harms_no_request_and_is_told_of_once(
    serving: Any, collector: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans are dropped and counted; the log has one line for it, and one when it is over."""
    monkeypatch.setattr(tracing, "_EVERY_MILLISECONDS", 10)
    caplog.set_level(logging.INFO)
    collector.status = 400
    settings = {"otlp_endpoint": collector.url, "trace_sample_ratio": 1.0}
    async with serving(classifier, **settings) as client:

        async def ask_until(reached: Callable[[], bool]) -> None:
            async with asyncio.timeout(20):
                while not reached():
                    assert (await client.post("/v1/classify", json={"inputs": "x"})).status_code == 200

        await ask_until(lambda: collector.requests >= 3)
        collector.status = 200
        await ask_until(lambda: len(collector.spans) > 0)
        text = (await client.get("/metrics")).text
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("cloze_trace_spans_total"))
    assert float(counts['cloze_trace_spans_total{result="dropped"}']) >= 3
    told = [(record.levelname, record.message) for record in caplog.records if record.levelno > logging.DEBUG]
    ours = [each for each in told if "traces" in each[1]]
    assert ours == [
        ("WARNING", "traces can't be sent: those that can't are dropped"),
        ("INFO", "traces are sent again"),
    ]
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def test_memory_is_bounded_while_nobody_takes_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Further requests aren't traced, and are counted."""
    monkeypatch.setattr(tracing, "WAITING_MAX", 6)
    monkeypatch.setattr(tracing, "_FAREWELL_SECONDS", 0.0)
    counted: list[tuple[str, int]] = []
    stuck = tracing.Tracing(
        "http://127.0.0.1:1", 1.0, resource={}, count=lambda result, spans: counted.append((result, spans))
    )
    for _ in range(3):
        trace = stuck.begin("GET", "/v1/models", None, 0.0)
        if trace is not None:
            trace.end(0.0, 1.0, 200, [("tokenize", 0.1, 0.1), ("infer", 0.2, 0.1)], {})
    assert stuck.begin("GET", "/v1/models", None, 0.0) is None
    assert ("dropped", 1) in counted
    stuck.close()


def test_a_ratio_without_a_collector_is_refused() -> None:
    """Nobody would get the traces."""
    with pytest.raises(FatalError, match="--otlp-endpoint"):
        read(["--model", "dummy:", "--trace-sample-ratio", "0.1"], {})
    assert read(["--model", "dummy:"], {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}).trace_sample_ratio == 0


@pytest.mark.parametrize("ratio", [0.0, 1.0])
async def test_exemplars_lead_from_a_duration_to_a_request(serving: Any, collector: Collector, ratio: float) -> None:
    """To its id, and to its trace where there is one; for a scraper that asks for OpenMetrics."""
    headers = {"x-request-id": "order-66", "traceparent": f"00-{_TRACE}-{_PARENT}-01"}
    async with serving(classifier, otlp_endpoint=collector.url, trace_sample_ratio=ratio) as client:
        await client.post("/v1/classify", json={"inputs": "x"}, headers=headers)
        plain = await client.get("/metrics")
        scraped = await client.get("/metrics", headers=_OPENMETRICS)
    assert "order-66" not in plain.text
    assert scraped.headers["content-type"].startswith("application/openmetrics-text")
    exemplars = [
        sample.exemplar.labels
        for family in text_string_to_metric_families(scraped.text)
        for sample in family.samples
        if sample.exemplar is not None
    ]
    assert exemplars == [{"request_id": "order-66", **({"trace_id": _TRACE} if ratio else {})}]


async def test_an_id_that_is_too_long_for_an_exemplar_harms_nothing(serving: Any, collector: Collector) -> None:
    """It is allowed to have 128 characters, which is all that an exemplar has room for."""
    async with serving(classifier, otlp_endpoint=collector.url, trace_sample_ratio=1.0) as client:
        await client.post("/v1/classify", json={"inputs": "x"}, headers={"x-request-id": "x" * 128})
        scraped = await client.get("/metrics", headers=_OPENMETRICS)
    assert "xxxx" not in scraped.text
    assert "trace_id" in scraped.text
    assert len(collector.spans) == 6
