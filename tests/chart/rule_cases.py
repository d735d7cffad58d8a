"""Series in which each other alert fires, and series close by in which it stays silent."""

from typing import Final

from rule_series import ME, Case, constant, growing, objectives, pod, requests, series


def _gauge(metric: str, value: float, minutes: int, /, **labels: str) -> tuple[str, str]:
    return series(metric, **labels), constant(value, minutes)


def _operator(metric: str, values: str, pod: str = "operator-a", **labels: str) -> tuple[str, str]:
    """A series of an operator's pod that tells of no single ModelDeployment."""
    return series(metric, namespace="cloze-system", pod=pod, **labels), values


def _state(kind: str, state: str, values: str, pod: str = "operator-a") -> tuple[str, str]:
    return series("cloze_resource_state", kind=kind, **ME, state=state, pod=pod), values


_RUN: Final = {"kind": "PretrainJob", **ME}


def _training(metric: str, values: str, pod: str = "run-0", **labels: str) -> tuple[str, str]:
    return series(metric, **_RUN, pod=pod, **labels), values


def _serving() -> list[Case]:
    quiet = {"quiet_during_rollout": "true"}
    gone = [*objectives(60), (pod(0)[0], "1x20 stale")]
    return [
        Case(
            "ClozeDeploymentFailing",
            "the state says so",
            [_state("ModelDeployment", "Failing", constant(1, 10))],
            10,
            [{**ME, "severity": "page"}],
        ),
        Case(
            "ClozeDeploymentFailing",
            "it recovers within 3 minutes",
            [
                _state("ModelDeployment", "Failing", "1x2 stale"),
                _state("ModelDeployment", "Ready", "_ _ _ 1x7"),
            ],
            10,
        ),
        Case("ClozeDeploymentDown", "its last pod is gone", gone, 25, [{**ME, "severity": "page"}]),
        Case(
            "ClozeDeploymentDown",
            "one pod replaces another",
            [*objectives(60), (pod(0)[0], "1x20 stale"), pod(60, "spam-0123abcd-y")],
            25,
        ),
        Case("ClozeDeploymentDown", "the ModelDeployment is gone too", gone[3:], 25),
        Case(
            "ClozeDeploymentDown",
            "somebody has stopped it",
            [*gone, _state("ModelDeployment", "Stopped", constant(1, 60))],
            25,
        ),
        Case(
            "ClozeRequestsRefused",
            "a tenth gets 429",
            [pod(30), requests("200", growing((90, 30))), requests("429", growing((10, 30)))],
            30,
            [{**ME, **quiet, "severity": "ticket"}],
        ),
        Case(
            "ClozeRequestsRefused",
            "a peak of ten minutes",
            [pod(30), requests("200", growing((90, 30))), requests("429", growing((0, 20), (10, 10)))],
            30,
        ),
        Case(
            "ClozeVersionMismatch",
            "a pod has loaded something else",
            [_gauge("cloze_version_mismatch_pods", 1, 10, **ME)],
            10,
            [{**ME, "severity": "ticket"}],
        ),
        Case("ClozeVersionMismatch", "all agree", [_gauge("cloze_version_mismatch_pods", 0, 10, **ME)], 10),
    ]


