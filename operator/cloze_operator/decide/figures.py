"""What a ModelDeployment's rollout and promises come to as metrics."""

from collections.abc import Mapping

from cloze_api import metrics
from cloze_api.metrics import Metric
from cloze_operator.decide.fields import dig
from cloze_operator.decide.report import mismatched_pods
from cloze_operator.decide.snapshot import ServingSnapshot
from cloze_operator.decide.verdict import Verdict

Figures = Mapping[tuple[Metric, tuple[str, ...]], float]
"""Values of gauges, by metric and by the labels that come after the resource's own."""


def figures(snapshot: ServingSnapshot, verdict: Verdict) -> Figures:
    """The gauges of one ModelDeployment; none for one that is going or can't be understood."""
    if snapshot.deployment is None or snapshot.resource["metadata"].get("deletionTimestamp"):
        return {}
    record, objectives = snapshot.record, snapshot.deployment.spec.objectives
    rollout = verdict.status.get("rollout") or {}
    step = str(rollout.get("step") or "0").split("/", maxsplit=1)[0]
    found: dict[tuple[Metric, tuple[str, ...]], float] = {
        (metrics.ROLLOUT_IN_PROGRESS, ()): float(bool(record.canary or record.previous)),
        (metrics.ROLLOUT_STEP, ()): float(step),
        (metrics.ROLLOUT_WEIGHT, ()): float(rollout.get("weight") or 0) / 100,
        (metrics.OBJECTIVE_AVAILABILITY, ()): objectives.availability,
        (metrics.OBJECTIVE_LATENCY_RATIO, ()): objectives.latency_ratio,
        # As the histogram's own boundaries are written.
        (metrics.OBJECTIVE_LATENCY, (str(float(objectives.latency_seconds)),)): objectives.latency_seconds,
        (metrics.VERSION_MISMATCH, ()): float(mismatched_pods(snapshot)),
    }
    for check in rollout.get("checks") or ():
        found[metrics.ROLLOUT_CHECK, (check["name"], _SPELLED[str(dig(check, "result"))])] = 1.0
    return found


_SPELLED = {"Pass": "pass", "Fail": "fail", "Waiting": "waiting", "NoData": "no_data", "Unknown": "unknown"}
