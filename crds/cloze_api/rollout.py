"""How a ModelDeployment goes from one revision to the next: traffic, steps, and what judges a canary."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from cloze_api.metrics import OBJECTIVE_SECONDS
from cloze_api.scheduling import NodeSelector, PriorityClassName, Tolerations
from cloze_api.schema import Rule, Schema

_DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=253)]


class ParentReference(Schema):
    """A Gateway (or another parent) that an HTTPRoute attaches to."""

    name: _DnsName
    namespace: _DnsName | None = None
    """The ModelDeployment's own when absent."""
    section_name: _DnsName | None = None
    """A listener of the Gateway; all of them when absent."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None


class Route(Schema):
    """The HTTPRoute that the operator makes and owns as a whole."""

    parent_refs: Annotated[list[ParentReference], Field(min_length=1, max_length=8)]
    hostnames: Annotated[list[_DnsName], Field(max_length=16)] = []
    """Host names that the route answers to; any when empty."""
    path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._~/-]*$", max_length=256)] = "/"
    """Prefix of the paths that the route answers to; the server gets them without it."""
    filters: Annotated[
        list[Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]],
        Field(max_length=8),
    ] = []
    """Further filters of the route's rule, as the Gateway API spells them."""
    timeout_seconds: Annotated[int, Field(ge=1, le=600)] | None = None
    """The gateway gives a request up after this time; the gateway's own default when absent."""


class Provider(StrEnum):
    """What divides requests between two revisions."""

    GATEWAY_API = "GatewayAPI"
    REPLICA_RATIO = "ReplicaRatio"


class Traffic(Schema):
    """How requests are divided: by weights of an HTTPRoute, or by the number of pods behind one Service."""

    provider: Provider = Provider.REPLICA_RATIO
    route: Route | None = None

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(self.provider == 'GatewayAPI') == has(self.route)",
            message="spec.traffic.route goes with spec.traffic.provider GatewayAPI: set both, or neither",
            check=lambda traffic: (traffic.provider == Provider.GATEWAY_API) == (traffic.route is not None),
        ),
    )


class Step(Schema):
    """A share of the requests that a canary is given, and for how long at least."""

    weight: Annotated[int, Field(ge=1, le=99)] | None = None
    """Per cent of the requests (GatewayAPI). The step to 100 is the promotion, and isn't written."""
    replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Pods of the canary beside all pods of the stable revision (ReplicaRatio): their share of the requests is only
    about their share of the pods."""
    hold_seconds: Annotated[int, Field(ge=0, le=604_800)] = 60
    """The canary keeps this share for so long at least."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.weight) != has(self.replicas)",
            message="spec.rollout.steps needs exactly one of weight (GatewayAPI) and replicas (ReplicaRatio) in each "
            "step: set one, remove the other",
            check=lambda step: (step.weight is None) != (step.replicas is None),
        ),
    )


class OnNoData(StrEnum):
    """What follows when a step has come to its end and nothing can be said about the canary."""

    PAUSE = "Pause"
    PROMOTE = "Promote"
    ROLLBACK = "Rollback"


class Check(Schema):
    """One thing that a canary is judged by. What is absent is as in `spec.rollout.analysis`."""

    enabled: bool = True
    minimum_requests: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    on_no_data: OnNoData | None = None
    inconclusive_limit: Annotated[int, Field(ge=1, le=10_000)] | None = None


class ErrorCheck(Check):
    """Share of the requests that end with a server error, against the stable revision's."""

    least_difference: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """A proven difference that is smaller does no harm."""


class LatencyCheck(Check):
    """A quantile of the latency, against the stable revision's, among requests of about the same length."""

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.95
    tolerance: Annotated[float, Field(ge=1, le=100)] = 1.05
    """The canary may take so many times as long."""
    least_difference: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the requests beyond the stable revision's quantile that may come on top and do no harm."""


class UnknownTokenCheck(Check):
    """Share of the tokens that the vocabulary doesn't have, against the stable revision's."""

    least_difference: Annotated[float, Field(ge=0, lt=1)] = 0.01


class PredictionCheck(Check):
    """Shares of the predicted labels, against the stable revision's: a shift up or down of any of them."""

    least_difference: Annotated[float, Field(ge=0, lt=1)] = 0.1