def _rollouts() -> list[Case]:
    ticket = [{**ME, "severity": "ticket"}]

    def ended(values: str, pod: str = "operator-a", result: str = "rolled_back") -> tuple[str, str]:
        return series("cloze_rollouts_total", **ME, pod=pod, result=result), values

    def going(values: str) -> list[tuple[str, str]]:
        return [(series("cloze_rollout_in_progress", **ME), values)]

    def check(result: str, minutes: int) -> list[tuple[str, str]]:
        return [_gauge("cloze_rollout_check", 1, minutes, **ME, check="errors", result=result)]

    held = {"state": "Paused", **ME, "severity": "ticket"}
    return [
        Case("ClozeRolloutInProgress", "a canary", going("0x10 1x10"), 20, [{**ME, "severity": "none"}]),
        Case("ClozeRolloutInProgress", "none", going("0x20"), 20),
        Case("ClozeRolloutInProgress", "one that takes longer than six hours explains nothing", going("1x400"), 400),
        Case("ClozeRolloutRolledBack", "a counter that was 0", [ended("0x30 1x30")], 40, ticket),
        Case("ClozeRolloutRolledBack", "a counter that begins at 1", [ended("_x30 1x30")], 40, ticket),
        Case("ClozeRolloutRolledBack", "promotions only", [ended("0x30 1x30", result="promoted")], 40),
        Case("ClozeRolloutRolledBack", "an hour later it is history", [ended("0x30 1x120")], 120),
        Case("ClozeRolloutRolledBack", "an operator that couldn't be scraped", [ended("1x100 _x90 1x30")], 200),
        Case(
            "ClozeRolloutHeld",
            "it waits for a person",
            [_state("ModelDeployment", "Paused", constant(1, 40))],
            40,
            [held],
        ),
        Case("ClozeRolloutHeld", "a step", [_state("ModelDeployment", "Canary", constant(1, 40))], 40),
        Case("ClozeRolloutHeld", "not for long", [_state("ModelDeployment", "Paused", constant(1, 20))], 20),
        Case(
            "ClozeRolloutUndecided",
            "no data",
            check("no_data", 70),
            70,
            [{**ME, "check": "errors", "severity": "ticket"}],
        ),
        Case("ClozeRolloutUndecided", "it passes", check("pass", 70), 70),
        Case("ClozeRolloutUndecided", "it begins", check("waiting", 30), 30),
    ]


def _runs() -> list[Case]:
    run = [{**_RUN, "severity": "ticket"}]
    failed, running = "Failed", [_state("PretrainJob", "Running", constant(1, 60))]
    stage = "cloze_train_stage"
    return [
        Case("ClozeTrainingFailed", "it fails", [_state("PretrainJob", failed, "_x70 1x20")], 80, run),
        Case(
            "ClozeTrainingFailed",
            "made anew under its name it fails again",
            [_state("PretrainJob", failed, "1x30 stale _x120 1x10")],
            155,
            run,
        ),
        Case("ClozeTrainingFailed", "an hour later it is history", [_state("PretrainJob", failed, "1x100")], 100),
        Case(
            "ClozeTrainingFailed",
            "another operator tells the same",
            [_state("PretrainJob", failed, "1x100 stale"), _state("PretrainJob", failed, "_x101 1x30", "operator-b")],
            110,
        ),
        Case("ClozeTrainingFailed", "it succeeds", [_state("PretrainJob", "Succeeded", "_x70 1x20")], 80),
        Case(
            "ClozeTrainingStalled",
            "no step for a while",
            [_training(stage, constant(1, 60), stage="training"), _training("cloze_train_step", "0+5x30 150x30")],
            60,
            run,
        ),
        Case(
            "ClozeTrainingStalled",
            "slow steps",
            [
                _training(stage, constant(1, 60), stage="training"),
                _training("cloze_train_step", "0x10 1x10 2x10 3x10 4x20"),
            ],
            45,
        ),
        Case(
            "ClozeTrainingStalled",
            "a long evaluation takes no steps",
            [
                _training(stage, "1x30 stale", stage="training"),
                _training(stage, "_x31 1x30", stage="evaluation"),
                _training("cloze_train_step", "0+5x30 150x30"),
            ],
            60,
        ),
        Case(
            "ClozeTrainingStalled",
            "tokenizing takes no steps, and training has begun just now",
            [
                _training(stage, "1x50 stale", stage="tokenizer"),
                _training(stage, "_x51 1x9", stage="training"),
                _training("cloze_train_step", "0x60"),
            ],
            60,
        ),
        Case(
            "ClozeCheckpointsMissed",
            "the volume is full",
            [_training("cloze_train_missed_checkpoints_total", "0x20 1x40")],
            25,
            run,
        ),
        Case(
            "ClozeCheckpointsMissed",
            "there is room again",
            [_training("cloze_train_missed_checkpoints_total", "0x20 1x60")],
            60,
        ),
        Case(
            "ClozeCheckpointsMissed",
            "the run begins anew",
            [_training("cloze_train_missed_checkpoints_total", "1x20 0x40")],
            25,
        ),
        Case(
            "ClozeTrainingRolledBack",
            "it went back",
            [_training("cloze_train_rollbacks_total", "0x20 1x40")],
            40,
            run,
        ),
        Case("ClozeTrainingRolledBack", "long ago", [_training("cloze_train_rollbacks_total", "0x20 1x90")], 100),
        Case(
            "ClozeTrainingSilent",
            "its pods tell nothing any more",
            [*running, _training(stage, "1x20 stale", stage="training")],
            45,
            run,
        ),
        Case(
            "ClozeTrainingSilent",
            "another pod goes on",
            [
                *running,
                _training(stage, "1x20 stale", stage="training"),
                _training(stage, "_x25 1x35", "run-1", stage="training"),
            ],
            45,
        ),
        Case("ClozeTrainingSilent", "nobody scrapes training pods", running, 45),
    ]


