"""Rollouts in a cluster in miniature: from a new version to its promotion, or back."""

import functools
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from world import KilledError, World

from cloze_api.rollout import Analysis, OnNoData
from cloze_operator.analysis.burn import Burn
from cloze_operator.analysis.checks import Evidence, Judgement, Result
from cloze_operator.decide import rollout
from cloze_operator.desired.facts import Facts

Document = dict[str, Any]

ROUTE = {"provider": "GatewayAPI", "route": {"parentRefs": [{"name": "cloze", "namespace": "gateway"}]}}
STEPS = [{"weight": 10, "holdSeconds": 30}, {"weight": 50, "holdSeconds": 30}]
GATEWAY = {
    "model": {"name": "spam", "version": "1"},
    "replicas": 4,
    "traffic": ROUTE,
    "rollout": {"steps": STEPS, "rollbackWindowSeconds": 60},
}
RATIO = {
    "model": {"name": "spam", "version": "1"},
    "replicas": 4,
    "rollout": {
        "steps": [{"replicas": 1, "holdSeconds": 30}, {"replicas": 2, "holdSeconds": 30}],
        "rollbackWindowSeconds": 60,
    },
}


def judgement(result: Result, *, name: str = "errors", on_no_data: OnNoData = OnNoData.PAUSE) -> Judgement:
    return Judgement(
        name=name,
        result=result,
        message="2 % of 500",
        requests=500,
        step_requests=500,
        detectable=0.01,
        on_no_data=on_no_data,
        patience_seconds=60,
    )


class Oracle:
    """What the checks say; tests of the checks themselves are elsewhere."""

    def __init__(self) -> None:
        self.results: tuple[Judgement, ...] = (judgement(Result.PASS),)
        self.burning: set[str] = set()
        self.since: list[datetime] = []

    def judge(self, _: Analysis, __: Evidence, *, since: datetime) -> tuple[Judgement, ...]:
        self.since.append(since)
        return self.results

    def burn(self, _: Evidence, arm: str, **__: object) -> Burn:
        return Burn(arm in self.burning, 0.1, 100, 10, f"10 of 100 ({arm})")


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    """Says what the test wants the checks to say."""
    found = Oracle()
    monkeypatch.setattr(rollout, "judge", found.judge)
    monkeypatch.setattr(rollout, "fast_burn", found.burn)
    return found


Start = Callable[..., World]


@pytest.fixture
def start(oracle: Oracle) -> Start:
    """A world in which version 1 serves."""
    assert oracle

    def make(spec: Document | None = None, **more: Any) -> World:
        world = World(spec or GATEWAY, evidence=lambda _: Evidence(), **more)
        world.settle()
        return world

    return make


# ---------------------------------------------------------------- the ordinary way


def test_the_first_version_serves_without_a_canary(start: Start) -> None:
    """There is nothing to compare it with."""
    world = start()
    assert (world.weights(), world.pods_of("1"), world.state) == ({"1": 100}, 4, "Ready")
    assert world.status["stable"]["version"] == "1"
    assert world.condition("Progressing") == ("False", "RolloutComplete")


def test_a_good_version_goes_step_by_step(start: Start) -> None:
    """10, 50 and 100 per cent, pods in proportion, each share for its time at least."""
    world = start()
    world.ask_for("2")
    world.settle()
    assert (world.weights(), world.pods_of("2"), world.state) == ({"1": 90, "2": 10}, 1, "Canary")
    assert world.status["rollout"]["step"] == "1/3"
    assert world.status["rollout"]["canaryVersion"] == "2"
    world.after(25)
    assert world.weights() == {"1": 90, "2": 10}
    world.after(10)
    assert (world.weights(), world.pods_of("2")) == ({"1": 50, "2": 50}, 2)
    world.after(40)
    assert (world.weights(), world.pods_of("2"), world.pods_of("1")) == ({"2": 100}, 4, 4)
    assert (world.status["stable"]["version"], world.ended, world.state) == ("2", ["promoted"], "Ready")
    assert world.reasons() == ["RolloutStarted", "CanaryStep", "CanaryStep", "CanaryStep", "Promoted"]


