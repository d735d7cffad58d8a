"""A cluster as Prometheus sees it: servers, an operator, a training and a gateway that export what the real ones do.

The metrics are those of the rooms themselves; only what happens is made up. Time goes on with each scrape of a server.
"""

import math
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest

from cloze_api import metrics
from cloze_api.task import Task
from cloze_operator import telemetry as operator
from cloze_server.paths import TASK_PATHS
from cloze_server.telemetry import STAGES, Telemetry
from cloze_trainer.progress import ProgressFile, serve

NAMESPACE = "shop"
ROUTE = TASK_PATHS[Task.SEQUENCE_CLASSIFICATION]
#: Requests that each server answers between two scrapes.
_REQUESTS = 500


@dataclass
class Server:
    """A replica. error_ratio: share of its requests that fail."""

    deployment: str
    revision: str
    version: str
    error_ratio: float = 0.0
    telemetry: Telemetry = field(init=False)

    def __post_init__(self) -> None:
        self.telemetry = Telemetry(self.deployment, self.version, deployment=self.deployment, revision=self.revision)
        self.telemetry.bind(
            self.deployment, self.version, digest="sha256:0", task=Task.SEQUENCE_CLASSIFICATION, answers=("ham", "spam")
        )

    @property
    def pod(self) -> str:
        return f"{self.deployment}-{self.revision}-x"

    def go_on(self, chance: random.Random) -> dict[int, int]:
        """Answer some requests. Returns how many ended with which status."""
        told = {200: 0, 429: 0, 503: 0}
        failed = round(_REQUESTS * self.error_ratio)
        for number in range(_REQUESTS):
            status = 503 if number < failed else 429 if number == failed else 200
            tokens = chance.choice((12, 90, 300, 700))
            self.telemetry.request_started()
            self.telemetry.request_finished(ROUTE, status, chance.lognormvariate(-3, 0.5), tokens)
            told[status] += 1
        for stage in STAGES:
            self.telemetry.stage(stage, chance.lognormvariate(-5, 0.5))
        self.telemetry.batch([100, 120, 90], 360)
        self.telemetry.answered(unknown=2, truncated=1)
        self.telemetry.predicted({"ham": 3, "spam": 1}, [0.97, 0.8, 0.6, 0.9])
        self.telemetry.queue_tokens(chance.randrange(4000))
        return told


