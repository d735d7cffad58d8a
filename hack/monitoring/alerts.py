"""Alerts. A page wakes somebody up: users notice, or soon will. A ticket can wait for the next working day."""

from typing import Final

from cloze_api import metrics
from monitoring import burns
from monitoring.alert import PAGE, TICKET, WHO, Group, Rule, alert
from monitoring.promql import KEY, PODS, grew, objective, sample

ROLLOUT: Final = "ClozeRolloutInProgress"
#: A rollout that takes longer explains nothing any more.
_LONGEST_ROLLOUT: Final = "6h"


def _serving() -> list[Rule]:
    state = sample(metrics.RESOURCE_STATE)
    requests = f'sum by ({KEY}) (deployment:cloze_requests:rate5m{{source="server"}})'
    refused = (
        f"sum by ({KEY}) (\n"
        f'  sum by (namespace, pod) (rate({sample(metrics.REQUESTS)}{{status="429"}}[5m]))\n'
        f"  * on (namespace, pod) group_left (name) max by (namespace, pod, name) ({PODS})\n"
        ")"
    )
    return [
        alert(
            "ClozeDeploymentFailing",
            f'max by ({KEY}) ({state}{{kind="ModelDeployment",state="Failing"}}) == 1',
            wait="3m",
            severity=PAGE,
            runbook="deployment-not-ready",
            summary=f"{WHO} can't serve with the replicas it should have",
            description="Its pods end again and again, or have not become ready in time, for 3 minutes now.",
        ),
        alert(
            "ClozeDeploymentDown",
            f"max by ({KEY}) (last_over_time({PODS}[1h]))\n"
            f"unless max by ({KEY}) ({PODS})\n"
            f"and {objective(metrics.OBJECTIVE_AVAILABILITY)}\n"
            f'unless max by ({KEY}) ({state}{{kind="ModelDeployment",state="Stopped"}})',
            wait="2m",
            severity=PAGE,
            runbook="deployment-not-ready",
            summary=f"{WHO} has no server left",
            description="No pod of it has had a loaded model for 2 minutes; there was one within the hour before.",
        ),
        alert(
            "ClozeRequestsRefused",
            f"{refused} / ({requests} > 0) > 0.05",
            wait="15m",
            severity=TICKET,
            runbook="overload",
            quiet=True,
            summary=f"{WHO} refuses requests because it has too much to do",
            description="{{ $value | humanizePercentage }} of the requests are answered with 429, for 15 minutes now.",
        ),
        alert(
            "ClozeVersionMismatch",
            f"max by ({KEY}) ({sample(metrics.VERSION_MISMATCH)}) > 0",
            wait="2m",
            severity=TICKET,
            runbook="version-mismatch",
            summary=f"{WHO} has pods with another version than they were made for",
            description="{{ $value }} ready pods report another version or digest. Its rollout is held back meanwhile.",
        ),
    ]


def _rollouts() -> list[Rule]:
    state, check, going = map(sample, (metrics.RESOURCE_STATE, metrics.ROLLOUT_CHECK, metrics.ROLLOUT_IN_PROGRESS))
    long = _LONGEST_ROLLOUT
    return [
        alert(
            ROLLOUT,
            f"max by ({KEY}) ({going}) == 1\n"
            f"unless (\n  min by ({KEY}) (min_over_time({going}[{long}])) == 1\n"
            f"  and max by ({KEY}) ({going} offset {long}) == 1\n)",
            severity="none",
            runbook="silence-during-rollouts",
            summary=f"{WHO} is being rolled out",
            description=f"Nobody is to be told. For {long} at most it keeps the alerts quiet that a rollout explains.",
        ),
        alert(
            "ClozeRolloutRolledBack",
            grew(f'{sample(metrics.ROLLOUTS)}{{result="rolled_back"}}', KEY, "1h"),
            severity=TICKET,
            runbook="rollout-rolled-back",
            summary=f"A new version of {WHO} was taken back",
            description="About {{ $value | humanize }} times within 1 hour. Its canary, or the watch over it after "
            "the promotion, found it worse than the version before. Users are served by that one again.",
        ),
        alert(
            "ClozeRolloutHeld",
            f'max by ({KEY}, state) ({state}{{kind="ModelDeployment",state=~"Paused|Blocked"}}) == 1',
            wait="30m",
            severity=TICKET,
            runbook="rollout-held",
            summary=f"The rollout of {WHO} waits for a person",
            description="It has been {{ $labels.state }} for 30 minutes. The status says what for.",
        ),
        alert(
            "ClozeRolloutUndecided",
            f'max by ({KEY}, check) ({check}{{result=~"waiting|no_data|unknown"}}) == 1',
            wait="1h",
            severity=TICKET,
            runbook="rollout-held",
            summary=f"The canary of {WHO} can't be judged",
            description="The check {{ $labels.check }} has come to no result for 1 hour: too few requests, or no data.",
        ),
    ]