def test_the_former_version_keeps_its_pods_for_the_window(start: Start) -> None:
    """Then they go, and its Service with them; the ControllerRevision stays as history."""
    world = promoted(start)
    world.after(40)
    assert world.pods_of("1") == 4
    world.after(60)
    assert world.pods_of("1") == 0
    assert [entry["role"] for entry in world.status["revisions"]] == ["Stable", ""]
    assert len([kind for kind, _ in world.children if kind == "Service"]) == 2
    assert world.record.retired == {}


def promoted(start: Start, spec: Document | None = None, **more: Any) -> World:
    """A world in which version 2 has just been promoted over version 1."""
    world = start(spec, **more)
    world.ask_for("2")
    for _ in range(40):
        if world.ended:
            return world
        world.after(5)
    raise AssertionError("it never got promoted")


def test_history_is_bounded(start: Start) -> None:
    """Revisions in use and the last others are kept."""
    spec = {**GATEWAY, "rollout": {"rollbackWindowSeconds": 15, "revisionHistoryLimit": 2}}
    world = start(spec, versions={str(number) for number in range(1, 9)})
    for version in range(2, 9):
        world.ask_for(str(version))
        world.after(60)
    assert [entry["version"] for entry in world.status["revisions"]] == ["8", "7", "6"]


def test_without_steps_a_version_takes_over_when_it_is_ready(start: Start) -> None:
    """And not before: until then the former one has all requests."""
    world = start({**GATEWAY, "rollout": {}}, broken={"2"})
    world.ask_for("2")
    world.after(30)
    assert (world.weights(), world.pods_of("2")) == ({"1": 100}, 4)
    world.heal("2")
    world.settle()
    assert (world.weights(), world.pods_of("1")) == ({"2": 100}, 4)


def test_replicas_stand_for_weights_without_a_gateway(start: Start) -> None:
    """The canary's pods come on top of the stable ones, so nothing is taken away from them."""
    world = start(RATIO)
    world.ask_for("2")
    world.settle()
    assert world.weights() == {"1": 80, "2": 20}
    assert world.status["rollout"]["approximate"]
    world.after(35)
    assert world.weights() == {"1": 67, "2": 33}
    world.after(35)
    assert (world.weights(), world.pods_of("1")) == ({"2": 100}, 4)
    world.after(100)
    assert (world.pods_of("1"), world.weights()) == (0, {"2": 100})


def test_a_former_version_gets_no_requests_from_a_new_canarys_service(start: Start) -> None:
    """A Service before all pods is widened only when no others than the two compared have any."""
    world = promoted(start, RATIO)
    world.ask_for("3")
    world.settle()
    assert world.weights() == {"2": 100}
    world.after(40)
    assert world.weights() == {"2": 80, "3": 20}
    assert all(set(weights) <= {"2", "3"} for weights in world.served if "3" in weights)


def test_blue_green_shows_the_new_version_before_it_serves(start: Start) -> None:
    """All its pods stand behind the preview Service for the given time."""
    world = start({**GATEWAY, "rollout": {"strategy": "BlueGreen", "previewSeconds": 60}})
    world.ask_for("2")
    world.settle()
    preview = world.children["Service", "spam-preview"]["spec"]["selector"]["cloze.dev/revision"]
    assert (world.version_of(preview), world.pods_of("2"), world.weights()) == ("2", 4, {"1": 100})
    world.after(50)
    assert world.weights() == {"1": 100}
    world.after(15)
    assert world.weights() == {"2": 100}


# ---------------------------------------------------------------- canaries that fail


