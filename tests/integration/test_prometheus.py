"""Evidence about a canary from a real Prometheus that scrapes the servers' own metrics."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from cloze_api.rollout import Analysis
from cloze_api.task import Task
from cloze_operator.analysis.checks import Evidence, Result, judge
from cloze_operator.analysis.counts import Counts, total
from cloze_operator.decide.answers import Unavailable
from cloze_operator.observe.evidence import EvidenceObserver, Question
from cloze_operator.prometheus import Prometheus
from cloze_server.paths import TASK_PATHS
from cloze_server.telemetry import Telemetry

# It needs no API server, but the packages that a cluster installs.
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="no Prometheus: Debian's package is called prometheus"),
]

ROUTE = TASK_PATHS[Task.SEQUENCE_CLASSIFICATION]
#: bcrypt's hash of `secret`.
HASH = "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW"

Wait = Callable[..., Any]


class Pods:
    """Pods that only have metrics. One that is None doesn't answer."""

    def __init__(self) -> None:
        self.running: dict[str, Telemetry | None] = {}
        self.port = 0

    def start(self, pod: str) -> None:
        """The pod's process starts, or starts again."""
        server = Telemetry("spam", "1")
        server.bind(
            "spam", "1", digest="sha256:" + "0" * 64, task=Task.SEQUENCE_CLASSIFICATION, answers=("ham", "spam")
        )
        self.running[pod] = server

    def serve(self, pod: str, requests: int, errors: int = 0, *, seconds: float = 0.02, spam: int = 0) -> None:
        """Requests come in, of which some fail, and of the others some are spam."""
        server = self.running[pod]
        assert server is not None
        for number in range(requests):
            failed = number < errors
            server.request_started()
            server.request_finished(ROUTE, 500 if failed else 200, seconds, 20)
            if not failed:
                server.batch([20], 20)
                server.answered(unknown=1, truncated=0)
                server.predicted({"spam" if number - errors < spam else "ham": 1}, [0.9])


@pytest.fixture
def pods() -> Iterator[Pods]:
    found = Pods()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server = found.running.get(self.path.strip("/"))
            self.send_response(200 if server else 503)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            if server:
                self.wfile.write(generate_latest(server.registry))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
            """Scrapes aren't worth a line."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found.port = server.server_address[1]
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


class Server:
    """A Prometheus of the test's own, which scrapes the pods every second, each of them twice by two jobs."""

    def __init__(self, folder: Path, pods: Pods, names: list[str]) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        jobs = [
            {
                "job_name": f"{copy}/{name}",
                "metrics_path": f"/{name}",
                "static_configs": [
                    {"targets": [f"127.0.0.1:{pods.port}"], "labels": {"namespace": "mail", "pod": name}}
                ],
            }
            for name in names
            for copy in ("pods", "services")
        ]
        (folder / "prometheus.yml").write_text(
            yaml.safe_dump({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs})
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        command = [
            *("prometheus", f"--config.file={self.folder}/prometheus.yml", f"--storage.tsdb.path={self.folder}/data"),
            *(f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn", *options),
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "2"})

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=30)
            self.process = None

    def ask(self, query: str, url: str = "") -> Any:
        """One query over the last ten seconds."""

        async def scenario() -> Any:
            prometheus = Prometheus(url or self.url, timeout_seconds=5)
            now = time.time()
            try:
                return await prometheus.range(query, now - 10, now, 1)
            finally:
                await prometheus.close()

        return asyncio.run(scenario())

    def knows(self, pod: str) -> bool:
        """Whether it has scraped the pod just now."""
        found = self.ask(f'min(up{{pod="{pod}"}})')
        return bool(not isinstance(found, Unavailable) and found and found[0].samples[-1][1] == 1)


@pytest.fixture
def prometheus(tmp_path: Path, pods: Pods) -> Iterator[Server]:
    server = Server(tmp_path, pods, ["spam-old-1", "spam-old-2", "spam-new-1"])
    yield server
    server.stop()


def question(began: datetime) -> Question:
    # A second is less than the contract allows, which asks for twice the usual scrape interval.
    analysis = Analysis(minimum_requests=50).model_copy(update={"interval_seconds": 1})
    return Question(
        namespace="mail",
        canary_pods="spam-new-[0-9]",
        stable_pods="spam-old-[0-9]",
        canary_service="spam-new",
        stable_service="spam-old",
        gateway=False,
        began=began,
        analysis=analysis,
    )


def observe(url: str, asked: Question) -> Evidence:
    """What an operator knows that has just been started."""

    async def scenario() -> Evidence:
        prometheus = Prometheus(url, timeout_seconds=5)
        try:
            return await EvidenceObserver(prometheus, None, lambda: datetime.now(UTC)).observe(asked)
        finally:
            await prometheus.close()

    return asyncio.run(scenario())


def canary_errors(evidence: Evidence) -> Counts:
    return Counts(0, 0) if isinstance(evidence.errors, Unavailable) else total([p.canary for p in evidence.errors])


