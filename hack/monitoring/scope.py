"""What a dashboard's variables choose, as parts of its queries."""

from typing import Final

from cloze_api import metrics
from monitoring.panels import Json, choice
from monitoring.promql import PODS, WITH_MODEL, sample

#: ModelDeployments that are looked at, in recorded series and in the operator's metrics.
DEPLOYMENTS: Final = 'namespace=~"$namespace",name=~"$deployment"'
#: Raw series of the chosen namespaces.
HERE: Final = 'namespace=~"$namespace"'
#: Training runs that are looked at.
RUNS: Final = 'namespace=~"$namespace",name=~"$run"'

_PODS: Final = f'{PODS}{{{DEPLOYMENTS},version=~"$version"}}'
_OBJECTIVE: Final = sample(metrics.OBJECTIVE_AVAILABILITY)
_STATE: Final = f'{sample(metrics.RESOURCE_STATE)}{{kind=~"PretrainJob|FineTuneJob"'

NAMESPACE: Final[Json] = choice("namespace", "Namespace", f"label_values({_OBJECTIVE}, namespace)")
DEPLOYMENT: Final[Json] = choice(
    "deployment", "ModelDeployment", f'label_values({_OBJECTIVE}{{namespace=~"$namespace"}}, name)'
)
VERSION: Final[Json] = choice("version", "Version", f"label_values({PODS}{{{DEPLOYMENTS}}}, version)")
TRAINING_NAMESPACE: Final[Json] = choice("namespace", "Namespace", f"label_values({_STATE}}}, namespace)")
RUN: Final[Json] = choice("run", "Run", f'label_values({_STATE},namespace=~"$namespace"}}, name)')


def served(expression: str, *by: str, within: str = "") -> str:
    """A sum over the chosen pods, by labels of ModelDeployment or pod. within: a label of the raw series."""
    kept = f", {within}" if within else ""
    labels = ", ".join((*by, *([within] if within else [])))
    return (
        f"sum by ({labels}) (sum by (namespace, pod{kept}) ({expression}) "
        f"* on (namespace, pod) group_left (name, version, revision) {_PODS})"
    )


def rate(metric: metrics.Metric, *further: str, part: str = "") -> str:
    """Rate of a counter, or of a histogram's bucket, count or sum."""
    selector = ",".join((HERE, *further))
    return f"rate({sample(metric, part)}{{{selector}}}[$__rate_interval])"


def requests(*further: str) -> str:
    """Rate of the requests that reach a model."""
    return rate(metrics.REQUESTS, WITH_MODEL, *further)


def quantile(share: float, metric: metrics.Metric, *by: str, further: tuple[str, ...] = ()) -> str:
    """A quantile of a server's histogram, by ModelDeployment's labels and by labels of its own."""
    own = [label for label in by if label in metric.labels and label != "version"]
    whose = [label for label in by if label not in own]
    kept = ", ".join([*own, "le"])
    buckets = served(rate(metric, *further, part="bucket"), *whose, within=kept)
    return f"histogram_quantile({share:g}, {buckets})"


#: Successful requests of the routes with a model: what a latency objective is about.
SUCCESSFUL: Final = ('status_class="2xx"', WITH_MODEL)