@pytest.mark.parametrize(
    ("name", "reason"), [("errors", "ErrorRatioWorse"), ("latency", "LatencyWorse"), ("mine", "QueryFailed")]
)
def test_a_canary_that_fails_a_check_is_rolled_back(start: Start, oracle: Oracle, name: str, reason: str) -> None:
    """At once, not at the end of the step; its pods stay until nothing goes to them, and the registry is told."""
    world = start()
    world.ask_for("2")
    world.after(10)
    oracle.results = (judgement(Result.FAIL, name=name), judgement(Result.WAITING, name="other"))
    world.settle()
    assert (world.weights(), world.pods_of("2"), world.state) == ({"1": 100}, 1, "RolledBack")
    assert world.condition("Progressing") == ("False", "RolledBack")
    assert world.condition("Ready") == ("True", "AllReplicasReady")
    assert reason in world.quarantined["2"]
    assert (world.ended, world.reasons()[-1]) == (["rolled_back"], "RolledBack")
    world.after(30)
    assert (world.pods_of("2"), world.weights()) == (0, {"1": 100})


def test_a_failed_canary_is_not_tried_again_by_itself(start: Start, oracle: Oracle) -> None:
    """Not after an hour, and not by another ModelDeployment that sees the tag; by command it is."""
    world = start()
    world.ask_for("2")
    world.settle()
    oracle.results = (judgement(Result.FAIL),)
    world.settle()
    oracle.results = (judgement(Result.PASS),)
    world.after(3600, step=60)
    assert (world.pods_of("2"), world.ended) == (0, ["rolled_back"])
    world.annotations = {"cloze.dev/rollout": "retry"}
    world.settle()
    assert (world.weights(), world.annotations) == ({"1": 90, "2": 10}, {})
    world.after(120)
    assert world.weights() == {"2": 100}


def test_a_quarantined_version_is_not_tried(start: Start) -> None:
    """Whoever put the tag there."""
    world = start(quarantined={"2": "ErrorRatioWorse: elsewhere"})
    world.ask_for("2")
    world.after(30)
    assert (world.pods_of("2"), world.condition("Progressing")) == (0, ("False", "Quarantined"))
    world.annotations = {"cloze.dev/rollout": "retry"}
    world.after(120)
    assert world.weights() == {"2": 100}


def test_a_canary_that_never_gets_ready_is_rolled_back(start: Start) -> None:
    """After the deadline; it never got a request. The version may be good, so the registry isn't told."""
    spec = {**GATEWAY, "rollout": {"steps": STEPS, "progressDeadlineSeconds": 60}}
    world = start(spec, broken={"2"})
    world.ask_for("2")
    world.after(50)
    assert world.condition("Progressing") == ("True", "PreparingStep")
    world.after(20)
    assert world.record.rejected[world.status["revisions"][0]["name"]].reason == "ProgressDeadlineExceeded"
    assert all(set(weights) <= {"1"} for weights in world.served)
    assert world.quarantined == {}


def test_a_crash_looping_canary_is_rolled_back_at_once(start: Start) -> None:
    world = start(crashing={"2"})
    world.ask_for("2")
    world.settle()
    assert (world.state, world.ended) == ("RolledBack", ["rolled_back"])
    assert "CanaryCrashLoop" in world.quarantined["2"]


def test_a_canary_without_ready_pods_gets_no_requests(start: Start) -> None:
    """Nobody would answer them. When one is ready again, the step begins anew."""
    world = start()
    world.ask_for("2")
    world.after(20)
    world.fail("2")
    world.settle()
    assert (world.weights(), world.record.since) == ({"1": 100}, None)
    world.heal("2")
    world.settle()
    assert world.weights() == {"1": 90, "2": 10}
    world.after(20)
    assert world.weights() == {"1": 90, "2": 10}


def test_on_failure_pause_keeps_the_share(start: Start, oracle: Oracle) -> None:
    """A person looks at it and says how it goes on."""
    world = start({**GATEWAY, "rollout": {"steps": STEPS, "onFailure": "Pause"}})
    world.ask_for("2")
    world.settle()
    oracle.results = (judgement(Result.FAIL),)
    world.after(60)
    assert (world.weights(), world.state, world.ended) == ({"1": 90, "2": 10}, "Paused", [])
    world.annotations = {"cloze.dev/rollout": "abort"}
    world.settle()
    assert (world.weights(), world.ended) == ({"1": 100}, ["aborted"])