def _training() -> list[Rule]:
    run = "namespace, kind, name"
    state, step, stage = sample(metrics.RESOURCE_STATE), sample(metrics.TRAIN_STEP), sample(metrics.TRAIN_STAGE)
    failed = f'{state}{{kind=~"PretrainJob|FineTuneJob",state="Failed"}}'
    running = f'max by ({run}) ({state}{{kind=~"PretrainJob|FineTuneJob",state="Running"}})'
    training = f'max by ({run}) ({stage}{{stage="training"}}'
    missed, rollbacks = sample(metrics.TRAIN_MISSED_CHECKPOINTS), sample(metrics.TRAIN_ROLLBACKS)
    job = "{{ $labels.kind }} {{ $labels.namespace }}/{{ $labels.name }}"
    return [
        alert(
            "ClozeTrainingFailed",
            # Only what failed within the hour. Ten minutes bridge a gap in scraping, and not more: a job that was
            # deleted and made anew under its name may fail again.
            f"max by ({run}) ({failed}) == 1\nunless max by ({run}) (last_over_time({failed}[10m] offset 1h)) == 1",
            severity=TICKET,
            runbook="training-failed",
            summary=f"{job} failed",
            description="It failed less than 1 hour ago and isn't tried again. The condition Succeeded has the "
            "reason; the last checkpoint is kept.",
        ),
        alert(
            "ClozeTrainingStalled",
            f"max by ({run}) (changes({step}[15m])) == 0\nand {training})\nand {training} offset 15m)",
            wait="1m",
            severity=TICKET,
            runbook="training-stalled",
            summary=f"{job} makes no progress",
            description="It has been in the stage training for 15 minutes without a step.",
        ),
        alert(
            "ClozeCheckpointsMissed",
            # From nothing to the first one, too: a counter of a run begins at zero.
            f"max by ({run}) (increase({missed}[30m])) > 0",
            severity=TICKET,
            runbook="checkpoints-missed",
            summary=f"{job} can't save checkpoints",
            description="Its volume was full, or its bucket away, within the last 30 minutes. It trains on, and an "
            "interruption costs all steps since the last checkpoint.",
        ),
        alert(
            "ClozeTrainingRolledBack",
            f"max by ({run}) (increase({rollbacks}[1h])) > 0",
            severity=TICKET,
            runbook="training-rolled-back",
            summary=f"{job} has diverged and went back",
            description="Within the last 1 hour it went back to a checkpoint and passed over the batches since.",
        ),
        alert(
            "ClozeTrainingSilent",
            f"{running} == 1\nunless on ({run}) max by ({run}) ({stage})\n"
            f"and on ({run}) max by ({run}) (last_over_time({stage}[1d]))",
            wait="15m",
            severity=TICKET,
            runbook="training-stalled",
            summary=f"{job} tells nothing of its progress any more",
            description="It is Running, and none of its pods has had figures for 15 minutes.",
        ),
    ]


def _platform() -> list[Rule]:
    leader = sample(metrics.LEADER)
    reconciles = f'{sample(metrics.RECONCILES)}{{result="error"}}'
    return [
        alert(
            "ClozeOperatorAbsent",
            f"absent({leader})",
            wait="5m",
            severity=PAGE,
            runbook="operator-down",
            summary="Cloze's operator isn't there",
            description="Prometheus has heard of no operator for 5 minutes. What is served goes on; canaries are no "
            "longer judged, and nothing is rolled back.",
        ),
        alert(
            "ClozeOperatorWithoutLeader",
            f"sum by (namespace) ({leader}) == 0",
            wait="2m",
            severity=PAGE,
            runbook="operator-down",
            summary="No operator in {{ $labels.namespace }} acts",
            description="None has held the lease for 2 minutes. What is served goes on; canaries are no longer "
            "judged, and nothing is rolled back.",
        ),
        alert(
            "ClozeOperatorsDisagree",
            f"sum by (namespace) ({leader}) > 1",
            wait="1m",
            severity=PAGE,
            runbook="operator-down",
            summary="{{ $value }} operators in {{ $labels.namespace }} act at the same time",
            description="One lease gives the right to one. They may undo each other's work.",
        ),
        alert(
            "ClozeReconcileErrors",
            f"sum by (kind) (rate({reconciles}[10m])) > 0",
            wait="30m",
            severity=TICKET,
            runbook="reconcile-errors",
            summary="The operator fails at resources of kind {{ $labels.kind }}",
            description="For 30 minutes there have been errors without a break, {{ $value | humanize }} a second.",
        ),
        alert(
            "ClozeRegistryDown",
            f"sum by (namespace) (rate({sample(metrics.REGISTRY_ERRORS)}[5m])) > 0",
            wait="10m",
            severity=TICKET,
            runbook="registry-down",
            summary="MLflow refuses calls or doesn't answer",
            description="{{ $value | humanize }} calls of the operator a second fail, for 10 minutes now. What is "
            "served goes on; new pods can't fetch their model.",
        ),
        alert(
            "ClozePrometheusUnavailable",
            f"sum by (namespace) (rate({sample(metrics.PROMETHEUS_ERRORS)}[5m])) > 0",
            wait="10m",
            severity=TICKET,
            runbook="prometheus-unavailable",
            summary="The operator can't ask Prometheus about canaries",
            description="{{ $value | humanize }} queries a second fail, for 10 minutes now. Rollouts wait meanwhile.",
        ),
    ]


def groups() -> list[Group]:
    """All alerts."""
    return [
        {"name": "cloze-objectives", "rules": burns.rules()},
        {"name": "cloze-serving", "rules": _serving()},
        {"name": "cloze-rollouts", "rules": _rollouts()},
        {"name": "cloze-training", "rules": _training()},
        {"name": "cloze-platform", "rules": _platform()},
    ]
