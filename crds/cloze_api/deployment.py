"""ModelDeployment: a registered model version, served."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from cloze_api.names import CANDIDATE_ALIAS, PROMOTED_ALIAS
from cloze_api.precision import Precision
from cloze_api.quantity import quantity
from cloze_api.rollout import (
    Autoscaling,
    DisruptionBudget,
    Objectives,
    Provider,
    Rollout,
    Scheduling,
    Traffic,
)
from cloze_api.schema import Alias, Digest, ModelName, ModelVersion, Reported, Rule, Schema, alias_rule
from cloze_api.serving import (
    METADATA_RULES,
    Access,
    Fallback,
    Feedback,
    ReplyCache,
    RequestLimits,
    RequestMetadata,
    Tracing,
)
from cloze_api.training import Resources, resource_rules
from cloze_api.training_status import Condition


class Follow(Schema):
    """Serve whatever version `candidateAlias` points to, and point `alias` to it once it is fully rolled out."""

    candidate_alias: Alias = CANDIDATE_ALIAS
    alias: Alias = PROMOTED_ALIAS

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.candidateAlias != self.alias",
            message="spec.model.follow.candidateAlias and spec.model.follow.alias are the same: give them two names",
            check=lambda follow: follow.candidate_alias != follow.alias,
        ),
        alias_rule("spec.model.follow.candidateAlias"),
        alias_rule("spec.model.follow.alias"),
    )


class ServedModel(Schema):
    """Which version is served: a fixed one, or the one behind an alias."""

    name: ModelName
    version: ModelVersion | None = None
    follow: Follow | None = None
    fallback: Fallback | None = None
    """Answers what the model abstains on: a version of the same task with the same labels. Its digest is pinned as the
    model's is, and another fallback is another revision."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.version) != has(self.follow)",
            message="spec.model needs exactly one of version and follow: set one, remove the other "
            "(follow: {} follows the default aliases)",
            check=lambda model: (model.version is None) != (model.follow is None),
        ),
        Rule(
            cel="!has(self.fallback) || self.fallback.name != self.name || "
            "(has(self.version) && self.fallback.version != self.version)",
            message="spec.model.fallback is the model itself, or could become it by following: name another model",
            check=lambda model: (
                model.fallback is None
                or model.fallback.name != model.name
                or model.version not in (None, model.fallback.version)
            ),
        ),
    )


class Runtime(Schema):
    """Settings of the inference server."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Serving image. When absent: the operator's default, which is another one with a GPU among spec.resources."""
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    """Compute threads of one replica. When absent: the pod's CPU limit, or without one its request, rounded up; without
    either, the machine's CPUs."""
    precision: Precision = Precision.FP32
    """Of the model's graph; the version must have been made with it. Another one is tried as a canary."""
    max_batch_tokens: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    """Padded tokens in one batch; a longer input runs alone. When absent: 256 for each thread, 16384 on a GPU."""
    max_queue_tokens: Annotated[int, Field(ge=16, le=16_777_216)] = 65_536
    """Tokens that may wait; beyond them a request gets 429."""
    max_wait_seconds: Annotated[int, Field(ge=1, le=600)] = 10
    """That a request may be expected to wait, by the rate of the last batches; beyond them it gets 429."""
    timeout_seconds: Annotated[int, Field(ge=1, le=600)] = 30
    limits: RequestLimits = RequestLimits()
    reply_cache: ReplyCache | None = None
    """Off when absent."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.maxBatchTokens) || self.maxQueueTokens >= self.maxBatchTokens",
            message="spec.runtime.maxQueueTokens is smaller than spec.runtime.maxBatchTokens: raise it",
            check=lambda runtime: runtime.max_queue_tokens >= (runtime.max_batch_tokens or 0),
        ),
    )


def _threads_fit(spec: "ModelDeploymentSpec") -> bool:
    """As the server counts: of a limit of 1500m it uses two CPUs."""
    limit = quantity(spec.resources.limits.get("cpu"))
    return spec.runtime.threads is None or limit is None or spec.runtime.threads - 1 < limit


def _cache_fits(spec: "ModelDeploymentSpec") -> bool:
    memory = quantity(spec.resources.limits.get("memory"))
    return spec.runtime.reply_cache is None or memory is None or spec.runtime.reply_cache.size_bytes < memory


class ModelDeploymentSpec(Schema):
    """Desired state of a ModelDeployment."""

    model: ServedModel
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    runtime: Runtime = Runtime()
    resources: Resources = Resources()
    drain_seconds: Annotated[int, Field(ge=1, le=600)] = 30
    """How long a pod that is going away may take to finish the requests it has accepted."""
    traffic: Traffic = Traffic()
    rollout: Rollout = Rollout()
    objectives: Objectives = Objectives()
    autoscaling: Autoscaling | None = None
    disruption_budget: DisruptionBudget = DisruptionBudget()
    scheduling: Scheduling = Scheduling()
    access: Access = Access()
    request_metadata: RequestMetadata = {}
    """What requests may say of themselves in `metadata`: keys, each with its values. There are metrics for each value;
    a request with another key or value is refused."""
    tracing: Tracing | None = None
    """Off when absent."""
    feedback: Feedback | None = None
    """`/v1/feedback` takes nothing when absent."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *resource_rules("spec.resources"),
        *METADATA_RULES,
        Rule(
            cel="!has(self.runtime.replyCache) || !('memory' in self.resources.limits) || "
            "quantity(string(self.runtime.replyCache.size))"
            ".isLessThan(quantity(string(self.resources.limits['memory'])))",
            message="spec.runtime.replyCache.size leaves nothing of spec.resources.limits.memory for the model: "
            "lower the one or raise the other",
            check=_cache_fits,
        ),
        Rule(
            cel="!has(self.runtime.threads) || !('cpu' in self.resources.limits) || "
            "double(self.runtime.threads - 1) < quantity(string(self.resources.limits['cpu'])).asApproximateFloat()",
            message="spec.runtime.threads is larger than spec.resources.limits.cpu, so the pod would be throttled: "
            "raise the limit, or leave threads out, which takes what the limit allows",
            check=_threads_fit,
        ),
        Rule(
            cel="self.drainSeconds >= self.runtime.timeoutSeconds",
            message="spec.drainSeconds is smaller than spec.runtime.timeoutSeconds, so accepted requests get lost: "
            "raise the one or lower the other",
            check=lambda spec: spec.drain_seconds >= spec.runtime.timeout_seconds,
        ),
        Rule(
            cel="self.rollout.steps.all(step, has(step.weight) == (self.traffic.provider == 'GatewayAPI'))",
            message="spec.rollout.steps have weight with spec.traffic.provider GatewayAPI, "
            "and replicas with ReplicaRatio: change one of them",
            check=lambda spec: all(
                (step.weight is not None) == (spec.traffic.provider == Provider.GATEWAY_API)
                for step in spec.rollout.steps
            ),
        ),
        Rule(
            cel="self.traffic.provider == 'GatewayAPI' || !has(self.autoscaling)",
            message="spec.autoscaling needs spec.traffic.provider GatewayAPI: with ReplicaRatio the number of pods "
            "divides the requests, so it can't follow the load as well",
            check=lambda spec: spec.traffic.provider == Provider.GATEWAY_API or spec.autoscaling is None,
        ),
        Rule(
            cel="!has(self.autoscaling) || 'cpu' in self.resources.requests",
            message="spec.autoscaling measures CPU against spec.resources.requests.cpu: set it",
            check=lambda spec: spec.autoscaling is None or quantity(spec.resources.requests.get("cpu")) is not None,
        ),
    )