class World:
    """`spam` is being rolled out and burns its budget slowly; `ham` burns as slowly without a rollout."""

    #: Between the rates that page over an hour and over six, and burn the budget's month: 0.6 % and 1.44 % of 0.1 %.
    SLOW = 0.01

    def __init__(self, folder: Path) -> None:
        self._chance = random.Random(7)  # noqa: S311 - traffic
        self._lock = threading.Lock()
        self.servers = [
            Server("spam", "0123abcd", "1", self.SLOW),
            Server("spam", "4567cdef", "2", self.SLOW),
            Server("ham", "89abcdef", "5", self.SLOW),
        ]
        self._gateway = CollectorRegistry()
        labels = ("code", "method", "protocol", "router")
        self._passed = Counter("traefik_router_requests", "As Traefik has it.", labels, registry=self._gateway)
        self._rollouts, self._states = operator.RolloutGauges(), operator.StateGauge()
        self._operator()
        self._progress = ProgressFile(folder / "progress.json")
        self._step = 0
        self.training = serve(0, folder / "progress.json", ("PretrainJob", "encoder"))
        self._train()

    def _operator(self) -> None:
        operator.LEADER.set(1)
        operator.QUEUE_DEPTH.set(2)
        for name, going in (("spam", 1.0), ("ham", 0.0)):
            figures: dict[tuple[metrics.Metric, tuple[str, ...]], float] = {
                (metrics.ROLLOUT_IN_PROGRESS, ()): going,
                (metrics.ROLLOUT_STEP, ()): 2 * going,
                (metrics.ROLLOUT_WEIGHT, ()): 0.5 * going,
                (metrics.OBJECTIVE_AVAILABILITY, ()): 0.999,
                (metrics.OBJECTIVE_LATENCY, ("0.2",)): 0.2,
                (metrics.OBJECTIVE_LATENCY_RATIO, ()): 0.9,
                (metrics.VERSION_MISMATCH, ()): 0.0,
            }
            if going:
                figures[metrics.ROLLOUT_CHECK, ("errors", "waiting")] = 1.0
            self._rollouts.show((NAMESPACE, name), figures)
        for kind, name, state in (
            ("ModelDeployment", "spam", "Canary"),
            ("ModelDeployment", "ham", "Ready"),
            ("PretrainJob", "encoder", "Running"),
            ("FineTuneJob", "reader", "Failed"),
        ):
            self._states.show((kind, NAMESPACE, name), state)
        operator.JOB_FAILURES.labels("FineTuneJob", "DiskFull").inc()
        operator.ROLLOUTS.labels(NAMESPACE, "ham", "rolled_back").inc()

    def _train(self) -> None:
        self._step += 1
        loss = 9.0 / (1 + self._step / 50)
        self._progress.figures(
            {
                "gradient_norm": loss / 9,
                "padding_share": 0.03,
                "data_wait_seconds": self._step / 100,
                "memory_bytes": 2e9,
            }
        )
        self._progress.evaluated({"masked_loss": loss, "masked_accuracy": 1 / (1 + loss), "perplexity": math.exp(loss)})
        self._progress.trouble(rollbacks=0, skipped=0, left_out=self._step // 50)
        self._progress.step(self._step, 100_000, loss=loss, tokens=4096 * self._step)
        self._progress.checkpoint(self._step, self._chance.uniform(0.1, 2))

    def go_on(self, server: Server) -> None:
        """What happens between two scrapes."""
        with self._lock:
            router = f"httproute-{NAMESPACE}-{server.deployment}-gw-gateway-cloze-ep-http-0-2900b96f@kubernetesgateway"
            for status, count in server.go_on(self._chance).items():
                self._passed.labels(str(status), "POST", "http", router).inc(count)
            self._train()
            for kind, result in (("ModelDeployment", "success"), ("FineTuneJob", "error")):
                operator.RECONCILES.labels(kind, result).inc()
                operator.RECONCILE_DURATION.labels(kind).observe(self._chance.uniform(0.01, 0.2))
            operator.REGISTRY_ERRORS.labels("get-alias").inc()
            operator.PROMETHEUS_ERRORS.inc()
            operator.EVENT_ERRORS.inc()

    def exposition(self, path: str) -> bytes:
        """What one of the cluster's pods says."""
        if path == "/operator":
            return generate_latest(REGISTRY)
        if path == "/gateway":
            with self._lock:
                return generate_latest(self._gateway)
        (server,) = [each for each in self.servers if path == f"/{each.pod}"]
        self.go_on(server)
        return generate_latest(server.telemetry.registry)

    def scrape_configs(self, address: str) -> list[dict[str, Any]]:
        """Prometheus' part: labels as the chart's objects and the pods' annotations give them."""

        def target(path: str, namespace: str, pod: str, where: str = address) -> dict[str, Any]:
            return {"targets": [where], "labels": {"namespace": namespace, "pod": pod, "__metrics_path__": path}}

        servers = [target(f"/{each.pod}", NAMESPACE, each.pod) for each in self.servers]
        training = target("/metrics", NAMESPACE, "encoder-0", f"127.0.0.1:{self.training.server_address[1]}")
        return [
            {"job_name": "pods", "static_configs": [*servers, training]},
            {
                "job_name": "operator",
                "honor_labels": True,
                "static_configs": [target("/operator", "cloze-system", "cloze-operator-x")],
            },
            {"job_name": "gateway", "static_configs": [target("/gateway", "gateway", "traefik-x")]},
        ]

    def close(self) -> None:
        """Stop what listens, and take back what the process-wide registry was told."""
        self.training.shutdown()
        self.training.server_close()
        for name in ("spam", "ham"):
            self._rollouts.show((NAMESPACE, name), {})


@contextmanager
def exported(folder: Path) -> Iterator[tuple[World, str]]:
    """A world, and the address that exports it."""
    world = World(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = world.exposition(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
            """Scrapes aren't worth a line."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield world, f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        world.close()
