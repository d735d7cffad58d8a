"""The demo's canaries: how they are followed, what is applied for them, and how they are told."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloze_api.deployment import ModelDeploymentSpec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hack" / "demo"))

import alerts  # noqa: E402 hack/ is no installed package
import canary  # noqa: E402
import report  # noqa: E402
import senders  # noqa: E402
import trials  # noqa: E402
import watch  # noqa: E402


def deployment(state: str, stable: str, weight: int = 0, role: str = "", conditions: Any = ()) -> watch.Resource:
    """A ModelDeployment on its way from version 1 to 2, whose canary has a weight or is over."""
    revision = {"version": "2", "role": role or "Canary", "weight": weight, "reason": "ErrorRatioWorse", "message": "m"}
    rollout = {
        "canaryVersion": "2",
        "state": "CanaryStep",
        "step": "1/3",
        "weight": weight,
        "checks": [{"name": "errors", "result": "Pass", "message": "0 of 9"}],
    }
    return {
        "kind": "ModelDeployment",
        "metadata": {"name": "spam"},
        "status": {
            "state": state,
            "stable": {"version": stable},
            "revisions": [revision],
            "conditions": list(conditions),
            **({"rollout": rollout} if weight else {}),
        },
    }


Following = Callable[..., canary.Course]


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Following:
    """Follows version 2 through these looks at its deployment; the last one stays."""

    def through(*looks: watch.Resource) -> canary.Course:
        seen = list(looks)
        monkeypatch.setattr(canary, "look", lambda namespace: [seen.pop(0) if len(seen) > 1 else seen[0]])
        monkeypatch.setattr(canary.time, "sleep", lambda seconds: None)
        course = canary.follow_canary("n", "spam", "2", 0.0, canary.Console(quiet=True))
        assert clock() == len(looks), "it wasn't followed to the end"
        return course

    # A second for each look.
    clock = iter(range(1000)).__next__
    monkeypatch.setattr(canary.time, "monotonic", clock)
    return through


def test_a_promotion_is_told_with_its_steps_and_its_time(follow: Following) -> None:
    """The decision counts, though it is followed until the pods have settled."""
    course = follow(
        deployment("Ready", "1"),
        deployment("Canary", "1", weight=10),
        deployment("Canary", "1", weight=10),
        deployment("Canary", "1", weight=50),
        deployment("RollingOut", "2"),
        deployment("Ready", "2"),
    )
    assert course.decision == canary.Decision(promoted=True)
    assert course.steps == (10, 50, 100)
    assert course.seconds == 4


def test_a_rollback_is_told_with_its_reason(follow: Following) -> None:
    """It is decided once no request goes to the version any more."""
    course = follow(
        deployment("Canary", "1", weight=10),
        deployment("Canary", "1", weight=10, role="Rejected"),
        deployment("RolledBack", "1", role="Rejected"),
    )
    assert course.decision == canary.Decision(promoted=False, reason="ErrorRatioWorse", message="m")
    assert course.steps == (10,)
    assert course.seconds == 2


def test_a_rollout_that_waits_for_a_person_ends_the_demo(follow: Following) -> None:
    """With the reason that the status has."""
    why = {"type": "Progressing", "status": "True", "reason": "Paused", "message": "too few requests"}
    with pytest.raises(watch.DemoError, match="version 2 is held: too few requests"):
        follow(deployment("Canary", "1", weight=10), deployment("Paused", "1", weight=10, conditions=[why]))


def test_a_rollout_of_another_version_may_wait_for_a_person() -> None:
    """What was held before the version was proposed is no word about it; a version that is blocked is no canary yet."""
    held = deployment("Paused", "1", weight=10)["status"]
    assert canary.is_held(held, "2")
    assert not canary.is_held(held, "3")
    assert canary.is_held({"state": "Blocked", "desired": {"version": "3"}}, "3")


def test_a_rollout_that_never_ends_ends_the_demo(follow: Following) -> None:
    """With where it hangs, and what says more."""
    with pytest.raises(watch.DemoError, match=r"CanaryStep 1/3, 10 % .*kubectl -n n describe modeldeployment spam"):
        follow(deployment("Canary", "1", weight=10))


def test_what_is_shown_is_of_the_version_that_is_tried() -> None:
    """While it isn't tried yet, it is said who serves; the figures of checks, which always change, make no new line."""
    status = deployment("Canary", "1", weight=10)["status"]
    assert canary.describe(status, "2") == "version 2: CanaryStep 1/3, 10 % of the requests; errors pass"
    assert canary.describe(status, "3") == "version 1 serves: Canary"


# ---------------------------------------------------------------- what is applied