def _platform() -> list[Case]:
    def leader(values: str, pod: str = "operator-a") -> tuple[str, str]:
        return _operator("cloze_operator_leader", values, pod)

    def page(**labels: str) -> list[dict[str, str]]:
        return [{"severity": "page", **labels}]

    here = {"namespace": "cloze-system"}
    ticket = {"severity": "ticket"}
    reconciles = "cloze_operator_reconciles_total"
    return [
        Case("ClozeOperatorAbsent", "nobody", [leader("1x5 stale")], 15, page()),
        Case("ClozeOperatorAbsent", "a standby is somebody", [leader("0x15")], 15),
        Case(
            "ClozeOperatorWithoutLeader", "two wait", [leader("0x10"), leader("0x10", "operator-b")], 10, page(**here)
        ),
        Case(
            "ClozeOperatorWithoutLeader",
            "one follows the other",
            [leader("1x5 0x10"), leader("0x6 1x10", "operator-b")],
            10,
        ),
        Case("ClozeOperatorsDisagree", "two act", [leader("1x10"), leader("1x10", "operator-b")], 10, page(**here)),
        Case("ClozeOperatorsDisagree", "one acts", [leader("1x10"), leader("0x10", "operator-b")], 10),
        Case(
            "ClozeReconcileErrors",
            "one resource fails again and again",
            [_operator(reconciles, growing((0.2, 60)), kind="FineTuneJob", result="error")],
            60,
            [{**ticket, "kind": "FineTuneJob"}],
        ),
        Case(
            "ClozeReconcileErrors",
            "conflicts are nothing bad, and an error now and then",
            [
                _operator(reconciles, growing((5, 60)), kind="FineTuneJob", result="conflict"),
                _operator(reconciles, growing((0, 40), (1, 5), (0, 15)), kind="FineTuneJob", result="error"),
            ],
            60,
        ),
        Case(
            "ClozeRegistryDown",
            "calls fail",
            [_operator("cloze_registry_errors_total", growing((3, 20)), operation="get-alias")],
            20,
            [{**ticket, **here}],
        ),
        Case(
            "ClozeRegistryDown",
            "it was restarted",
            [_operator("cloze_registry_errors_total", growing((0, 8), (3, 3), (0, 9)), operation="get-alias")],
            20,
        ),
        Case(
            "ClozePrometheusUnavailable",
            "queries fail",
            [_operator("cloze_prometheus_errors_total", growing((4, 20)))],
            20,
            [{**ticket, **here}],
        ),
        Case(
            "ClozePrometheusUnavailable",
            "one query failed",
            [_operator("cloze_prometheus_errors_total", growing((0, 8), (1, 1), (0, 11)))],
            20,
        ),
    ]


CASES: Final = (*_serving(), *_rollouts(), *_runs(), *_platform())