# ---------------------------------------------------------------- nothing to judge by


@pytest.mark.parametrize(
    ("rule", "weights", "state"),
    [
        (OnNoData.PAUSE, {"1": 90, "2": 10}, "Paused"),
        (OnNoData.ROLLBACK, {"1": 100}, "RolledBack"),
        (OnNoData.PROMOTE, {"1": 50, "2": 50}, "Canary"),
    ],
)
def test_a_step_without_requests_ends_by_the_rule(
    start: Start, oracle: Oracle, rule: OnNoData, weights: dict[str, int], state: str
) -> None:
    """Not before the limit of patience beyond the step's time."""
    world = start()
    oracle.results = (judgement(Result.WAITING, on_no_data=rule),)
    world.ask_for("2")
    world.after(80)
    assert (world.weights(), world.state) == ({"1": 90, "2": 10}, "Canary")
    world.after(20)
    assert (world.weights(), world.state) == (weights, state)


def test_an_unknown_result_is_never_a_pass(start: Start, oracle: Oracle) -> None:
    """Prometheus may be away for hours, whatever the rule for missing requests says; then it goes on by itself."""
    world = start()
    oracle.results = (judgement(Result.UNKNOWN, on_no_data=OnNoData.PROMOTE), judgement(Result.PASS, name="latency"))
    world.ask_for("2")
    world.after(3600, step=30)
    assert (world.weights(), world.ended) == ({"1": 90, "2": 10}, [])
    assert world.condition("CanaryHealthy") == ("Unknown", "CheckUnknown")
    oracle.results = (judgement(Result.PASS),)
    world.after(80)
    assert world.weights() == {"2": 100}


def test_resume_goes_on_without_the_missing_requests(start: Start, oracle: Oracle) -> None:
    """For the paused step alone: the next one waits for its own."""
    world = start()
    oracle.results = (judgement(Result.WAITING),)
    world.ask_for("2")
    world.after(120)
    assert world.state == "Paused"
    world.annotations = {"cloze.dev/rollout": "resume"}
    world.settle()
    assert world.weights() == {"1": 50, "2": 50}
    world.after(120)
    assert (world.weights(), world.state) == ({"1": 50, "2": 50}, "Paused")


# ---------------------------------------------------------------- people


def test_promote_skips_the_remaining_steps(start: Start, oracle: Oracle) -> None:
    world = start()
    oracle.results = (judgement(Result.WAITING),)
    world.ask_for("2")
    world.settle()
    world.annotations = {"cloze.dev/rollout": "promote"}
    world.settle()
    assert (world.weights(), world.ended, world.annotations) == ({"2": 100}, ["promoted"], {})


def test_pause_and_resume(start: Start) -> None:
    world = start()
    world.ask_for("2")
    world.settle()
    world.annotations = {"cloze.dev/rollout": "pause"}
    world.after(300)
    assert (world.weights(), world.state) == ({"1": 90, "2": 10}, "Paused")
    world.annotations = {"cloze.dev/rollout": "resume"}
    world.after(100)
    assert world.weights() == {"2": 100}


def test_a_paused_spec_holds_everything_but_failures(start: Start, oracle: Oracle) -> None:
    world = start()
    world.ask_for("2")
    world.settle()
    world.spec = {**world.spec, "rollout": {**world.spec["rollout"], "paused": True}}
    world.after(300)
    assert (world.weights(), world.state) == ({"1": 90, "2": 10}, "Paused")
    oracle.results = (judgement(Result.FAIL),)
    world.settle()
    assert world.weights() == {"1": 100}


@pytest.mark.parametrize("command", ["promote", "resume", "retry", "jump", "abort", "pause"])
def test_a_command_that_means_nothing_is_said_and_taken_away(start: Start, command: str) -> None:
    world = start(annotations={"cloze.dev/rollout": command})
    world.settle()
    assert (world.reasons(), world.annotations, world.weights()) == (["CommandIgnored"], {}, {"1": 100})


