"""Gauges of a ModelDeployment: what alerts and dashboards are told of its rollout and its promises."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

sys.path.insert(0, str(Path(__file__).parent))

from world import World, digest

from cloze_operator.analysis.checks import Evidence, Judgement, Result
from cloze_operator.decide import rollout
from cloze_operator.decide.answers import Loaded
from cloze_operator.decide.figures import figures
from cloze_operator.decide.serving import decide_serving
from cloze_operator.decide.snapshot import ServingSnapshot
from cloze_operator.telemetry import RolloutGauges

Document = dict[str, Any]

SPEC = {
    "model": {"name": "spam", "version": "1"},
    "traffic": {"provider": "GatewayAPI", "route": {"parentRefs": [{"name": "cloze"}]}},
    "rollout": {"steps": [{"weight": 10, "holdSeconds": 600}]},
    "objectives": {"latencySeconds": 0.1, "availability": 0.99},
}


def shown(snapshot: ServingSnapshot) -> dict[tuple[str, ...], float]:
    """By the metric's name and labels."""
    verdict, _ = decide_serving(snapshot)
    found = figures(snapshot, verdict)
    for metric, labels in found:
        assert metric.labels[:2] == ("namespace", "name")
        assert len(metric.labels) == 2 + len(labels)
    return {(metric.name.removeprefix("cloze_"), *labels): value for (metric, labels), value in found.items()}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Version 1 is served."""

    def judge(*_: Any, **__: Any) -> tuple[Judgement, ...]:
        check = {"message": "", "requests": 5, "step_requests": 5, "detectable": None, "patience_seconds": 60.0}
        patience: Any = {"on_no_data": "Pause", **check}
        results = {"errors": Result.PASS, "latency": Result.WAITING}
        return tuple(Judgement(name=name, result=result, **patience) for name, result in results.items())

    monkeypatch.setattr(rollout, "judge", judge)
    made = World(SPEC, evidence=lambda _: Evidence())
    made.settle()
    return made


def test_promises_are_always_told(world: World) -> None:
    """In the terms of the histogram's own boundaries, so that a rule can join them."""
    assert shown(world.snapshot()) == {
        ("rollout_in_progress",): 0.0,
        ("rollout_step",): 0.0,
        ("rollout_canary_weight_ratio",): 0.0,
        ("objective_availability_ratio",): 0.99,
        ("objective_latency_ratio",): 0.95,
        ("objective_latency_seconds", "0.1"): 0.1,
        ("version_mismatch_pods",): 0.0,
    }


def test_a_rollout_is_told_with_its_checks(world: World) -> None:
    """Its step and weight, and what each check says: one value at a time."""
    world.ask_for("2")
    world.settle()
    told = shown(world.snapshot())
    assert (told["rollout_in_progress",], told["rollout_step",], told["rollout_canary_weight_ratio",]) == (1, 1, 0.1)
    assert {key[1:] for key in told if key[0] == "rollout_check"} == {("errors", "pass"), ("latency", "waiting")}


def test_pods_that_have_loaded_something_else_are_counted(world: World) -> None:
    (pod,) = world.snapshot().pods
    loaded = {pod["metadata"]["name"]: Loaded("2", digest("2"))}
    assert shown(replace(world.snapshot(), loaded=loaded))["version_mismatch_pods",] == 1


def test_one_that_is_going_is_told_of_no_more(world: World) -> None:
    snapshot = world.snapshot()
    metadata = {**snapshot.resource["metadata"], "deletionTimestamp": "2026-03-01T12:00:00Z"}
    assert shown(replace(snapshot, resource={**snapshot.resource, "metadata": metadata})) == {}


def test_what_isnt_told_any_more_isnt_exported(world: World) -> None:
    """A check that has ended leaves no value behind, nor does a resource that is gone."""

    def exported() -> set[str]:
        samples = (sample for family in REGISTRY.collect() for sample in family.samples)
        return {sample.name for sample in samples if sample.labels.get("name") == "told"}

    gauges, key = RolloutGauges(), ("ml", "told")
    world.ask_for("2")
    world.settle()
    snapshot = world.snapshot()
    gauges.show(key, figures(snapshot, decide_serving(snapshot)[0]))
    assert "cloze_rollout_check" in exported()
    world.ask_for("1")
    world.settle()
    snapshot = world.snapshot()
    gauges.show(key, figures(snapshot, decide_serving(snapshot)[0]))
    assert "cloze_rollout_check" not in exported()
    assert "cloze_rollout_in_progress" in exported()
    gauges.show(key, {})
    assert exported() == set()
