"""The chart's rules and dashboards on a real Prometheus, and who is told by a real Alertmanager."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests" / "chart"), str(ROOT / "hack")]

from exporter import NAMESPACE, World, exported  # noqa: E402 - tests and hack/ are no packages
from monitoring import answers  # noqa: E402
from programs import program  # noqa: E402

# They need no API server, but the packages that a cluster installs.
pytestmark = pytest.mark.cluster

RULES = ROOT / "charts" / "cloze" / "files" / "rules"
DASHBOARDS = ROOT / "charts" / "cloze" / "files" / "dashboards"

Wait = Callable[..., Any]
Alert = dict[str, Any]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read(url: str) -> Any:
    """JSON from this machine, past any proxy; None while nobody answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as reply:
            body = reply.read()
    except (urllib.error.URLError, ConnectionError):
        return None
    return json.loads(body) if body.startswith((b"{", b"[")) else body


@contextmanager
def running(folder: Path, *command: str) -> Iterator[None]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


class Receiver:
    """What the on-call person's pager and the ticket system get."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Alert]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.told += [(self.path.strip("/"), alert) for alert in body["alerts"]]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
                """Notifications aren't worth a line."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, name: str) -> list[tuple[str, str, str]]:
        """Who was told of which alert on a ModelDeployment: receiver, alert's name, long window."""
        return [
            (receiver, alert["labels"]["alertname"], alert["labels"].get("long", ""))
            for receiver, alert in self.told
            if alert["labels"].get("name") == name and alert["status"] == "firing"
        ]


def documented_alertmanager(receiver: str) -> dict[str, Any]:
    """The configuration that the documentation shows, with its receivers here and without its patience."""
    text = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(route:.+?)```", text, re.DOTALL)
    configuration: dict[str, Any] = yaml.safe_load(block)
    configuration["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    for named in configuration["receivers"]:
        for hook in named.get("webhook_configs", ()):
            hook["url"] = f"{receiver}/{named['name']}"
    return configuration


@dataclass(frozen=True, slots=True)
class Monitored:
    """A world under the eyes of Prometheus and Alertmanager."""

    world: World
    prometheus: str
    alertmanager: str
    receiver: Receiver

    def alerts(self, **labels: str) -> list[Alert]:
        """What Alertmanager knows now."""
        found = read(f"{self.alertmanager}/api/v2/alerts") or []
        return [alert for alert in found if labels.items() <= alert["labels"].items()]


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory, eventually: Wait) -> Iterator[Monitored]:
    """All rules, evaluated every second: their own intervals are for longer lives."""
    folder = tmp_path_factory.mktemp("prometheus")
    prometheus, alertmanager = (f"127.0.0.1:{free_port()}" for _ in range(2))
    for path in RULES.glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for group in content["groups"]:
            group.pop("interval", None)
        (folder / path.name).write_text(yaml.safe_dump(content, sort_keys=False))
    with ExitStack() as stack:
        receiver = Receiver()
        stack.callback(receiver.close)
        (folder / "alertmanager.yml").write_text(yaml.safe_dump(documented_alertmanager(receiver.url)))
        world, address = stack.enter_context(exported(folder))
        configuration = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": sorted(str(folder / path.name) for path in RULES.glob("*.yaml")),
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
            "scrape_configs": world.scrape_configs(address),
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        for name, listen, flags in (
            (
                "prometheus-alertmanager",
                alertmanager,
                ("alertmanager", "--cluster.listen-address=", "--storage.path=."),
            ),
            ("prometheus", prometheus, ("prometheus", "--storage.tsdb.path=.", "--storage.tsdb.wal-compression")),
        ):
            place = folder / f"{flags[0]}-data"
            place.mkdir()
            command = (f"--config.file={folder / flags[0]}.yml", f"--web.listen-address={listen}", *flags[1:])
            stack.enter_context(running(place, program(name), *command))
        for address in (alertmanager, prometheus):
            eventually(lambda address=address: read(f"http://{address}/-/ready"), f"{address} to be ready")
        yield Monitored(world, f"http://{prometheus}", f"http://{alertmanager}", receiver)


def test_every_query_of_every_panel_returns_data(monitored: Monitored, eventually: Wait) -> None:
    """Failures, a rollout and a training are under way; only accelerators are missing here."""
    dashboards = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}
    asked = answers.questions(dashboards)
    assert len(asked) > 60
    left = asked

    def all_answered() -> bool:
        nonlocal left
        problems = answers.unanswered(monitored.prometheus, left, minutes=5, rate_interval="10s")
        left = [problem.question for problem in problems]
        return not left

    try:
        eventually(all_answered, "every query to return data", 90)
    except AssertionError:
        problems = answers.unanswered(monitored.prometheus, left, minutes=5, rate_interval="10s")
        raise AssertionError("\n".join(map(str, problems))) from None


def test_a_query_without_data_is_named(monitored: Monitored) -> None:
    """Else the test above would pass whatever the panels ask."""
    asked = [answers.Question("board, panel", query) for query in ("cloze_no_such_metric", "sum(")]
    problems = answers.unanswered(monitored.prometheus, asked, minutes=5, rate_interval="10s")
    assert [problem.reason.split(",")[0] for problem in problems] == ["no data", "refused"]


def test_a_rollout_keeps_its_slow_burn_quiet_and_lets_an_outage_through(monitored: Monitored, eventually: Wait) -> None:
    """The same slow burn is told of `ham`, which isn't being rolled out; of `spam` only the outage is."""
    receiver = monitored.receiver
    slow = {"alertname": "ClozeErrorBudgetBurn", "namespace": NAMESPACE, "name": "spam", "long": "6h"}

    def is_inhibited() -> bool:
        found = monitored.alerts(**slow)
        return bool(found) and all(alert["status"]["inhibitedBy"] for alert in found)

    eventually(is_inhibited, "the slow burn of spam to be inhibited by its rollout", 60)
    slow_page = ("pager", "ClozeErrorBudgetBurn", "6h")
    eventually(lambda: slow_page in receiver.of("ham"), "the slow burn of ham to be told", 60)
    assert receiver.of("spam") == []

    for server in monitored.world.servers:
        if server.deployment == "spam":
            server.error_ratio = 0.9
    outage = ("pager", "ClozeErrorBudgetBurn", "1h")
    eventually(lambda: outage in receiver.of("spam"), "the outage to be told", 60)
    assert set(receiver.of("spam")) == {outage}
    assert "ClozeRolloutInProgress" not in {alert["labels"]["alertname"] for _, alert in receiver.told}
