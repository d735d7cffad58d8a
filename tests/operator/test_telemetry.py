"""What the operator exports of ModelDeployments."""

from prometheus_client import REGISTRY

from cloze_api import metrics
from cloze_operator.telemetry import RolloutGauges

KEY = ("telemetry", "spam")
LABELS = dict(zip(("namespace", "name"), KEY, strict=True))


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {**LABELS, **labels})


def test_rollouts_are_counted_from_zero() -> None:
    """An alert on the first rollback needs a series to have been there before it."""
    gauges = RolloutGauges()
    gauges.show(KEY, {(metrics.ROLLOUT_IN_PROGRESS, ()): 0.0})
    assert {value("cloze_rollouts_total", result=result) for result in metrics.ROLLOUT_RESULTS} == {0.0}
    gauges.show(KEY, {})


def test_a_deployment_that_is_gone_is_not_exported() -> None:
    """Neither its gauges nor its counters: alerts on it end, and names don't pile up."""
    gauges = RolloutGauges()
    gauges.show(KEY, {(metrics.ROLLOUT_CHECK, ("errors", "fail")): 1.0, (metrics.OBJECTIVE_AVAILABILITY, ()): 0.99})
    gauges.show(KEY, {(metrics.OBJECTIVE_AVAILABILITY, ()): 0.999})
    assert value("cloze_rollout_check", check="errors", result="fail") is None
    assert value("cloze_objective_availability_ratio") == 0.999
    gauges.show(KEY, {})
    assert value("cloze_objective_availability_ratio") is None
    assert value("cloze_rollouts_total", result="promoted") is None