def test_counts_are_exact_through_restarts_and_outages(prometheus: Server, pods: Pods, eventually: Wait) -> None:
    """Two jobs scrape the same pods, a canary is born, restarts and is lost for a while, Prometheus too."""
    for pod in ("spam-old-1", "spam-old-2"):
        pods.start(pod)
        pods.serve(pod, 1000, 10)
    prometheus.start()
    eventually(lambda: prometheus.knows("spam-old-1") and prometheus.knows("spam-old-2"), "the stable pods")

    began = datetime.now(UTC)
    asked = question(began)
    pods.start("spam-new-1")
    sent = failed = 0

    def arrived() -> bool:
        evidence = observe(prometheus.url, asked)
        return canary_errors(evidence) == Counts(failed, sent)

    for errors in (10, 12, 0, 11):
        pods.serve("spam-new-1", 50, errors, spam=5)
        pods.serve("spam-old-1", 200, 0, spam=20)
        sent, failed = sent + 50, failed + errors
        eventually(arrived, f"{failed} errors of {sent} requests")

    # A restart that loses nothing, since what was counted before it has been scraped.
    pods.start("spam-new-1")
    pods.serve("spam-new-1", 20, 3)
    sent, failed = sent + 20, failed + 3
    eventually(arrived, "what was counted after the restart")

    canary = pods.running["spam-new-1"]
    pods.running["spam-new-1"] = None
    eventually(lambda: not prometheus.knows("spam-new-1"), "a failed scrape")
    assert canary_errors(observe(prometheus.url, asked)) == Counts(failed, sent)
    pods.running["spam-new-1"] = canary
    pods.serve("spam-new-1", 5)
    sent += 5
    eventually(arrived, "what was counted while it wasn't scraped")

    prometheus.stop()
    away = observe(prometheus.url, asked)
    assert "doesn't answer" in away.unavailable
    assert {found.result for found in judge(asked.analysis, away, since=began)} == {Result.UNKNOWN}
    pods.serve("spam-new-1", 5, 5)
    sent, failed = sent + 5, failed + 5
    prometheus.start()
    eventually(arrived, "what was counted while Prometheus was away", 60)

    def complete() -> Evidence | None:
        seen = observe(prometheus.url, asked)
        pairs = () if isinstance(seen.errors, Unavailable) else seen.errors
        # The stable pods are scraped in their own turn.
        return seen if total([pair.stable for pair in pairs]) == Counts(0, 800) else None

    evidence = eventually(complete, "what the stable pods have counted")
    found = {one.name: one for one in judge(asked.analysis, evidence, since=began)}
    assert found["errors"].result == Result.FAIL, found["errors"].message
    assert found["errors"].requests == sent
    assert found["latency"].result == Result.PASS, found["latency"].message
    assert found["unknown-tokens"].result == Result.PASS, found["unknown-tokens"].message
    assert found["predictions"].result == Result.PASS, found["predictions"].message
    assert found["predictions"].requests == sent - failed


def test_slow_and_shifted_replies_are_found(prometheus: Server, pods: Pods, eventually: Wait) -> None:
    """Slower, and with other labels; and of queries of one's own each says what became of it."""
    for pod in ("spam-old-1", "spam-old-2"):
        pods.start(pod)
        pods.serve(pod, 500, spam=50)
    prometheus.start()
    eventually(lambda: prometheus.knows("spam-old-1") and prometheus.knows("spam-old-2"), "the stable pods")
    began = datetime.now(UTC)
    mine = 'count(cloze_requests_total{namespace="$namespace",pod=~"$canaryPods",status="200"})'
    queries = [
        {"name": "good", "query": mine, "minimum": 1},
        {"name": "bad", "query": mine, "maximum": 0, "failureLimit": 2},
        {"name": "many", "query": "up", "maximum": 1},
        {"name": "none", "query": "no_such_metric", "maximum": 1},
        {"name": "wrong", "query": "sum(", "maximum": 1},
    ]
    base = question(began)
    analysis = Analysis.model_validate({"queries": queries, "minimumRequests": 50})
    asked = Question(
        **{name: getattr(base, name) for name in base.__slots__ if name != "analysis"},
        analysis=analysis.model_copy(update={"interval_seconds": 1}),
    )
    pods.start("spam-new-1")
    for sent in (40, 80, 120, 160, 200):
        pods.serve("spam-new-1", 40, seconds=0.05, spam=36)
        pods.serve("spam-old-1", 200, spam=20)
        eventually(lambda sent=sent: canary_errors(observe(prometheus.url, asked)).trials == sent, f"{sent} requests")
    found = {one.name: one for one in judge(asked.analysis, observe(prometheus.url, asked), since=began)}
    results = {name: one.result for name, one in found.items()}
    assert results == {
        "errors": Result.PASS,
        "latency": Result.FAIL,
        "unknown-tokens": Result.PASS,
        "predictions": Result.FAIL,
        "bad": Result.FAIL,
        "good": Result.PASS,
        "many": Result.UNKNOWN,
        "none": Result.WAITING,
        "wrong": Result.UNKNOWN,
    }, found
    assert "parse error" in found["wrong"].message


def test_only_who_may_ask_is_answered(prometheus: Server, eventually: Wait) -> None:
    """Basic authentication, by the address; a refusal says so and not the password."""
    settings = prometheus.folder / "web.yml"
    settings.write_text(yaml.safe_dump({"basic_auth_users": {"operator": HASH}}))
    prometheus.start(f"--web.config.file={settings}")
    address = prometheus.url.replace("//", "//operator:{}@")
    eventually(
        lambda: not isinstance(prometheus.ask("vector(1)", address.format("secret")), Unavailable),
        "Prometheus to answer",
    )
    for wrong in (prometheus.url, address.format("guess")):
        refused = prometheus.ask("vector(1)", wrong)
        assert isinstance(refused, Unavailable)
        assert "HTTP 401" in refused.message
        assert "guess" not in refused.message
    (answer,) = prometheus.ask("vector(1)", address.format("secret"))
    assert {value for _, value in answer.samples} == {1.0}
