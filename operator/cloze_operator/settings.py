"""Settings of the operator's process, from the environment."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloze_api.names import (
    ENV_MLFLOW_URI,
    ENV_SERVE_GPU_IMAGE,
    ENV_SERVE_IMAGE,
    ENV_TRAIN_IMAGE,
    INLINE_KEY,
    OPERATOR_PORT,
)
from cloze_operator.analysis.queries import GATEWAYS, GatewayCounters
from cloze_operator.desired.platform import Platform

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
BOOLEANS: Final = ("true", "false")
#: Where Kubernetes tells a pod its namespace.
_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9-]+")
_PEM: Final = re.compile(r"-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----")
PULL_POLICIES: Final = ("", "Always", "IfNotPresent", "Never")


class SettingsError(ValueError):
    """An environment variable is missing or wrong; the message names it and what it takes."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable. default: None when it has to be set."""

    name: str
    help: str
    default: str | None = None


TRAIN_IMAGE = Variable(ENV_TRAIN_IMAGE, "image of training pods whose resource names none")
SERVE_IMAGE = Variable(ENV_SERVE_IMAGE, "image of serving pods whose resource names none")
SERVE_GPU_IMAGE = Variable(
    ENV_SERVE_GPU_IMAGE, "image of serving pods with a GPU whose resource names none; empty: there is none", ""
)
TRACKING_URI = Variable(ENV_MLFLOW_URI, "MLflow's address, for the operator and for the pods: http://host:port")
PULL_POLICY = Variable(
    "CLOZE_IMAGE_PULL_POLICY", "of those pods: Always, IfNotPresent or Never; empty: Kubernetes'", ""
)
PULL_SECRETS = Variable("CLOZE_IMAGE_PULL_SECRETS", "comma-separated secrets in the namespaces of those pods", "")
NAMESPACES = Variable("CLOZE_NAMESPACES", "comma-separated namespaces to serve; empty for all", "")
LOG_LEVEL = Variable("CLOZE_LOG_LEVEL", "debug, info, warning or error", "info")
RESYNC = Variable("CLOZE_RESYNC_SECONDS", "between two looks at every resource, whatever the watches say", "60")
WORKERS = Variable("CLOZE_OPERATOR_WORKERS", "resources that are reconciled at the same time", "8")
ELECTION = Variable("CLOZE_LEADER_ELECTION", "true or false: act only while holding the lease, one of several", "true")
LEASE_NAMESPACE = Variable("CLOZE_LEASE_NAMESPACE", "of the lease; empty: the pod's own, or default outside one", "")
LEASE_NAME = Variable(
    "CLOZE_LEASE_NAME", "of the lease: one for all operators that serve the same objects", "cloze-operator"
)
POD_NAME = Variable("CLOZE_POD_NAME", "name of this pod, for the lease; empty: the host's", "")
PROMETHEUS_URL = Variable(
    "CLOZE_PROMETHEUS_URL", "Prometheus' address, http://host:port; empty: canaries can't be judged", ""
)
PROMETHEUS_TOKEN_FILE = Variable("CLOZE_PROMETHEUS_TOKEN_FILE", "file of a bearer token for Prometheus", "")
PROMETHEUS_TIMEOUT = Variable("CLOZE_PROMETHEUS_TIMEOUT_SECONDS", "for each answer of Prometheus", "10")
PROMETHEUS_HEADERS = Variable(
    "CLOZE_PROMETHEUS_HEADERS", "comma-separated name=value for Prometheus, such as X-Scope-OrgID=tenant", ""
)
GATEWAY_COUNTER = Variable(
    "CLOZE_GATEWAY_COUNTER",
    "the gateway's counter of requests by backend: traefik, none, or "
    'metric{code_label,backend_label="value"} with {namespace}, {route}, {service} and {port} in the value',
    "none",
)
VERIFY_KEYS = Variable(
    "CLOZE_VERIFY_KEYS", "public keys in PEM, of which one must have signed what pods load; empty: none", ""
)
PORT = Variable("CLOZE_OPERATOR_PORT", "port of /metrics, /healthz and /readyz", str(OPERATOR_PORT))