def test_abort_after_the_promotion_takes_it_back(start: Start) -> None:
    """The former pods are still there, so it is at once."""
    world = promoted(start)
    world.annotations = {"cloze.dev/rollout": "abort"}
    world.settle()
    assert (world.weights(), world.status["stable"]["version"]) == ({"1": 100}, "1")
    assert world.ended == ["promoted", "aborted"]
    assert world.quarantined == {}


# ---------------------------------------------------------------- changes on the way


def test_another_version_in_mid_canary_starts_over(start: Start) -> None:
    """From the new one's first step; nothing more goes to the one before."""
    world = start()
    world.ask_for("2")
    world.after(40)
    world.ask_for("3")
    world.settle()
    assert (world.weights(), world.ended) == ({"1": 90, "3": 10}, ["superseded"])
    world.after(20)
    assert world.pods_of("2") == 0
    world.after(60)
    assert (world.weights(), world.ended) == ({"3": 100}, ["superseded", "promoted"])


def test_the_old_version_in_mid_canary_withdraws_it(start: Start) -> None:
    """Without a word against the version that was tried."""
    world = start()
    world.ask_for("2")
    world.settle()
    world.ask_for("1")
    world.settle()
    assert (world.weights(), world.ended, world.state) == ({"1": 100}, ["superseded"], "Ready")
    assert world.record.rejected == {}
    world.ask_for("2")
    world.settle()
    assert world.weights() == {"1": 90, "2": 10}


def test_going_back_within_the_window_is_instant(start: Start) -> None:
    """The former pods are all there and were good until a moment ago."""
    world = promoted(start)
    world.ask_for("1")
    world.settle()
    assert (world.weights(), world.status["stable"]["version"]) == ({"1": 100}, "1")


def test_a_new_image_is_rolled_out_like_a_new_version(start: Start) -> None:
    world = start()
    world.spec = {**world.spec, "runtime": {"image": "serve:2"}}
    world.settle()
    assert world.record.canary
    assert world.status["rollout"]["step"] == "1/3"


def test_more_replicas_are_no_rollout(start: Start) -> None:
    """A size isn't part of a revision."""
    world = start()
    world.spec = {**world.spec, "replicas": 6}
    world.settle()
    assert (world.pods_of("1"), world.record.canary) == (6, "")


def test_a_version_that_serves_nobody_is_replaced_without_a_canary(start: Start) -> None:
    """There is nothing to protect, and nothing to compare with."""
    world = start(broken={"1"})
    world.ask_for("2")
    world.settle()
    assert world.weights() == {"2": 100}


# ---------------------------------------------------------------- the gateway


def test_a_step_waits_for_the_gateway(start: Start) -> None:
    """Until it says that it does what the route says, the share isn't in force, and no time passes for the step."""
    world = start()
    world.route_accepted = False
    world.ask_for("2")
    world.after(120)
    assert world.record.since is None
    assert "RouteRefused" in world.status["rollout"]["message"]
    assert world.condition("Ready")[0] == "False"
    world.route_accepted = True
    world._settle(world.children["HTTPRoute", "spam"])
    world.settle()
    assert world.record.since == world.now


def test_the_stable_pods_stay_until_the_shift_is_verified(start: Start, oracle: Oracle) -> None:
    """In every state on the way, whoever gets requests has pods for them."""
    world = start()
    world.ask_for("2")
    world.after(200)
    assert all(sum(weights.values()) in (0, 99, 100, 101) for weights in world.served)
    assert all(world.served[place] for place in range(8, len(world.served)))
    assert oracle.since


# ---------------------------------------------------------------- after the promotion


