"""Series in which each alert fires, and series close by in which it stays silent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ME: Final = {"namespace": "shop", "name": "spam"}
_REVISION: Final = "0123abcd"


@dataclass(frozen=True, slots=True)
class Case:
    """Series in promtool's notation, and what fires at the end of them. expected: labels of each alert that fires."""

    alert: str
    story: str
    series: Sequence[tuple[str, str]]
    minutes: int
    expected: Sequence[dict[str, str]] = ()
    labels: tuple[tuple[str, str], ...] = ()
    """Of the rule, where one name has several."""
    interval: int = 1
    """Minutes between two samples."""

    @property
    def key(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The rule that is meant."""
        return self.alert, self.labels


def constant(value: float, minutes: int, interval: int = 1) -> str:
    return f"{value:g}x{minutes // interval}"


def growing(*parts: tuple[float, int], interval: int = 1) -> str:
    """A counter: by how much a minute, for how many minutes."""
    start, text = 0.0, []
    for number, (speed, minutes) in enumerate(parts):
        # A part begins a step after the last sample of the one before.
        steps = minutes // interval
        first = start if number == 0 else start + speed * interval
        text.append(f"{first:g}+{speed * interval:g}x{steps if number == 0 else steps - 1}")
        start += speed * minutes
    return " ".join(text)


def series(metric: str, /, **labels: str) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{metric}{{{inner}}}"


def objectives(minutes: int, interval: int = 1) -> list[tuple[str, str]]:
    return [
        (series("cloze_objective_availability_ratio", **ME), constant(0.999, minutes, interval)),
        (series("cloze_objective_latency_ratio", **ME), constant(0.95, minutes, interval)),
        (series("cloze_objective_latency_seconds", le="0.2", **ME), constant(0.2, minutes, interval)),
    ]


def pod(minutes: int, name: str = "spam-0123abcd-x", interval: int = 1) -> tuple[str, str]:
    labels = {"namespace": "shop", "pod": name, "model": "m", "version": "7", "digest": "d", "task": "t"}
    own = series("cloze_model_info", **labels, deployment="spam", revision=_REVISION)
    return own, constant(1, minutes, interval)


def requests(status: str, values: str, route: str = "/v1/classify", name: str = "spam-0123abcd-x") -> tuple[str, str]:
    labels = {"namespace": "shop", "pod": name, "model": "m", "version": "7", "route": route, "status": status}
    return series("cloze_requests_total", **labels), values


def durations(count: str, in_time: str) -> list[tuple[str, str]]:
    labels = {"namespace": "shop", "pod": "spam-0123abcd-x", "route": "/v1/classify", "status_class": "2xx"}
    bucket = "cloze_request_duration_seconds_bucket"
    return [
        (series("cloze_request_duration_seconds_count", **labels, length="128"), count),
        (series(bucket, **labels, length="128", le="0.2"), in_time),
        # Of another objective, and slower: whoever reads it finds all is well.
        (series(bucket, **labels, length="128", le="1.0"), count),
    ]


@dataclass(frozen=True, slots=True)
class _Window:
    severity: str
    long: str
    short: str
    minutes: int
    recent: int
    factor: float
    interval: int


_WINDOWS: Final = (
    _Window("page", "1h", "5m", 60, 5, 14.4, 1),
    _Window("page", "6h", "30m", 360, 30, 6, 5),
    _Window("ticket", "1d", "2h", 1440, 120, 3, 30),
    _Window("ticket", "3d", "6h", 4320, 360, 1, 60),
)


def _burns(window: _Window) -> list[Case]:
    minutes, recent, step = window.minutes, window.recent, window.interval
    labels = (("long", window.long), ("severity", window.severity))
    quiet = {} if window.long == "1h" else {"quiet_during_rollout": "true"}
    fired = [{**ME, "severity": window.severity, "long": window.long, "short": window.short, **quiet}]

    def errors(story: str, *parts: tuple[float, int], fires: bool = False, volume: float = 1000) -> Case:
        """parts: ratio of the requests that fail, for how many minutes."""
        total = sum(length for _, length in parts)
        bad = growing(*((ratio * volume, length) for ratio, length in parts), interval=step)
        good = growing(*(((1 - ratio) * volume, length) for ratio, length in parts), interval=step)
        given = [*objectives(total, step), pod(total, interval=step), requests("200", good), requests("503", bad)]
        return Case("ClozeErrorBudgetBurn", story, given, total, fired if fires else (), labels, step)

    def late(story: str, *parts: tuple[float, int], fires: bool = False) -> Case:
        total = sum(length for _, length in parts)
        every = growing((1000, total), interval=step)
        fast = growing(*(((1 - ratio) * 1000, length) for ratio, length in parts), interval=step)
        given = [*objectives(total, step), pod(total, interval=step), *durations(every, fast)]
        return Case("ClozeLatencyBudgetBurn", story, given, total, fired if fires else (), labels, step)

    allowed, slow = 0.001 * window.factor, 0.05 * window.factor
    return [
        errors("both windows burn faster", (1.1 * allowed, minutes), fires=True),
        errors("just below the rate", (0.9 * allowed, minutes)),
        errors("a spike that the long window absorbs", (0, minutes - step), (5 * allowed, step)),
        errors("it is over, as the short window says", (3 * allowed, minutes - recent), (0, recent + step)),
        errors("a handful of errors among few requests", (2 * allowed, minutes), volume=9 / (2 * allowed * minutes)),
        late("both windows burn faster", (min(1.1 * slow, 1), minutes), fires=True),
        late("just below the rate", (0.9 * slow, minutes)),
        late("it is over, as the short window says", (min(1.3 * slow, 1), minutes - recent), (0, recent + step)),
    ]


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


CASES: Final = (
    *(case for window in _WINDOWS for case in _burns(window)),
    *_serving(),
    *_rollouts(),
    *_runs(),
    *_platform(),
)
