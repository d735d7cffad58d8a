"""Who may reach operator and MLflow, and whom they may, as the chart renders it.

The local cluster's network enforces no policy, so what is asked here is what an enforcing one would be told.
"""

from typing import Any

import pytest
from rendering import render

pytestmark = pytest.mark.cluster

OWN = {"app.kubernetes.io/name": "cloze", "app.kubernetes.io/instance": "cloze"}
WORKLOADS = {"podSelector": {"matchLabels": {"app.kubernetes.io/managed-by": "cloze"}}}
OUTSIDE = ('mlflow.backendStoreUri="postgresql://db/mlflow"', 'mlflow.artifactsDestination="s3://models"')


def policies(*values: str) -> dict[str, dict[str, Any]]:
    return {d["metadata"]["name"]: d["spec"] for d in render(*values) if d["kind"] == "NetworkPolicy"}


def ports(*numbers: int, protocol: str = "TCP") -> list[dict[str, Any]]:
    return [{"protocol": protocol, "port": number} for number in numbers]


DNS = {"ports": ports(53, protocol="UDP") + ports(53)}


def component(name: str) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": {**OWN, "app.kubernetes.io/component": name}}}


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a pod selector takes a pod with these labels."""
    named = selector.get("matchLabels", {}).items() <= labels.items()
    return named and all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))


def test_policies_can_be_left_out() -> None:
    """A cluster whose administrators write policies themselves turns them off."""
    assert policies("networkPolicy.enabled=false") == {}


def test_operator_is_read_by_monitoring_and_the_test_alone() -> None:
    """Its one port is open to the peers of the values."""
    peers = '[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"monitoring"}}}]'
    (rule,) = policies(f"networkPolicy.operator.from={peers}")["cloze-operator"]["ingress"]
    namespace = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert rule == {"from": [component("test"), namespace], "ports": ports(8081)}


def test_operator_reaches_what_it_asks_and_nothing_else() -> None:
    """Names, the API server, pods of jobs and deployments at their ports, MLflow."""
    spec = policies()["cloze-operator-egress"]
    assert spec["egress"] == [
        DNS,
        {"ports": ports(443, 6443)},
        {"to": [{"namespaceSelector": {}, **WORKLOADS}], "ports": ports(8080, 9400)},
        {"to": [component("operator")], "ports": ports(8081)},
        {"to": [component("mlflow")], "ports": ports(5000)},
    ]


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        # The pod's port may be another than the Service's, so the port is left open.
        (
            "http://prometheus.metrics.svc:80",
            {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "metrics"}}}]},
        ),
        (
            "http://prometheus.metrics.svc.cluster.local:9090",
            {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "metrics"}}}]},
        ),
        ("https://prometheus.example/tenant", {"ports": ports(443)}),
        ("http://prometheus.example", {"ports": ports(80)}),
        ("http://192.0.2.7:9090", {"ports": ports(9090)}),
    ],
)
def test_operator_reaches_prometheus(url: str, rule: dict[str, Any]) -> None:
    """A Service by its namespace, an address outside by its port."""
    assert policies(f'prometheus.url="{url}"')["cloze-operator-egress"]["egress"][-1] == rule


def test_operator_reaches_an_mlflow_of_ones_own() -> None:
    """By the address of the values; nothing is said of a server that isn't the chart's."""
    found = policies("mlflow.enabled=false", 'mlflow.uri="https://mlflow.example"')
    assert found.keys() == {"cloze-operator", "cloze-operator-egress"}
    assert found["cloze-operator-egress"]["egress"][-1] == {"ports": ports(443)}


def test_further_rules_are_added() -> None:
    """A proxy, or a Prometheus with a short name."""
    found = policies('networkPolicy.operator.egress=[{"ports":[{"port":3128}]}]')
    assert found["cloze-operator-egress"]["egress"][-1] == {"ports": [{"port": 3128}]}


def test_mlflow_is_asked_by_the_platforms_pods_and_named_peers() -> None:
    """Operators, the test, training and serving pods of all namespaces, and who is named."""
    (rule,) = policies('networkPolicy.mlflow.from=[{"namespaceSelector":{}}]')["cloze-mlflow"]["ingress"]
    own, workloads, named = rule["from"]
    assert rule["ports"] == ports(5000)
    assert workloads == {"namespaceSelector": {}, **WORKLOADS}
    assert named == {"namespaceSelector": {}}
    assert "namespaceSelector" not in own
    for name, allowed in (("operator", True), ("test", True), ("mlflow", False)):
        assert matches(own["podSelector"], {**OWN, "app.kubernetes.io/component": name}) == allowed


def test_named_namespaces_bound_the_policies() -> None:
    """With `operator.namespaces` pods elsewhere are strangers."""
    found = policies('operator.namespaces=["team-a"]')
    selector = {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a"]}]}
    assert found["cloze-mlflow"]["ingress"][0]["from"][1] == {"namespaceSelector": selector, **WORKLOADS}
    assert {"namespaceSelector": selector, **WORKLOADS} in found["cloze-operator-egress"]["egress"][2]["to"]


def test_mlflow_with_its_stores_on_the_volume_reaches_nothing() -> None:
    """Nothing that it could be made to send leaves it."""
    spec = policies()["cloze-mlflow"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in spec


def test_mlflow_with_stores_outside_reaches_them() -> None:
    """Anywhere until the values say where they are, then there alone."""
    assert policies(*OUTSIDE)["cloze-mlflow"]["policyTypes"] == ["Ingress"]
    named = 'networkPolicy.mlflow.egress=[{"to":[{"ipBlock":{"cidr":"192.0.2.0/24"}}],"ports":[{"port":5432}]}]'
    spec = policies(*OUTSIDE, named)["cloze-mlflow"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["egress"] == [DNS, {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 5432}]}]


def test_policies_take_the_pods_that_the_chart_makes() -> None:
    """Each pod of the chart is taken by a policy for what it says and, but for the test's, for what it hears."""
    documents = render()
    found = [d["spec"] for d in documents if d["kind"] == "NetworkPolicy"]
    pods = [d["spec"]["template"]["metadata"]["labels"] for d in documents if d["kind"] == "Deployment"]
    pods += [d["metadata"]["labels"] for d in documents if d["kind"] == "Pod"]
    assert len(pods) == 3
    for labels in pods:
        kinds = {kind for spec in found if matches(spec["podSelector"], labels) for kind in spec["policyTypes"]}
        assert kinds == ({"Egress"} if labels["app.kubernetes.io/component"] == "test" else {"Egress", "Ingress"})
