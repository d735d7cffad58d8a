"""Shares of the requests: they add up, nobody is sent where nobody answers, and pods are in proportion."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from world import World

from cloze_api.deployment import ModelDeploymentSpec
from cloze_operator.decide.arms import arm
from cloze_operator.decide.record import Record
from cloze_operator.decide.shares import plan
from cloze_operator.decide.traffic import weights

Document = dict[str, Any]

MODEL = {"name": "spam", "version": "1"}
ROUTE = {"provider": "GatewayAPI", "route": {"parentRefs": [{"name": "cloze"}]}}


def gateway(*shares: int, **spec: Any) -> Document:
    return {"model": MODEL, "traffic": ROUTE, "rollout": {"steps": [{"weight": share} for share in shares]}, **spec}


def ratio(*replicas: int, **spec: Any) -> Document:
    return {"model": MODEL, "rollout": {"steps": [{"replicas": number} for number in replicas]}, **spec}


def rising(least: int, most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(least, most), max_size=6).map(sorted)


@given(shares=rising(1, 99), full=st.integers(1, 200))
def test_a_canary_has_pods_in_proportion_to_its_weight(shares: list[int], full: int) -> None:
    """As many of all as its share of the requests is, and one at least; the last step is everything."""
    *steps, last = plan(ModelDeploymentSpec.model_validate(gateway(*shares)), full)
    assert (last.weight, last.pods, last.judged) == (100, full, False)
    for share, step in zip(shares, steps, strict=True):
        assert step.weight == share
        assert 1 <= step.pods <= full
        assert 0 <= step.pods - full * share / 100 < 1
        assert step.judged


@given(replicas=rising(1, 50), full=st.integers(1, 50))
def test_pods_stand_for_weights_without_a_gateway(replicas: list[int], full: int) -> None:
    """The canary's come on top of all the others, so what it gets is its share of the sum."""
    *steps, last = plan(ModelDeploymentSpec.model_validate(ratio(*replicas)), full)
    assert (last.weight, last.pods) == (100, full)
    for number, step in zip(replicas, steps, strict=True):
        assert step.pods == min(number, full)
        assert abs(step.weight - 100 * step.pods / (step.pods + full)) <= 0.5
        assert step.weight <= 50


@pytest.mark.parametrize("spec", [gateway(10, 50, replicas=0), ratio(1, 2, replicas=0)])
def test_nothing_is_divided_among_no_pods(spec: Document) -> None:
    assert [share.weight for share in plan(ModelDeploymentSpec.model_validate(spec), 0)] == [100]


@settings(max_examples=60, deadline=None)
@given(
    shares=st.lists(st.integers(1, 99), min_size=1, max_size=4).map(sorted),
    full=st.integers(1, 12),
    step=st.integers(0, 5),
    stable=st.integers(0, 12),
    canary=st.integers(0, 12),
    retired=st.booleans(),
    entered=st.booleans(),
    by_gateway=st.booleans(),
)
def test_weights_add_up_and_none_goes_where_nobody_answers(
    *, shares: list[int], full: int, step: int, stable: int, canary: int, retired: bool, entered: bool, by_gateway: bool
) -> None:
    """Whatever is ready at whichever step of a rollout, and whatever is still on its way out."""
    spec = gateway(*shares, replicas=full) if by_gateway else ratio(*shares, replicas=full)
    world = World(spec)
    world.settle()
    world.ask_for("2")
    world.settle()
    record = world.record
    former = {"00000000": world.now} if retired else {}
    record = Record(
        stable=record.stable,
        canary=record.canary,
        step=step,
        since=world.now if entered else None,
        retired=former,
    )
    _ready(world, record.stable, stable)
    _ready(world, record.canary, canary)
    snapshot = replace(world.snapshot(), record=record)
    given_ = weights(snapshot)
    assert sum(given_.values()) == 100
    assert all(0 <= weight <= 100 for weight in given_.values())
    found, part = arm(snapshot, record.canary).ready, given_[record.canary]
    if not found:
        assert part == 0
    if not entered:
        # Beyond the share that its pods are enough for, nothing is given to it.
        assert part == 0 or any(
            found >= share.pods and part == share.weight for share in plan(snapshot.parsed.spec, full)
        )


def _ready(world: World, revision: str, count: int) -> None:
    child = world.children["Deployment", f"spam-{revision}"]
    child["spec"]["replicas"] = count
    child["status"]["availableReplicas"] = count
