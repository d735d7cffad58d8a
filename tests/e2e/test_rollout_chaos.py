"""Rollouts under fire: no data, no Prometheus, people's commands, killed pods and operators, 20,000 requests."""

import json
import time
import uuid
from collections.abc import Iterator

import live
import pytest
import rollouts
from rollouts import FAULTS, Echoes

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(1800)]

#: A canary that waits for requests for long enough to look at it.
PATIENT = {"intervalSeconds": 5, "minimumRequests": 100, "inconclusiveLimit": 1000}


@pytest.fixture(scope="module")
def echoes(platform: str) -> Iterator[Echoes]:
    """A namespace, and versions of an echo model."""
    name = f"chaos-{uuid.uuid4().hex[:6]}"
    live.kubectl("create", "namespace", name)
    live.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    with live.forwarded(platform, "cloze-mlflow", 5000) as mlflow:
        kinds = {**FAULTS, "third": {"seed": 3}}
        versions = {kind: rollouts.publish(mlflow, name, **faults) for kind, faults in kinds.items()}
    yield Echoes(name, name, versions)
    live.kubectl("delete", "namespace", name, "--wait=false")


def serve(echoes: Echoes, name: str, **rollout: object) -> None:
    """The good version serves under a name."""
    spec = {"steps": rollouts.STEPS, "rollbackWindowSeconds": 30, "analysis": rollouts.ANALYSIS, **rollout}
    resource = rollouts.deployment(name, echoes.model, echoes.versions["good"], rollout=spec)
    live.apply(echoes.namespace, resource)
    rollouts.await_state(echoes.namespace, name, echoes.versions["good"], "Ready")


def remove(echoes: Echoes, name: str) -> None:
    live.kubectl("--namespace", echoes.namespace, "delete", "modeldeployment", name, "--wait=false")


def test_no_data_pauses_and_a_person_goes_on(echoes: Echoes) -> None:
    """Nobody sends anything: the canary is neither promoted nor taken back, until somebody says so."""
    namespace, versions = echoes.namespace, echoes.versions
    serve(echoes, "silent")
    rollouts.ask_for(namespace, "silent", versions["better"])
    seen = rollouts.await_state(namespace, "silent", versions["good"], "Paused")
    assert "NoData" in seen["rollout"]["message"]
    rollouts.command(namespace, "silent", "promote")
    rollouts.await_state(namespace, "silent", versions["better"], "Ready")
    remove(echoes, "silent")


def test_prometheus_away_is_never_a_pass(echoes: Echoes, platform: str) -> None:
    """While it is away the canary stays where it is, for longer than any limit; then it goes on by itself."""
    namespace, versions = echoes.namespace, echoes.versions
    serve(echoes, "blind", analysis={**rollouts.ANALYSIS, "onNoData": "Promote"})
    url = rollouts.operator_setting(platform, "CLOZE_PROMETHEUS_URL")
    with rollouts.flood("blind.example.com", 60):
        rollouts.set_operator(platform, "CLOZE_PROMETHEUS_URL", "http://127.0.0.1:9")
        rollouts.ask_for(namespace, "blind", versions["better"])
        rollouts.await_step(namespace, "blind", "1/3")
        seen = live.until(
            lambda: rollouts.status(namespace, "blind"),
            lambda seen: seen["conditions"].get("CanaryHealthy", "").startswith("Unknown Prometheus"),
            120,
            "the canary's health is unknown",
        )
        since = time.monotonic()
        while time.monotonic() - since < 60:
            seen = rollouts.status(namespace, "blind")
            assert (rollouts.stable(seen), seen["rollout"]["step"]) == (versions["good"], "1/3")
        rollouts.set_operator(platform, "CLOZE_PROMETHEUS_URL", url)
        rollouts.await_state(namespace, "blind", versions["better"], "Ready")
    remove(echoes, "blind")


