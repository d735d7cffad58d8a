"""The declarations of metrics: what those who query them rely on."""

import itertools
import re

import pytest

from cloze_api import metrics


def test_request_durations_are_told_apart_where_canaries_are_judged() -> None:
    """From 2 ms to 1 s two boundaries are at most 15 % apart; coarse outside, so that series stay few."""
    bounds = metrics.REQUEST_DURATION.buckets
    fine = [bound for bound in bounds if 0.002 <= bound <= 1]
    assert (fine[0], fine[-1]) == (0.002, 1.0)
    assert all(upper / lower <= 1.15 for lower, upper in itertools.pairwise(fine))
    assert len(bounds) < 64
    assert bounds[-1] == 600, "the longest timeout"


@pytest.mark.parametrize("metric", [each for each in metrics.ALL if each.kind == "histogram"])
def test_boundaries_grow(metric: metrics.Metric) -> None:
    """A histogram with boundaries out of order can't be made."""
    assert metric.buckets
    assert list(metric.buckets) == sorted(set(metric.buckets))


@pytest.mark.parametrize("seconds", metrics.OBJECTIVE_SECONDS)
def test_an_objective_is_a_boundary(seconds: float) -> None:
    """Else how many requests met it isn't known."""
    assert seconds in metrics.REQUEST_DURATION.buckets


def test_boundaries_are_readable() -> None:
    """At most three significant digits: they are typed in queries."""
    assert all(float(f"{bound:.3g}") == bound for bound in metrics.REQUEST_DURATION.buckets)


#: Values that a label may take: of a closed list, or of what the cluster's owners name themselves.
BOUNDED = {
    *("kind", "state", "stage", "result", "status", "status_class", "length", "route", "operation", "task"),
    # A check of spec.rollout.analysis; a label of a model, up to PREDICTION_LABELS_MAX; an objective's boundary;
    # a reason of ours.
    *("check", "label", "le", "reason"),
    # What a server's settings declare, up to 50 values.
    *("key", "value"),
    # Objects of the cluster and of the registry.
    *("namespace", "name", "model", "version", "digest", "deployment", "revision"),
}
_UNITS = {
    *("seconds", "tokens", "ratio", "bytes", "nats", "requests", "pods", "inputs"),
    # Things that are counted, and states that are 0 or 1.
    *("predictions", "reconciles", "failures", "errors", "rollouts", "events", "evictions", "spans", "connections"),
    *("splits", "checkpoints", "rollbacks", "batches", "updates"),
}
_STATES = {
    "state",
    "stage",
    "step",
    "check",
    "progress",
    "leader",
    "depth",
    "confidence",
    "model",
    "second",
    "norm",
    "perplexity",
}


@pytest.mark.parametrize("metric", metrics.ALL, ids=lambda metric: metric.name)
def test_name_follows_prometheus_conventions(metric: metrics.Metric) -> None:
    """Prefix, snake case, a base unit last, nothing that the library adds (Prometheus, "Metric and label naming")."""
    assert re.fullmatch(r"cloze(_[a-z]+)+", metric.name)
    words = metric.name.split("_")
    assert not {"total", "count", "sum", "bucket", "info"} & set(words)
    assert not {"ms", "milliseconds", "minutes", "hours", "percent", "kilobytes", "megabytes", "mb"} & set(words)
    assert words[-1] in _UNITS | _STATES
    assert metric.help.endswith(".")


@pytest.mark.parametrize("metric", metrics.ALL, ids=lambda metric: metric.name)
def test_labels_are_bounded(metric: metrics.Metric) -> None:
    """Nothing of a request: no id, no text, no address; and no name that Prometheus gives to its targets."""
    assert set(metric.labels) <= BOUNDED
    assert not {"job", "instance", "pod", "container"} & set(metric.labels)
    # Only the operator, which tells of others' resources, has the label that a target has too: it is scraped with
    # honor_labels.
    if "namespace" in metric.labels:
        assert "name" in metric.labels
    assert metric.kind == "histogram" or "le" not in metric.labels or metric is metrics.OBJECTIVE_LATENCY


def test_metrics_are_declared_once() -> None:
    """One name, one meaning."""
    assert len({metric.name for metric in metrics.ALL}) == len(metrics.ALL)