class ResolvedVersion(Reported):
    """The version that the deployment decided on."""

    name: ModelName
    version: ModelVersion
    digest: Digest


VERSION_MAX: Final = 32

_Text = Annotated[str, Field(max_length=1024)]
_Name = Annotated[str, Field(max_length=64)]


class RevisionStatus(Reported):
    """One revision: a model version with the server that runs it."""

    name: _Name
    """The hash of what defines it, as on its pods' label `cloze.dev/revision`."""
    number: int
    version: ModelVersion
    image: Annotated[str, Field(max_length=512)] = ""
    role: Annotated[str, Field(max_length=32)] = ""
    """Stable, Canary, Previous (kept until the rollback window is over), Rejected, or empty for history."""
    replicas: int = 0
    ready_replicas: int = 0
    weight: int = 0
    """Per cent of the requests that it is given."""
    reason: Annotated[str, Field(max_length=128)] = ""
    message: _Text = ""
    """Why it was rejected."""


class CheckStatus(Reported):
    """The present result of one check of the canary."""

    name: _Name
    result: Annotated[str, Field(max_length=32)]
    """Pass, Fail, Waiting (not enough requests yet), NoData or Unknown (Prometheus didn't say)."""
    message: _Text = ""
    requests: int = 0
    """Of the canary since the rollout began."""
    detectable: float | None = None
    """The smallest ratio of the canary that so many requests would prove on average."""


class RolloutStatus(Reported):
    """How far a rollout is. `state` says what it does now."""

    state: Annotated[str, Field(max_length=32)] = ""
    step: Annotated[str, Field(max_length=32)] = ""
    """Such as `2/3`; the last one is the promotion."""
    weight: int = 0
    """Per cent of the requests that the canary is given now."""
    approximate: bool = False
    """Whether the weight is only the canary's share of the pods."""
    canary_version: Annotated[str, Field(max_length=32)] = ""
    message: _Text = ""
    start_time: Annotated[str, Field(max_length=32)] = ""
    """Since when the canary has been given requests."""
    checks: Annotated[list[CheckStatus], Field(max_length=32)] = []


class LoadedVersion(Reported):
    """A version that ready pods themselves report as loaded, and how many of them; a silent pod counts for none."""

    version: Annotated[str, Field(max_length=VERSION_MAX)]
    ready_pods: int


class ModelDeploymentStatus(Reported):
    """Observed state of a ModelDeployment. `state` is derived from the conditions, for the printer column only."""

    observed_generation: int = 0
    state: Annotated[str, Field(max_length=32)] = ""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []
    desired: ResolvedVersion | None = None
    """What the spec asks for."""
    stable: ResolvedVersion | None = None
    """What all requests go to but the canary's."""
    rollout: RolloutStatus | None = None
    revisions: Annotated[list[RevisionStatus], Field(max_length=64)] = []
    loaded: Annotated[list[LoadedVersion], Field(max_length=32)] = []
    replicas: int = 0
    ready_replicas: int = 0
    updated_replicas: int = 0
    selector: Annotated[str, Field(max_length=512)] = ""
    """Label selector of the pods, for the scale subresource."""
    url: Annotated[str, Field(max_length=512)] = ""
    """Address inside the cluster."""