def test_a_promoted_version_that_burns_is_compared_and_rolled_back(start: Start, oracle: Oracle) -> None:
    """Half of the requests go back at once; when the comparison proves it worse, all of them."""
    world = promoted(start)
    oracle.burning, oracle.results = {"canary"}, (judgement(Result.WAITING),)
    world.settle()
    assert (world.weights(), world.state) == ({"1": 50, "2": 50}, "Probing")
    oracle.results = (judgement(Result.FAIL),)
    world.settle()
    assert (world.weights(), world.status["stable"]["version"]) == ({"1": 100}, "1")
    assert world.ended == ["promoted", "rolled_back"]
    assert "FastBurn" in world.quarantined["2"]
    world.after(60)
    assert world.pods_of("2") == 0


def test_when_both_burn_nothing_moves(start: Start, oracle: Oracle) -> None:
    """It is something that both need, and a rollback would help nobody."""
    world = promoted(start)
    oracle.burning, oracle.results = {"canary"}, (judgement(Result.WAITING),)
    world.settle()
    oracle.burning = {"canary", "stable"}
    world.settle()
    assert (world.weights(), world.reasons()[-1]) == ({"2": 100}, "BothVersionsBurn")
    world.after(30)
    assert world.weights() == {"2": 100}


def test_a_burn_that_ends_is_forgotten(start: Start, oracle: Oracle) -> None:
    world = promoted(start)
    oracle.burning, oracle.results = {"canary"}, (judgement(Result.WAITING),)
    world.settle()
    oracle.burning, oracle.results = set(), (judgement(Result.PASS),)
    world.settle()
    assert (world.weights(), world.reasons()[-1]) == ({"2": 100}, "BurnEnded")


# ---------------------------------------------------------------- aliases

FOLLOWING = {**GATEWAY, "model": {"name": "spam", "follow": {"candidateAlias": "challenger", "alias": "champion"}}}


def test_a_promoted_alias_moves_after_the_promotion_only(start: Start) -> None:
    world = start(FOLLOWING, aliases={"challenger": "1"})
    assert world.aliases["champion"] == "1"
    world.aliases["challenger"] = "2"
    world.after(40)
    assert (world.weights(), world.aliases["champion"]) == ({"1": 50, "2": 50}, "1")
    world.after(40)
    assert (world.weights(), world.aliases["champion"]) == ({"2": 100}, "2")


def test_what_was_promoted_before_serves_while_the_candidate_is_tried(start: Start) -> None:
    """A ModelDeployment that is made anew doesn't switch to an untried version."""
    world = start(FOLLOWING, aliases={"champion": "1", "challenger": "2"})
    assert world.weights() == {"1": 90, "2": 10}
    assert all("1" in weights for weights in world.served if weights)


def test_a_rolled_back_candidate_leaves_the_alias(start: Start, oracle: Oracle) -> None:
    world = start(FOLLOWING, aliases={"challenger": "1"})
    world.aliases["challenger"] = "2"
    world.settle()
    oracle.results = (judgement(Result.FAIL),)
    world.after(30)
    assert (world.weights(), world.aliases) == ({"1": 100}, {"challenger": "2", "champion": "1"})


def test_a_promotion_that_is_taken_back_moves_the_alias_back(start: Start, oracle: Oracle) -> None:
    world = start(FOLLOWING, aliases={"challenger": "1"})
    world.aliases["challenger"] = "2"
    world.after(80)
    assert world.aliases["champion"] == "2"
    oracle.burning, oracle.results = {"canary"}, (judgement(Result.FAIL),)
    world.settle()
    assert (world.weights(), world.aliases["champion"]) == ({"1": 100}, "1")


# ---------------------------------------------------------------- autoscaling

SCALED = {
    **GATEWAY,
    "replicas": 2,
    "resources": {"requests": {"cpu": "1"}},
    "autoscaling": {"minReplicas": 2, "maxReplicas": 10},
}


