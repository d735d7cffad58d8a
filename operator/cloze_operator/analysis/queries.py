"""What Prometheus is asked about a canary, in PromQL: raw counters by pod, and a gateway's counters by backend."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Template
from typing import Final

from cloze_api import metrics
from cloze_api.metrics import Metric

#: Routes without a model behind them.
_NO_MODEL: Final = "unmatched|/v1/models"
#: What the same counter may be scraped under twice: by two jobs, or by two replicas of Prometheus.
_COPIES: Final = "job, endpoint, prometheus, prometheus_replica, replica"
#: Labels that name the process behind a series.
POD: Final = ("pod",)
GATEWAY_POD: Final = ("pod", "instance")

_GATEWAY_COUNTER: Final = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{\s*([a-zA-Z_]\w*)\s*,\s*([a-zA-Z_]\w*)\s*=\s*\"([^\"]+)\"\s*\}"
)
_PLACEHOLDER: Final = re.compile(r"\{([a-z]+)\}")
_PLACES: Final = frozenset({"namespace", "route", "service", "port"})


@dataclass(frozen=True, slots=True)
class GatewayCounters:
    """A gateway's counter of requests by backend.

    code: label of the HTTP status. backend: label of the backend. value: the label's value, a regular expression in
    which {namespace}, {route}, {service} and {port} are filled in.
    """

    metric: str
    code: str
    backend: str
    value: str

    @classmethod
    def read(cls, text: str) -> "GatewayCounters":
        """From `metric{code label,backend label="value"}`. Raises ValueError with what is wrong."""
        match = _GATEWAY_COUNTER.fullmatch(text.strip())
        if match is None:
            raise ValueError('write it as metric{code_label,backend_label="value"}')
        counters = cls(*match.groups())
        if unknown := set(_PLACEHOLDER.findall(counters.value)) - _PLACES:
            raise ValueError(f"it has {{{min(unknown)}}}: use {', '.join(f'{{{place}}}' for place in sorted(_PLACES))}")
        if "{service}" not in counters.value:
            raise ValueError("its value lacks {service}, by which the revisions are told apart")
        return counters

    def of(self, *, namespace: str, route: str, service: str, port: int) -> str:
        """The query for one backend: by process of the gateway and by HTTP status (label `status`)."""
        names = {"namespace": namespace, "route": route, "service": service, "port": str(port)}
        value = _PLACEHOLDER.sub(lambda match: names[match[1]].replace(".", "[.]"), self.value)
        counter = f"max without ({_COPIES}) ({self.metric}{{{self.backend}=~{_quoted(value)}}})"
        return f"sum by ({', '.join(GATEWAY_POD)}, {self.code}) ({counter})"


@dataclass(frozen=True, slots=True)
class Servers:
    """A revision's pods: a regular expression of their names, and the model that they serve.

    model, version: empty where they aren't known; in the pods there may be a fallback beside it.
    """

    namespace: str
    pods: str
    model: str = ""
    version: str = ""


def requests(servers: Servers) -> str:
    """Requests by pod and status, whichever model answered."""
    return _counter(metrics.REQUESTS, servers, keep=("status",), further=f"route!~{_quoted(_NO_MODEL)}")


def durations(servers: Servers) -> str:
    """Cumulative buckets of successful requests by pod and class of length, whichever model answered."""
    further = f'status_class="2xx",route!~{_quoted(_NO_MODEL)}'
    return _counter(metrics.REQUEST_DURATION, servers, keep=("length", "le"), further=further, suffix="_bucket")


def tokens(servers: Servers) -> str:
    """Real tokens of the model by pod."""
    return _counter(metrics.TOKENS, servers, further=f'kind="real"{_model(servers)}')


def unknown_tokens(servers: Servers) -> str:
    """Unknown tokens of the model by pod."""
    return _counter(metrics.UNKNOWN_TOKENS, servers, further=_model(servers).lstrip(","))


def predictions(servers: Servers) -> str:
    """Labels that the model predicted by pod; what its fallback made of some of them isn't its own."""
    return _counter(metrics.PREDICTIONS, servers, keep=("label",), further=_model(servers).lstrip(","))


def _model(servers: Servers) -> str:
    """Selects the model's own series."""
    return f",model={_quoted(servers.model)},version={_quoted(servers.version)}" if servers.model else ""


def filled(query: str, values: Mapping[str, str]) -> str:
    """A person's own query with `$namespace` and the like filled in; other dollar signs are PromQL's."""
    return Template(query).safe_substitute(values)


def _counter(
    metric: Metric, servers: Servers, *, keep: tuple[str, ...] = (), further: str = "", suffix: str = "_total"
) -> str:
    selector = ",".join(
        filter(None, [f"namespace={_quoted(servers.namespace)}", f"pod=~{_quoted(servers.pods)}", further])
    )
    extra = ("le",) if suffix == "_bucket" else ()
    own = ", ".join((*POD, *metric.labels, *extra))
    # All counters of a process restart together, so their sum is a counter too. The maximum leaves one of each copy.
    return f"sum by ({', '.join((*POD, *keep))}) (max by ({own}) ({metric.name}{suffix}{{{selector}}}))"


def _quoted(text: str) -> str:
    # Go's strings, and so PromQL's, escape as JSON's do.
    return json.dumps(text, ensure_ascii=False)


#: Gateways by name, whose counters tell backends apart. How Traefik names a backend: its provider's source (v3.6,
#: pkg/provider/kubernetes/gateway/httproute.go).
GATEWAYS: Final = {
    "traefik": GatewayCounters(
        "traefik_service_requests_total", "code", "service", "{namespace}-{service}-http-{port}@kubernetesgateway"
    ),
}