def test_abort_and_retry(echoes: Echoes) -> None:
    """An aborted version isn't tried by itself, and is when somebody says so."""
    namespace, versions = echoes.namespace, echoes.versions
    serve(echoes, "regret")
    with rollouts.flood("regret.example.com", 60) as sent:
        rollouts.ask_for(namespace, "regret", versions["better"])
        rollouts.await_step(namespace, "regret", "1/3")
        rollouts.command(namespace, "regret", "abort")
        assert rollouts.await_rejection(namespace, "regret", versions["better"])["reason"] == "Aborted"
        rollouts.command(namespace, "regret", "retry")
        rollouts.await_state(namespace, "regret", versions["better"], "Ready")
    assert sent["outcomes"] == {"200": sent["sent"]}
    remove(echoes, "regret")


def test_another_version_in_mid_canary(echoes: Echoes) -> None:
    """It starts from its own first step, and the one before gets no request any more."""
    namespace, versions = echoes.namespace, echoes.versions
    serve(echoes, "hasty")
    with rollouts.flood("hasty.example.com", 60) as sent:
        rollouts.ask_for(namespace, "hasty", versions["better"])
        rollouts.await_step(namespace, "hasty", "2/3")
        rollouts.ask_for(namespace, "hasty", versions["third"])
        rollouts.await_step(namespace, "hasty", "1/3")
        rollouts.await_state(namespace, "hasty", versions["third"], "Ready")
    assert sent["outcomes"] == {"200": sent["sent"]}
    assert set(sent["versions"]) == {versions["good"], versions["better"], versions["third"]}
    remove(echoes, "hasty")


def test_operators_killed_in_each_phase(echoes: Echoes, platform: str) -> None:
    """Both operators are killed at each change of the rollout; it ends as it would have, and no request is lost."""
    namespace, versions = echoes.namespace, echoes.versions
    serve(echoes, "stubborn")
    seen: set[str] = set()
    with rollouts.flood("stubborn.example.com", 60) as sent:
        rollouts.ask_for(namespace, "stubborn", versions["better"])
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            status = rollouts.status(namespace, "stubborn")
            phase = json.dumps([(status.get("rollout") or {}).get(key) for key in ("state", "step")])
            if rollouts.stable(status) == versions["better"] and status["state"] == "Ready":
                break
            if phase not in seen:
                seen.add(phase)
                rollouts.kill_operators(platform)
        else:
            raise AssertionError(f"never promoted; phases seen: {seen}")
    assert len(seen) >= 4, seen
    assert sent["outcomes"] == {"200": sent["sent"]}
    assert sent["mixedUp"] == 0
    told = rollouts.events(namespace, "stubborn")
    assert told.count("Promoted") == 1
    remove(echoes, "stubborn")


def test_twenty_thousand_requests(echoes: Echoes) -> None:
    """Through a promotion, a pod that is deleted, a drain by scaling, and a rollback: none lost, none mixed up."""
    namespace, versions = echoes.namespace, echoes.versions
    serve(echoes, "busy")
    with rollouts.flood("busy.example.com", 120) as sent:
        began = time.monotonic()
        rollouts.ask_for(namespace, "busy", versions["better"])
        rollouts.await_state(namespace, "busy", versions["better"], "Ready")
        for pod in live.items(namespace, "pods", "cloze.dev/owner=busy")[:1]:
            live.kubectl("--namespace", namespace, "delete", "pod", pod["metadata"]["name"], "--wait")
        for replicas in (3, 1, 2):
            patch = json.dumps({"spec": {"replicas": replicas}})
            live.kubectl("--namespace", namespace, "patch", "modeldeployment", "busy", "--type=merge", "--patch", patch)
            live.until(
                lambda: rollouts.status(namespace, "busy"),
                lambda seen: seen.get("state") == "Ready" and seen.get("readyReplicas") == replicas,  # noqa: B023
                240,
                f"{replicas} replicas",
            )
        rollouts.ask_for(namespace, "busy", versions["slow"])
        assert rollouts.await_rejection(namespace, "busy", versions["slow"])["reason"] == "LatencyWorse"
        live.until(lambda: time.monotonic() - began, lambda passed: 120 * passed > 20_500, 400, "enough are sent")
    assert sent["sent"] >= 20_000
    assert sent["outcomes"] == {"200": sent["sent"]}
    assert sent["mixedUp"] == 0
    remove(echoes, "busy")