def test_the_autoscaler_decides_on_the_size(start: Start) -> None:
    """The canary gets pods in proportion to what the load made of the stable revision, which isn't shrunk meanwhile."""
    world = start(SCALED)
    deployment = next(child for (kind, _), child in world.children.items() if kind == "Deployment")
    deployment["spec"]["replicas"] = 8
    world._settle(deployment)
    world.settle()
    assert world.pods_of("1") == 8
    scaler = world.children["HorizontalPodAutoscaler", "spam"]
    assert scaler["spec"]["minReplicas"] == 2
    world.ask_for("2")
    world.after(35)
    assert (world.pods_of("1"), world.pods_of("2")) == (8, 4)
    assert world.children["HorizontalPodAutoscaler", "spam"]["spec"]["minReplicas"] == 8
    world.after(40)
    scaler = world.children["HorizontalPodAutoscaler", "spam"]["spec"]
    assert world.version_of(scaler["scaleTargetRef"]["name"].removeprefix("spam-")) == "2"
    assert (world.pods_of("2"), scaler["minReplicas"]) == (8, 2)


# ---------------------------------------------------------------- being killed


def end_of(world: World) -> tuple[object, ...]:
    """What must be the same however often the operator was killed."""
    return (
        world.weights(),
        world.pods_of("1"),
        world.pods_of("2"),
        sorted(world.children),
        world.status["stable"]["version"],
        sorted(entry.reason for entry in world.record.rejected.values()),
        world.aliases,
        world.quarantined,
    )


def end_with(kills: Iterable[int], *, good: bool, ratio: bool) -> tuple[object, ...]:
    """The end of a rollout whose operator is killed after so many writes, each time."""
    oracle = Oracle()
    oracle.results = (judgement(Result.PASS if good else Result.FAIL),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "judge", oracle.judge)
        patch.setattr(rollout, "fast_burn", oracle.burn)
        world = World(RATIO if ratio else FOLLOWING, evidence=lambda _: Evidence(), aliases={"challenger": "1"})
        world.settle()
        if ratio:
            world.ask_for("2")
        world.aliases["challenger"] = "2"
        for writes in kills:
            world.kill_at = world.writes + writes
            for _ in range(40):
                try:
                    world.after(5)
                except KilledError:
                    break
        world.kill_at = None
        world.after(400, step=10)
    assert all(weights for weights in world.served[10:]), "nobody was served"
    return end_of(world)


undisturbed = functools.cache(functools.partial(end_with, ()))


@settings(max_examples=30, deadline=None)
@given(kills=st.lists(st.integers(0, 25), min_size=1, max_size=6), good=st.booleans(), ratio=st.booleans())
def test_an_operator_that_is_killed_ends_where_another_would(kills: list[int], good: bool, ratio: bool) -> None:
    """After any write of any look, as often as one likes: what the next one finds is enough to go on."""
    assert end_with(kills, good=good, ratio=ratio) == undisturbed(good=good, ratio=ratio)


# ---------------------------------------------------------------- guards


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"task": "token-classification"}, "TaskMismatch"),
        ({"labels": "other"}, "LabelSchemaMismatch"),
        ({"tokenizer": "other"}, "TokenizerMismatch"),
        ({"schema": "2"}, "ManifestSchemaUnknown"),
    ],
)
def test_a_version_that_clients_could_not_understand_is_blocked(
    start: Start, facts: dict[str, str], reason: str
) -> None:
    """Before a pod is made; what serves goes on, and so does nothing else."""
    usual = {"task": "sequence-classification", "labels": "l", "tokenizer": "t", "schema": "1"}
    world = start(facts={"1": Facts(**usual), "2": Facts(**(usual | facts))})
    world.ask_for("2")
    world.after(30)
    assert (world.pods_of("2"), world.weights(), world.state) == (0, {"1": 100}, "Blocked")
    assert world.condition("Progressing") == ("False", reason)


def test_another_precision_is_tried_as_a_canary_where_the_version_has_it(start: Start) -> None:
    """As any other setting of the server; one that it hasn't is blocked before a pod is made."""
    world = start(facts={"1": Facts(precisions="fp32, int8")})
    usual = world.spec
    world.spec = {**usual, "runtime": {"precision": "fp16"}}
    world.after(30)
    assert (world.condition("Progressing"), world.state) == (("False", "PrecisionMissing"), "Blocked")
    assert world.record.canary == ""
    world.spec = {**usual, "runtime": {"precision": "int8"}}
    world.settle()
    assert world.record.canary
    world.after(400)
    assert (world.ended[-1], world.record.canary) == ("promoted", "")


