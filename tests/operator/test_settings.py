"""Settings come from the environment, and a wrong one is named."""

from pathlib import Path

import pytest

from cloze_operator.analysis.queries import GATEWAYS, GatewayCounters
from cloze_operator.settings import VARIABLES, SettingsError, read

GOOD = {"CLOZE_TRAIN_IMAGE": "train", "CLOZE_SERVE_IMAGE": "serve", "MLFLOW_TRACKING_URI": "http://mlflow:5000/"}


def test_defaults() -> None:
    """Three variables are enough, and an empty one is not set."""
    settings = read({**GOOD, "CLOZE_NAMESPACES": "", "CLOZE_LOG_LEVEL": ""})
    assert settings.platform.tracking_uri == "http://mlflow:5000"
    assert (settings.platform.pull_policy, settings.platform.pull_secrets) == ("", ())
    assert (settings.namespaces, settings.workers, settings.port) == ((), 8, 8081)


def test_everything_can_be_set() -> None:
    """Each variable has its effect."""
    settings = read(
        {
            **GOOD,
            "CLOZE_NAMESPACES": "a, b,",
            "CLOZE_IMAGE_PULL_POLICY": "always",
            "CLOZE_SERVE_GPU_IMAGE": "serve-gpu",
            "CLOZE_IMAGE_PULL_SECRETS": "one,two",
            "CLOZE_RESYNC_SECONDS": "5",
            "CLOZE_OPERATOR_WORKERS": "2",
            "CLOZE_OPERATOR_PORT": "9",
            "CLOZE_LOG_LEVEL": "DEBUG",
        }
    )
    assert (settings.namespaces, settings.resync_seconds) == (("a", "b"), 5)
    assert (settings.platform.pull_policy, settings.platform.pull_secrets) == ("Always", ("one", "two"))
    assert (settings.workers, settings.port, settings.log_level) == (2, 9, "debug")
    assert (settings.platform.serve_image, settings.platform.serve_gpu_image) == ("serve", "serve-gpu")


def test_keys_are_taken_out_of_their_pem() -> None:
    """As many as there are; anything else beside them is refused, since a key that isn't read verifies nothing."""
    pem = "-----BEGIN PUBLIC KEY-----\nMFkw\nEwYH==\n-----END PUBLIC KEY-----\n"
    assert read({**GOOD, "CLOZE_VERIFY_KEYS": pem + "\n" + pem}).platform.verify_keys == ("key:MFkwEwYH==",) * 2
    for wrong in ("key.pem", pem + "x", pem.replace("PUBLIC", "PRIVATE"), pem[:40]):
        with pytest.raises(SettingsError, match="CLOZE_VERIFY_KEYS"):
            read({**GOOD, "CLOZE_VERIFY_KEYS": wrong})


def test_lease_is_the_pod_s_namespace_s(tmp_path: Path) -> None:
    """Unless another is named; outside a pod it is `default`. An operator that is alone needs none."""
    file = tmp_path / "namespace"
    assert read(GOOD, file).lease_namespace == "default"
    file.write_text("cloze-system\n", encoding="utf-8")
    settings = read(GOOD, file)
    assert (settings.leader_election, settings.lease_namespace, settings.lease_name) == (
        True,
        "cloze-system",
        "cloze-operator",
    )
    named = {"CLOZE_LEASE_NAMESPACE": "a", "CLOZE_LEASE_NAME": "b", "CLOZE_POD_NAME": "c"}
    settings = read({**GOOD, **named, "CLOZE_LEADER_ELECTION": "False"}, file)
    assert not settings.leader_election
    assert (settings.lease_namespace, settings.lease_name, settings.pod_name) == ("a", "b", "c")


def test_prometheus_and_the_gateway_can_be_set() -> None:
    """The counters of a gateway by its name, or in one's own words."""
    settings = read(
        {
            **GOOD,
            "CLOZE_PROMETHEUS_URL": "https://mimir/prometheus/",
            "CLOZE_PROMETHEUS_TOKEN_FILE": "/token",
            "CLOZE_PROMETHEUS_TIMEOUT_SECONDS": "3",
            "CLOZE_PROMETHEUS_HEADERS": "X-Scope-OrgID=a=b, Other=c",
            "CLOZE_GATEWAY_COUNTER": "Traefik",
        }
    )
    assert (settings.prometheus_url, settings.prometheus_token_file) == ("https://mimir/prometheus", "/token")
    assert settings.prometheus_timeout_seconds == 3
    assert settings.prometheus_headers == {"X-Scope-OrgID": "a=b", "Other": "c"}
    assert settings.gateway_counter == GATEWAYS["traefik"]
    own = 'requests_total{status, backend = "{namespace}/{service}:{port}"}'
    counters = read({**GOOD, "CLOZE_GATEWAY_COUNTER": own}).gateway_counter
    assert counters == GatewayCounters("requests_total", "status", "backend", "{namespace}/{service}:{port}")
    assert read({**GOOD, "CLOZE_GATEWAY_COUNTER": "none"}).gateway_counter is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLOZE_TRAIN_IMAGE", ""),
        ("MLFLOW_TRACKING_URI", "mlflow:5000"),
        ("CLOZE_RESYNC_SECONDS", "soon"),
        ("CLOZE_RESYNC_SECONDS", "nan"),
        ("CLOZE_OPERATOR_WORKERS", "0"),
        ("CLOZE_IMAGE_PULL_POLICY", "sometimes"),
        ("CLOZE_LOG_LEVEL", "loud"),
        ("CLOZE_LEADER_ELECTION", "maybe"),
        ("CLOZE_PROMETHEUS_URL", "prometheus:9090"),
        ("CLOZE_PROMETHEUS_TIMEOUT_SECONDS", "0"),
        ("CLOZE_PROMETHEUS_HEADERS", "X-Scope-OrgID"),
        ("CLOZE_GATEWAY_COUNTER", "nginx"),
        ("CLOZE_GATEWAY_COUNTER", 'requests_total{code,service="{namespace}"}'),
        ("CLOZE_GATEWAY_COUNTER", 'requests_total{code,service="{service}-{revision}"}'),
    ],
)
def test_mistake_is_named(name: str, value: str) -> None:
    """The message has the variable's name."""
    with pytest.raises(SettingsError, match=name):
        read({**GOOD, name: value})


def test_every_variable_is_documented_once() -> None:
    """The help lists them all."""
    names = [variable.name for variable in VARIABLES]
    assert len(names) == len(set(names))
    assert set(GOOD) <= set(names)
