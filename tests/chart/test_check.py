"""What `helm test` finds out, against an API server, an operator, an MLflow and a Prometheus that answer as told."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from rendering import CHART

from cloze_operator.settings import Settings, read

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RULES = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    {"apiGroups": ["cloze.dev"], "resources": ["modeldeployments/status"], "verbs": ["patch"]},
]
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The script, which the chart mounts as a file."""
    specification = util.spec_from_file_location("chart_check", CHART / "files" / "scripts" / "check.py")
    assert specification is not None
    assert specification.loader is not None
    module = util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def client(answer: Answer | httpx.Response) -> httpx.Client:
    transport = httpx.MockTransport(answer if callable(answer) else lambda request: answer)
    return httpx.Client(transport=transport, base_url="https://api.example")


def settings(**variables: str) -> Settings:
    given = {"CLOZE_TRAIN_IMAGE": "train", "CLOZE_SERVE_IMAGE": "serve", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    return read({**given, "CLOZE_LEASE_NAMESPACE": "cloze-system", **variables})


def test_operator_that_is_not_ready_is_told(check: ModuleType) -> None:
    """With its own words."""
    assert check.operator(client(httpx.Response(200, text="standby\n")), "http://operator") == "ready, standby"
    with pytest.raises(check.CheckError, match=r"answers 503: not synced yet"):
        check.operator(client(httpx.Response(503, text="not synced yet\n")), "http://operator")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"holderIdentity": "one", "renewTime": NOW - timedelta(seconds=9)}, None),
        ({"holderIdentity": "one", "renewTime": NOW - timedelta(seconds=40)}, "one last renewed it 40 s ago"),
        ({"holderIdentity": "", "renewTime": NOW}, "no operator holds it"),
    ],
)
def test_lease_must_be_held_now(check: ModuleType, spec: dict[str, Any], message: str | None) -> None:
    """Operators that are ready while none acts would look well."""
    spec = {"leaseDurationSeconds": 15, **spec, "renewTime": spec["renewTime"].isoformat()}

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/apis/coordination.k8s.io/v1/namespaces/cloze-system/leases/cloze-operator"
        return httpx.Response(200, json={"spec": spec})

    if message is None:
        assert check.lease(client(answer), settings(), NOW) == "held by one"
    else:
        with pytest.raises(check.CheckError, match=message):
            check.lease(client(answer), settings(), NOW)


def test_missing_definition_is_named(check: ModuleType) -> None:
    """One of three."""
    served = {"resources": [{"name": "pretrainjobs"}, {"name": "modeldeployments"}]}
    with pytest.raises(check.CheckError, match="not served: finetunejobs"):
        check.definitions(client(httpx.Response(200, json=served)))


@pytest.mark.parametrize("namespaces", [(), ("team-a", "team-b")])
def test_every_right_is_asked_for(check: ModuleType, namespaces: tuple[str, ...]) -> None:
    """Each verb of each resource, in each served namespace or in all; those that are missing are named."""
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        question = json.loads(request.content)["spec"]["resourceAttributes"]
        asked.append(question)
        return httpx.Response(201, json={"status": {"allowed": question["verb"] != "patch"}})

    with pytest.raises(check.CheckError, match=r"may not: patch modeldeployments/status") as refused:
        check.rights(client(answer), RULES, namespaces)
    assert len(asked) == 3 * max(1, len(namespaces))
    assert {question["namespace"] for question in asked} == set(namespaces or ("",))
    assert str(refused.value).count("patch") == max(1, len(namespaces))
    assert {"group": "cloze.dev", "resource": "modeldeployments", "subresource": "status", "verb": "patch"}.items() <= (
        asked[-1].items()
    )


def test_prometheus_is_asked_as_the_operator_asks_it(check: ModuleType, tmp_path: Path) -> None:
    """With its token and headers; without an address there is nothing to ask, and that is said."""
    token = tmp_path / "token"
    token.write_text("sesame\n")

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer sesame"
        assert request.headers["X-Scope-OrgID"] == "tenant"
        return httpx.Response(200, json={"status": "success"})

    given = settings(
        CLOZE_PROMETHEUS_URL="http://prometheus",
        CLOZE_PROMETHEUS_TOKEN_FILE=str(token),
        CLOZE_PROMETHEUS_HEADERS="X-Scope-OrgID=tenant",
    )
    assert check.prometheus(client(answer), given) == "http://prometheus"
    assert "none" in check.prometheus(client(httpx.Response(500)), settings())
    with pytest.raises(check.CheckError, match="401"):
        check.prometheus(client(httpx.Response(401)), settings(CLOZE_PROMETHEUS_URL="http://prometheus"))


def test_all_parts_are_reported(check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """One that fails hides none of the others, and the exit code tells."""

    def away() -> str:
        raise httpx.ConnectError("refused", request=httpx.Request("GET", "http://mlflow/health"))

    assert check.report({"one": lambda: "fine", "two": away, "three": lambda: "fine"}) == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok      one: fine",
        "FAILED  two: http://mlflow/health: refused",
        "ok      three: fine",
        "1 of 3 failed: two",
    ]
    assert check.report({"one": lambda: "fine"}) == 0


def test_election_is_given_its_time(check: ModuleType) -> None:
    """What is right at the second look is right; what is wrong for all the time is told as it was last."""
    looks = iter([check.CheckError("no operator holds it"), "held by one"])

    def look() -> str:
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return str(found)

    assert check.patiently(look, 30) == "held by one"
    looks = iter([check.CheckError("no operator holds it")])
    with pytest.raises(check.CheckError, match="no operator"):
        check.patiently(look, 0)
