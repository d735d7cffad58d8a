"""Parts of queries that more than one rule or panel is made of."""

from typing import Final

from cloze_api import metrics
from cloze_api.metrics import Metric

#: Windows by name, and how often each is asked for. The longer, the dearer, and the less it changes; series that are
#: recorded less often than every 5 minutes would go stale in between.
WINDOWS: Final = {
    "short": ("15s", ("5m", "30m", "1h")),
    "medium": ("1m", ("2h", "6h")),
    "long": ("2m", ("1d", "3d")),
}
MONTH: Final = "30d"
SECONDS: Final = {"5m": 300, "30m": 1800, "1h": 3600, "2h": 7200, "6h": 21_600, "1d": 86_400, "3d": 259_200}

#: What identifies a ModelDeployment in every recorded series, as in the operator's own metrics.
KEY: Final = "namespace, name"

#: Routes without a model behind them aren't what an objective is about.
WITH_MODEL: Final = 'route!~"unmatched|/v1/models"'
#: A server that refuses work with 429 says when to come back: no error, and an alert of its own.
ERRORS: Final = 'status=~"5.."'

#: Boundaries that an objective may lie on, as both the histogram and the objective's metric spell them.
OBJECTIVE_BOUNDS: Final = "|".join(str(float(seconds)).replace(".", "\\\\.") for seconds in metrics.OBJECTIVE_SECONDS)

#: The record that tells which ModelDeployment, revision and version a pod is of.
PODS: Final = "pod:cloze_deployment:info"


def sample(metric: Metric, part: str = "") -> str:
    """Name of a metric's samples. part: of a histogram: bucket, count or sum."""
    suffix = {"counter": "_total", "info": "_info"}.get(metric.kind, "")
    return metric.name + (f"_{part}" if part else suffix)


def pods(window: str) -> str:
    """Which ModelDeployment each pod of a window is of, those that are gone by now among them.

    A pod that crashes takes its series along: a join with the present pods alone would forget its errors.
    """
    series = f'max_over_time({sample(metrics.MODEL_INFO)}{{deployment!=""}}[{window}])'
    return f'max by (namespace, pod, name) (label_replace({series}, "name", "$1", "deployment", "(.+)"))'


def of_deployments(expression: str, window: str, by: str = "") -> str:
    """A sum over pods for each ModelDeployment. by: a further label that is kept."""
    extra = f", {by}" if by else ""
    return (
        f"sum by ({KEY}{extra}) (\n"
        f"  sum by (namespace, pod{extra}) ({expression})\n"
        f"  * on (namespace, pod) group_left (name) {pods(window)}\n"
        ")"
    )


def grew(selector: str, by: str, window: str) -> str:
    """Whether a counter grew, by its first sample even: a series that begins at 1 has no increase.

    The six hours before bridge a gap in scraping, after which an old count would look new.
    """
    return (
        f"sum by ({by}) (increase({selector}[{window}])) > 0\n"
        f"or\n"
        f"sum by ({by}) ({selector} unless last_over_time({selector}[6h] offset {window})) > 0"
    )


def objective(metric: Metric) -> str:
    """An objective of each ModelDeployment, once, while two operators change over too."""
    return f"max by ({KEY}) ({sample(metric)})"
