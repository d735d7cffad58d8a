"""The local cluster's add-ons: the gateway divides traffic, Prometheus finds pods, and usage is measured."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        bool(os.environ.get("CLOZE_KUBECONFIG")), reason="another cluster's add-ons are not ours to test"
    ),
]

Document = dict[str, Any]
ROOT = Path(__file__).parents[2]
BACKENDS = ("spam-a", "spam-b")
METRIC = "addons_test_answer"


def kubectl(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False)


def fetch(address: str, path: str, host: str = "") -> tuple[int, str]:
    """Status and body of a GET."""
    headers = {"Host": host} if host else {}
    request = urllib.request.Request(f"{address}{path}", headers=headers)  # noqa: S310 - our own address
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:  # noqa: S310 - our own address
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def query(expression: str) -> list[Document]:
    """The series of an instant query, each with `metric` and `value`."""
    path = "/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    found: list[Document] = json.loads(fetch(os.environ["CLOZE_PROMETHEUS"], path)[1])["data"]["result"]
    return found


def backend(name: str) -> list[Document]:
    """A pod that answers with its name, has one metric, and a service."""
    script = f"mkdir -p /tmp/www && cd /tmp/www && echo {name} > index.html && echo '{METRIC} 42' > metrics.txt"
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "labels": {"app": name},
                "annotations": {
                    "prometheus.io/scrape": "true",
                    "prometheus.io/port": "8080",
                    "prometheus.io/path": "/metrics.txt",
                },
            },
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": False,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "web",
                        "image": "cloze.local/busybox:1",
                        "command": ["sh", "-c", f"{script} && exec httpd -f -p 8080 -h /tmp/www"],
                        "ports": [{"containerPort": 8080}, {"containerPort": 8443}],
                        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
                        "resources": {"requests": {"cpu": "5m", "memory": "8Mi"}},
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }
                ],
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    ]


def route(host: str, *weights: int) -> Document:
    """A route of the cluster's Gateway that divides all requests for a host between the backends."""
    references = [{"name": name, "port": 80, "weight": weight} for name, weight in zip(BACKENDS, weights, strict=True)]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "spam"},
        "spec": {
            "parentRefs": [{"name": "cloze", "namespace": "gateway"}],
            "hostnames": [host],
            "rules": [{"backendRefs": references}],
        },
    }


def apply(namespace: str, *documents: Document) -> None:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})
    done = kubectl("apply", "--server-side", f"--namespace={namespace}", "--filename=-", stdin=text)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def backends() -> Iterator[str]:
    """A namespace with both backends, ready."""
    name = f"cloze-test-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    apply("default", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    try:
        apply(name, *[document for one in BACKENDS for document in backend(one)])
        done = kubectl("wait", "--for=condition=Ready", "pod", "--all", f"--namespace={name}", "--timeout=60s")
        assert done.returncode == 0, done.stderr
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def test_traffic_is_divided_by_the_weights_of_a_route_and_counted_by_backend(
    backends: str, eventually: Callable[..., Any]
) -> None:
    gateway, host = os.environ["CLOZE_GATEWAY"], f"{backends}.example"
    apply(backends, route(host, 1, 1))
    seen: set[str] = set()

    def both_answer() -> bool:
        status, body = fetch(gateway, "/", host)
        seen.update([body.strip()] if status == 200 else [])
        return seen == set(BACKENDS)

    eventually(both_answer, "the gateway to know both backends")
    apply(backends, route(host, 0, 1))
    eventually(
        lambda: {fetch(gateway, "/", host) for _ in range(4)} == {(200, f"{BACKENDS[1]}\n")},
        "all traffic on the second",
    )
    apply(backends, route(host, 90, 10))
    eventually(lambda: fetch(gateway, "/", host) == (200, f"{BACKENDS[0]}\n"), "the weights to be taken on")
    answers = Counter(fetch(gateway, "/", host)[1].strip() for _ in range(200))
    assert answers.total() == 200
    assert 16 <= answers[BACKENDS[1]] <= 24, answers

    def counted() -> dict[str, float]:
        series = query(f'sum by (service, code) (traefik_service_requests_total{{service=~"{backends}-.*"}})')
        return {one["metric"]["service"]: float(one["value"][1]) for one in series if one["metric"]["code"] == "200"}

    names = {f"{backends}-{name}-http-80@kubernetesgateway" for name in BACKENDS}
    eventually(lambda: counted().keys() == names and sum(counted().values()) > 200, "counters of both backends")


