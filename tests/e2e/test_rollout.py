"""Canaries on real pods, through the real gateway, judged from the real Prometheus."""

import uuid
from collections.abc import Iterator

import live
import pytest
import rollouts
from rollouts import FAULTS, Echoes

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def echoes(platform: str) -> Iterator[Echoes]:
    """A namespace, and four versions of an echo model."""
    name = f"rollout-{uuid.uuid4().hex[:6]}"
    live.kubectl("create", "namespace", name)
    live.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    with live.forwarded(platform, "cloze-mlflow", 5000) as mlflow:
        versions = {kind: rollouts.publish(mlflow, name, **faults) for kind, faults in FAULTS.items()}
    yield Echoes(name, name, versions)
    live.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def served(echoes: Echoes) -> Echoes:
    """The good version serves."""
    live.apply(echoes.namespace, rollouts.deployment("echo", echoes.model, echoes.versions["good"]))
    rollouts.await_state(echoes.namespace, "echo", echoes.versions["good"], "Ready")
    return echoes


def test_promote_and_roll_back_under_load(served: Echoes) -> None:
    """A better version goes step by step to all requests; one that fails, and one that is slow, are taken back.

    Meanwhile every request is answered once and with its own answer, but for those that the failing version failed.
    """
    namespace, versions = served.namespace, served.versions
    with rollouts.flood("echo.example.com") as good:
        rollouts.ask_for(namespace, "echo", versions["better"])
        for step in ("1/3", "2/3"):
            rollouts.await_step(namespace, "echo", step)
        rollouts.await_state(namespace, "echo", versions["better"], "Ready")
    assert good["outcomes"] == {"200": good["sent"]}
    assert good["mixedUp"] == 0
    assert set(good["versions"]) == {versions["good"], versions["better"]}
    for kind, reason in (("failing", "ErrorRatioWorse"), ("slow", "LatencyWorse")):
        with rollouts.flood("echo.example.com") as bad:
            rollouts.ask_for(namespace, "echo", versions[kind])
            rejected = rollouts.await_rejection(namespace, "echo", versions[kind])
        assert rejected["reason"] == reason, rejected
        failed = bad["outcomes"].get("500", 0)
        assert bad["outcomes"] == {"200": bad["sent"] - failed} | ({"500": failed} if failed else {})
        assert bool(failed) == (kind == "failing")
        assert bad["mixedUp"] == 0
    told = rollouts.events(namespace, "echo")
    assert {"RolloutStarted", "CanaryStep", "Promoted", "RolledBack"} <= set(told)