@pytest.fixture
def program() -> Any:
    """`hack/demo/__main__.py`, not run."""
    spec = importlib.util.spec_from_file_location("demo_program", ROOT / "hack" / "demo" / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_canaries_meet_at_one_route(program: Any) -> None:
    """The host name and the model that requests and proposals name are those of the example."""
    serving = {
        one["metadata"]["name"]: one["spec"] for one in program.resources(gateway=True) if "model" in one["spec"]
    }
    spec = ModelDeploymentSpec.model_validate(serving[trials.MODEL])
    assert spec.model.name == trials.MODEL
    assert spec.traffic.route is not None
    assert spec.traffic.route.hostnames == [trials.HOST]
    assert [step.weight for step in spec.rollout.steps] == [10, 50]


def test_without_a_gateway_the_demo_is_one_without_canaries(program: Any) -> None:
    """What is applied still fits the schema, and asks for nothing that such a cluster lacks."""
    applied = program.resources(gateway=False)
    assert len(applied) == len(program.resources(gateway=True))
    for resource in applied:
        if resource["kind"] == "ModelDeployment":
            spec = ModelDeploymentSpec.model_validate(resource["spec"])
            assert (spec.traffic.route, spec.rollout.steps) == (None, [])


def test_what_is_missing_for_canaries_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of the variable; with a gateway nothing is missing."""
    monkeypatch.delenv("CLOZE_GATEWAY", raising=False)
    assert "CLOZE_GATEWAY" in trials.missing()
    monkeypatch.setenv("CLOZE_GATEWAY", "http://gateway")
    assert trials.missing() == ""


# ---------------------------------------------------------------- how it ends


def told(version: str, *, expected: bool, promoted: bool) -> trials.Rollout:
    """A rollout of which some was to be expected, and something became."""
    decision = canary.Decision(promoted, "" if promoted else "LatencyWorse", "" if promoted else "latency: worse")
    course = canary.Course(decision, (10,), 40.0)
    seen = senders.Tally(requests=60, failed=4, right=50, seconds=[0.2] * 56)
    return trials.Rollout(version, "a model", expected, course, seen, senders.Tally(), "ClozeRolloutRolledBack")


def ended(*rows: trials.Rollout, lost: int = 0, mixed_up: int = 0) -> trials.Story:
    """A story of these rollouts."""
    return trials.Story(list(rows), sent=3000, lost=lost, mixed_up=mixed_up, own_failures=4)


def test_the_demo_fails_when_its_rollouts_do(program: Any) -> None:
    """A harmful version that was promoted, or a request that got lost or another's answer, ends it with a sentence."""
    good, bad = told("2", expected=True, promoted=True), told("3", expected=False, promoted=False)
    program.check({}, ended(good, bad))
    program.check({}, None)
    for story, why in (
        (ended(good, replace(bad, expected=True)), "version 3 ended otherwise"),
        (ended(good, lost=2), "2 requests got lost"),
        (ended(good, mixed_up=1), "1 got another's answer"),
    ):
        with pytest.raises(watch.DemoError, match=why):
            program.check({}, story)


def test_the_table_says_why_and_what_became_of_all_requests(capsys: pytest.CaptureFixture[str]) -> None:
    """Per version: result, reason, steps, figures and alert; and of all together, how many got lost."""
    report.rollouts(ended(told("3", expected=False, promoted=False)), canary.Console(width=160))
    out = capsys.readouterr().out
    for word in ("v3", "LatencyWorse", "10 %", "60", "ClozeRolloutRolledBack", "v3: latency: worse", "0 got lost"):
        assert word in out


# ---------------------------------------------------------------- alerts


def alert(title: str, at: str, state: str = "firing", **labels: str) -> dict[str, Any]:
    """As Prometheus lists it."""
    own = {"alertname": title, "namespace": "n", "name": "spam", "severity": "ticket"}
    return {"labels": own | labels, "state": state, "activeAt": at}


def test_the_alerts_are_of_this_deployment_and_for_somebody() -> None:
    """Neither another one's, nor one that is pending, nor one that only keeps others quiet."""
    at = "2025-01-01T00:00:10.5Z"
    listed = [
        alert("B", at),
        alert("A", "2025-01-01T00:00:30Z", severity="page"),
        alert("A", at),
        alert("Other", at, name="part-of-speech"),
        alert("Pending", at, state="pending"),
        alert("Silencer", at, severity="none"),
    ]
    found = alerts.firing(listed, "n", "spam")
    assert [one.name for one in found] == ["A", "B"]
    assert found[0].since == found[1].since


def test_an_alert_from_before_isnt_told_as_new() -> None:
    found = [alerts.Alert("A", 5.0), alerts.Alert("B", 20.0)]
    assert alerts.tell(found, 10.0) == "A (goes on), B"