def test_prometheus_scrapes_a_pod_by_its_annotations(backends: str, eventually: Callable[..., Any]) -> None:
    """Once, at the annotated port and path, though the pod declares two ports; under the pod's own names."""
    found = eventually(
        lambda: len(series := query(f'{METRIC}{{namespace="{backends}"}}')) == len(BACKENDS) and series,
        "the pods' metric",
        60,
    )
    assert {one["value"][1] for one in found} == {"42"}
    assert {one["metric"]["pod"] for one in found} == set(BACKENDS)
    assert {one["metric"]["container"] for one in found} == {"web"}
    assert all(one["metric"]["node"] for one in found)
    assert len(query(f'up{{namespace="{backends}"}}')) == len(BACKENDS)


def test_usage_of_pods_is_measured(backends: str, eventually: Callable[..., Any]) -> None:
    """By metrics-server for `kubectl top` and autoscalers, and by the kubelet for Prometheus."""

    def top() -> list[list[str]]:
        done = kubectl("top", "pods", f"--namespace={backends}", "--no-headers")
        return [line.split() for line in done.stdout.splitlines()]

    rows = eventually(lambda: len(rows := top()) == len(BACKENDS) and rows, "kubectl top", 90)
    assert {row[0] for row in rows} == set(BACKENDS)
    expression = f'container_memory_working_set_bytes{{namespace="{backends}", container="web"}}'
    eventually(lambda: len(query(expression)) == len(BACKENDS), "the containers' memory in Prometheus", 90)


@pytest.mark.parametrize(
    ("host", "port", "path"),
    [("prometheus.monitoring.svc", 9090, "/-/ready"), ("alertmanager.monitoring.svc", 9093, "/-/ready")],
)
def test_a_pod_reaches_the_monitoring_by_name(
    backends: str, eventually: Callable[..., Any], host: str, port: int, path: str
) -> None:
    request = f"printf 'GET {path} HTTP/1.0\\r\\nHost: {host}\\r\\n\\r\\n' | nc -w 3 {host} {port} | head -n 1"

    def status() -> str:
        return kubectl("exec", f"--namespace={backends}", BACKENDS[0], "--", "sh", "-c", request).stdout

    eventually(lambda: " 200 " in status(), f"{host} to answer a pod")


def test_rules_that_are_installed_fire_alerts_in_alertmanager(
    backends: str, eventually: Callable[..., Any], tmp_path: Any
) -> None:
    rules = tmp_path / "addons-test.yaml"
    rule = {"alert": "AddonsTest", "expr": f'{METRIC}{{namespace="{backends}"}} == 42', "labels": {"severity": "none"}}
    rules.write_text(json.dumps({"groups": [{"name": "addons-test", "rules": [rule]}]}))
    program = [sys.executable, ROOT / "hack/cluster", "rules", rules]
    installed = subprocess.run(program, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    try:
        path = "/api/v2/alerts?" + urllib.parse.urlencode({"filter": 'alertname="AddonsTest"'})
        alerts = eventually(
            lambda: len(alerts := json.loads(fetch(os.environ["CLOZE_ALERTMANAGER"], path)[1])) == 2 and alerts,
            "the alerts in Alertmanager",
            60,
        )
        assert {alert["labels"]["pod"] for alert in alerts} == set(BACKENDS)
    finally:
        assert subprocess.run([*program, "--remove"], capture_output=True, check=False).returncode == 0