VARIABLES: Final = (
    TRAIN_IMAGE,
    SERVE_IMAGE,
    SERVE_GPU_IMAGE,
    PULL_POLICY,
    PULL_SECRETS,
    TRACKING_URI,
    NAMESPACES,
    LOG_LEVEL,
    RESYNC,
    WORKERS,
    ELECTION,
    LEASE_NAMESPACE,
    LEASE_NAME,
    POD_NAME,
    PROMETHEUS_URL,
    PROMETHEUS_TOKEN_FILE,
    PROMETHEUS_TIMEOUT,
    PROMETHEUS_HEADERS,
    GATEWAY_COUNTER,
    VERIFY_KEYS,
    PORT,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one operator process does. Times are in seconds."""

    platform: Platform
    """What ends up in manifests."""
    namespaces: tuple[str, ...] = ()
    """Namespaces to serve; empty for the whole cluster."""
    log_level: str = "info"
    resync_seconds: float = 60.0
    workers: int = 8
    port: int = OPERATOR_PORT
    leader_election: bool = True
    """False for an operator that is alone for sure."""
    lease_namespace: str = "default"
    lease_name: str = "cloze-operator"
    pod_name: str = ""
    prometheus_url: str = ""
    """Empty when there is none to ask."""
    prometheus_token_file: str = ""
    prometheus_timeout_seconds: float = 10.0
    prometheus_headers: Mapping[str, str] = field(default_factory=dict)
    gateway_counter: GatewayCounters | None = None
    """None when errors are counted by the servers."""


def read(environment: Mapping[str, str] = os.environ, namespace_file: Path = _NAMESPACE_FILE) -> Settings:
    """Settings from the environment. Raises SettingsError."""
    log_level = _one_of(LOG_LEVEL, environment, LOG_LEVELS)
    tracking_uri = _text(TRACKING_URI, environment).rstrip("/")
    if not tracking_uri.startswith(("http://", "https://")):
        raise SettingsError(f"{TRACKING_URI.name} is {tracking_uri!r}: give MLflow's address, http://host:port")
    return Settings(
        platform=Platform(
            train_image=_text(TRAIN_IMAGE, environment),
            serve_image=_text(SERVE_IMAGE, environment),
            serve_gpu_image=_text(SERVE_GPU_IMAGE, environment),
            pull_policy=_one_of(PULL_POLICY, environment, PULL_POLICIES),
            pull_secrets=_list(PULL_SECRETS, environment),
            tracking_uri=tracking_uri,
            verify_keys=_verify_keys(environment),
        ),
        namespaces=_list(NAMESPACES, environment),
        log_level=log_level,
        resync_seconds=_number(RESYNC, environment, 1),
        workers=int(_number(WORKERS, environment, 1)),
        port=int(_number(PORT, environment, 0)),
        leader_election=_one_of(ELECTION, environment, BOOLEANS) == "true",
        lease_namespace=_text(LEASE_NAMESPACE, environment) or _own_namespace(namespace_file),
        lease_name=_text(LEASE_NAME, environment),
        pod_name=_text(POD_NAME, environment),
        prometheus_url=_prometheus_url(environment),
        prometheus_token_file=_text(PROMETHEUS_TOKEN_FILE, environment),
        prometheus_timeout_seconds=_number(PROMETHEUS_TIMEOUT, environment, 1),
        prometheus_headers=_headers(environment),
        gateway_counter=_gateway_counter(environment),
    )


def _own_namespace(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip() if file.exists() else "default"


def _prometheus_url(environment: Mapping[str, str]) -> str:
    url = _text(PROMETHEUS_URL, environment).rstrip("/")
    if url and not url.startswith(("http://", "https://")):
        raise SettingsError(f"{PROMETHEUS_URL.name} is {url!r}: give Prometheus' address, http://host:port")
    return url


def _headers(environment: Mapping[str, str]) -> dict[str, str]:
    pairs = [part.partition("=") for part in _list(PROMETHEUS_HEADERS, environment)]
    for name, _, value in pairs:
        if not (_HEADER_NAME.fullmatch(name.strip()) and value.strip()):
            # The value may be a secret.
            raise SettingsError(f"{PROMETHEUS_HEADERS.name} has one without a name or a value: give name=value")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _gateway_counter(environment: Mapping[str, str]) -> GatewayCounters | None:
    text = _text(GATEWAY_COUNTER, environment)
    if text.lower() == "none":
        return None
    try:
        return GATEWAYS.get(text.lower()) or GatewayCounters.read(text)
    except ValueError as error:
        raise SettingsError(
            f"{GATEWAY_COUNTER.name} is {text!r}: {error}; or use {', '.join(GATEWAYS)}, none"
        ) from error


def _verify_keys(environment: Mapping[str, str]) -> tuple[str, ...]:
    text = _text(VERIFY_KEYS, environment)
    if _PEM.sub("", text).strip():
        # Whoever asks for signatures must not get pods that ask for none.
        raise SettingsError(f"{VERIFY_KEYS.name} has something that isn't a public key in PEM: give such keys alone")
    return tuple(INLINE_KEY + "".join(content.split()) for content in _PEM.findall(text))


def _text(variable: Variable, environment: Mapping[str, str]) -> str:
    # An empty variable is how a manifest says "not set".
    value = environment.get(variable.name) or variable.default
    if value is None:
        raise SettingsError(f"{variable.name} is not set: give the {variable.help}")
    return value


def _one_of(variable: Variable, environment: Mapping[str, str], allowed: tuple[str, ...]) -> str:
    value = _text(variable, environment)
    for choice in allowed:
        if choice.lower() == value.lower():
            return choice
    raise SettingsError(f"{variable.name} is {value!r}: use one of {', '.join(filter(None, allowed))}")


def _list(variable: Variable, environment: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(part.strip() for part in _text(variable, environment).split(",") if part.strip())


def _number(variable: Variable, environment: Mapping[str, str], minimum: float) -> float:
    text = _text(variable, environment)
    try:
        value = float(text)
    except ValueError as error:
        raise SettingsError(f"{variable.name} is {text!r}: give a number") from error
    if not value >= minimum:
        raise SettingsError(f"{variable.name} is {text}: give {minimum:g} or more")
    return value