def test_where_nobody_says_what_precisions_there_are_one_is_tried(start: Start) -> None:
    """Versions of a former trainer have no tag for it; their servers know."""
    world = start()
    world.spec = {**world.spec, "runtime": {"precision": "int8"}}
    world.settle()
    assert world.record.canary


def test_a_blocked_version_in_mid_canary_withdraws_the_canary(start: Start) -> None:
    """It isn't asked for any more, so it mustn't get promoted."""
    world = start(facts={"3": Facts(schema="2")})
    world.ask_for("2")
    world.settle()
    world.ask_for("3")
    world.after(200)
    assert (world.weights(), world.ended) == ({"1": 100}, ["superseded"])


def test_a_declared_tokenizer_change_takes_the_steps(start: Start) -> None:
    """It is said in the event; without steps it isn't done."""
    facts = {"1": Facts(tokenizer="t"), "2": Facts(tokenizer="u")}
    world = start({**GATEWAY, "rollout": {"allowTokenizerChange": True}}, facts=facts)
    world.ask_for("2")
    world.after(30)
    assert world.condition("Progressing") == ("False", "TokenizerChangeNeedsSteps")
    world.spec = {**world.spec, "rollout": {"allowTokenizerChange": True, "steps": STEPS}}
    world.settle()
    assert world.weights() == {"1": 90, "2": 10}
    assert "another tokenizer" in dict(world.events)["RolloutStarted"]


def test_a_version_that_the_registry_cannot_speak_of_waits(start: Start) -> None:
    """It may be quarantined by now, and couldn't be loaded anyway; what is tried already goes on."""
    world = start()
    world.ask_for("2")
    world.settle()
    world.ask_for("1")
    world.after(40)
    world.registry_is_up = False
    world.ask_for("2")
    world.after(30)
    assert (world.record.canary, world.weights()) == ("", {"1": 100})
    world.registry_is_up = True
    world.settle()
    assert world.weights() == {"1": 90, "2": 10}
    world.registry_is_up = False
    world.after(100)
    assert world.weights() == {"2": 100}


def test_pods_that_are_left_get_no_more_than_they_are_there_for(start: Start) -> None:
    """A canary that loses half of its pods at 50 % is given 25 % until they are back."""
    world = start()
    world.ask_for("2")
    world.after(35)
    assert (world.weights(), world.pods_of("2")) == ({"1": 50, "2": 50}, 2)
    canary = world.children["Deployment", f"spam-{world.record.canary}"]
    canary["status"]["availableReplicas"] = 1
    world.settle()
    assert world.weights() == {"1": 75, "2": 25}
    world.heal()
    world.settle()
    assert world.weights() == {"1": 50, "2": 50}


def test_promote_means_it_though_the_spec_is_paused(start: Start) -> None:
    """All requests and the title, not the one without the other."""
    world = start({**GATEWAY, "rollout": {"steps": STEPS}})
    world.ask_for("2")
    world.settle()
    world.spec = {**world.spec, "rollout": {"steps": STEPS, "paused": True}}
    world.annotations = {"cloze.dev/rollout": "promote"}
    world.settle()
    assert (world.weights(), world.status["stable"]["version"]) == ({"2": 100}, "2")


def test_ready_survives_that_the_gateway_takes_its_time(start: Start) -> None:
    """While it is still at the route as it was, requests are answered by that; the new share isn't in force yet."""
    world = start()
    world.slow_gateway = True
    world.ask_for("2")
    world.settle()
    assert world.record.since is None
    assert (world.condition("Ready"), world.state) == (("True", "AllReplicasReady"), "Canary")
    assert "RouteChanging" in world.status["rollout"]["message"]