class Query(Check):
    """A query of your own in PromQL, with bounds.

    `$namespace`, `$canaryPods` and `$stablePods` (regular expressions of pod names) and `$interval` (such as `15s`) are
    filled in.
    """

    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=40)]
    query: Annotated[str, Field(min_length=1, max_length=4096)]
    """It gives one value."""
    minimum: float | None = None
    maximum: float | None = None
    failure_limit: Annotated[int, Field(ge=1, le=100)] = 3
    """So many values in a row outside of the bounds are a failure."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.minimum) || has(self.maximum)",
            message="spec.rollout.analysis.queries has one without a bound: give it a minimum, a maximum or both",
            check=lambda query: query.minimum is not None or query.maximum is not None,
        ),
    )


class Analysis(Schema):
    """What a canary is judged by, from Prometheus alone."""

    interval_seconds: Annotated[int, Field(ge=5, le=3600)] = 15
    """Requests are counted in intervals of this length; keep it at twice Prometheus's scrape interval or more."""
    minimum_requests: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    """Requests that the canary must have answered in a step before it may go on."""
    on_no_data: OnNoData = OnNoData.PAUSE
    inconclusive_limit: Annotated[int, Field(ge=1, le=10_000)] = 40
    """After so many intervals beyond a step's `holdSeconds` without enough requests, `onNoData` follows."""
    false_alarm_ratio: Annotated[float, Field(gt=0, le=0.2)] = 0.01
    """Probability at most of rolling back a canary that is no worse, over its whole rollout and all checks together."""
    errors: ErrorCheck = ErrorCheck()
    latency: LatencyCheck = LatencyCheck()
    unknown_tokens: UnknownTokenCheck = UnknownTokenCheck()
    predictions: PredictionCheck = PredictionCheck()
    queries: Annotated[
        list[Query],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = []


class Rollout(Schema):
    """How a new revision takes over."""

    strategy: Literal["Canary", "BlueGreen"] = "Canary"
    """Canary: by `steps`; without any, at once when it is ready. BlueGreen: all pods are ready behind the Service
    `<name>-preview` for `previewSeconds` before all requests go there."""
    steps: Annotated[list[Step], Field(max_length=20)] = []
    preview_seconds: Annotated[int, Field(ge=0, le=604_800)] = 0
    analysis: Analysis = Analysis()
    on_failure: Literal["Rollback", "Pause"] = "Rollback"
    progress_deadline_seconds: Annotated[int, Field(ge=30, le=86_400)] = 600
    """A canary whose pods aren't ready after this time has failed."""
    rollback_window_seconds: Annotated[int, Field(ge=15, le=604_800)] = 300
    """After the promotion the former revision keeps its pods for so long, and gets the requests back at once when the
    new one burns its error budget."""
    revision_history_limit: Annotated[int, Field(ge=1, le=50)] = 5
    """Former revisions that are remembered."""
    allow_tokenizer_change: bool = False
    """Whether a version with another tokenizer may follow; it always takes the steps."""
    paused: bool = False
    """Nothing goes on until this is false again; what fails is still rolled back."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.strategy == 'Canary' || self.steps.size() == 0",
            message="spec.rollout.steps and strategy BlueGreen exclude each other: remove one",
            check=lambda rollout: rollout.strategy == "Canary" or not rollout.steps,
        ),
        Rule(
            cel="self.strategy == 'BlueGreen' || self.previewSeconds == 0",
            message="spec.rollout.previewSeconds goes with strategy BlueGreen: set it, or remove previewSeconds",
            check=lambda rollout: rollout.strategy == "BlueGreen" or not rollout.preview_seconds,
        ),
        Rule(
            cel="self.steps.all(step, has(step.weight) == has(self.steps[0].weight))",
            message="spec.rollout.steps mixes weight and replicas: use one of them",
            check=lambda rollout: len({step.weight is None for step in rollout.steps}) <= 1,
        ),
        Rule(
            cel="self.steps.map(step, has(step.weight) ? step.weight : "
            "(has(step.replicas) ? step.replicas : 0)).isSorted()",
            message="spec.rollout.steps goes down: put the smaller shares first",
            check=lambda rollout: sorted(rollout.steps, key=_share) == list(rollout.steps),
        ),
    )


def _share(step: Step) -> int:
    return step.weight or step.replicas or 0


class Objectives(Schema):
    """What the ModelDeployment's users are promised, for alerts and for watching a promoted revision."""

    availability: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Share of the requests without a server error."""
    latency_seconds: Annotated[float, Field(gt=0, le=10)] = 0.2
    latency_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of the successful requests that take `latencySeconds` at most."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"self.latencySeconds in [{', '.join(map(str, OBJECTIVE_SECONDS))}]",
            message="spec.objectives.latencySeconds isn't a boundary of the latency histogram: use one of "
            + ", ".join(f"{seconds:g}" for seconds in OBJECTIVE_SECONDS),
            check=lambda objectives: objectives.latency_seconds in OBJECTIVE_SECONDS,
        ),
    )


class Autoscaling(Schema):
    """A HorizontalPodAutoscaler of the stable revision; `spec.replicas` is only where it begins."""

    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    target_cpu_percent: Annotated[int, Field(ge=10, le=100)] = 70
    """Of the CPU that the pods request."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.minReplicas <= self.maxReplicas",
            message="spec.autoscaling.minReplicas is larger than maxReplicas: lower it",
            check=lambda scaling: scaling.min_replicas <= scaling.max_replicas,
        ),
    )


class Scheduling(Schema):
    """Where the pods run. They are spread over machines as far as that is possible."""

    node_selector: NodeSelector = {}
    tolerations: Tolerations = []
    priority_class_name: PriorityClassName = ""


class DisruptionBudget(Schema):
    """How many pods may be taken away at the same time for maintenance."""

    max_unavailable: Annotated[int, Field(ge=1, le=1000)] = 1
