"""What the specs of PretrainJob and FineTuneJob share: topology, storage, checkpoints, failure policy, registry."""

import re
from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from cloze_api.card import Card
from cloze_api.names import CANDIDATE_ALIAS, DEVICE_PREFIX
from cloze_api.quantity import Quantity, quantity
from cloze_api.scheduling import NodeSelector, PriorityClassName, Tolerations
from cloze_api.schema import Alias, ModelName, Rule, Schema, alias_rule
from cloze_api.source import Credentials


class Resources(Schema):
    """Compute resources of one pod, in Kubernetes' own terms."""

    requests: Annotated[dict[str, Quantity], Field(max_length=8)] = {}
    limits: Annotated[dict[str, Quantity], Field(max_length=8)] = {}


_RESOURCE_NAME = (
    "^(cpu|memory|ephemeral-storage|hugepages-[0-9]+[KMG]i"
    "|[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)$"
)


def resource_rules(path: str) -> tuple[Rule, ...]:
    """The rules on the compute resources at this path, for the model that has them as its `resources`."""

    def fits(resources: Resources) -> bool:
        wanted = ((quantity(text), quantity(resources.limits.get(name))) for name, text in resources.requests.items())
        return all(request is None or limit is None or request <= limit for request, limit in wanted)

    return (
        Rule(
            cel=f"self.resources.requests.all(name, name.matches('{_RESOURCE_NAME}')) && "
            f"self.resources.limits.all(name, name.matches('{_RESOURCE_NAME}'))",
            message=f"{path} names a resource that Kubernetes doesn't have: "
            "use cpu, memory, ephemeral-storage, hugepages-2Mi or a device such as nvidia.com/gpu",
            check=lambda model: all(
                re.match(_RESOURCE_NAME, name) for name in (*model.resources.requests, *model.resources.limits)
            ),
        ),
        Rule(
            cel="self.resources.requests.all(name, !(name in self.resources.limits) || "
            "quantity(string(self.resources.requests[name]))"
            ".compareTo(quantity(string(self.resources.limits[name]))) <= 0)",
            message=f"{path}.requests asks for more than {path}.limits allows: lower the request or raise the limit",
            check=lambda model: fits(model.resources),
        ),
    )


def size_rule(path: str, example: str) -> Rule:
    """The rule on the size at this path, for the model that has it as its own field."""
    name = path.rsplit(".", 1)[1]
    field = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)
    return Rule(
        cel=f"quantity(string(self.{name})).isGreaterThan(quantity('0'))",
        message=f"{path} is nothing at all: give a size such as {example}",
        check=lambda model: bool(quantity(getattr(model, field))),
    )


_GPU: Final = f"{DEVICE_PREFIX}gpu"

#: Settings of NCCL that choose networks, ways and amounts, and neither load code nor touch files.
_NCCL: Final = (
    *("ALGO", "BUFFSIZE", "CROSS_NIC", "CUMEM_ENABLE", "DEBUG", "DEBUG_SUBSYS", "DMABUF_ENABLE"),
    *("IB_ADAPTIVE_ROUTING", "IB_DISABLE", "IB_GID_INDEX", "IB_HCA", "IB_PCI_RELAXED_ORDERING"),
    *("IB_QPS_PER_CONNECTION", "IB_RETRY_CNT", "IB_SL", "IB_TC", "IB_TIMEOUT", "MAX_CTAS", "MIN_CTAS"),
    *("MNNVL_ENABLE", "NET_GDR_LEVEL", "NET_GDR_READ", "NSOCKS_PERTHREAD", "NVLS_ENABLE", "P2P_DISABLE", "P2P_LEVEL"),
    *("PROTO", "SHM_DISABLE", "SOCKET_FAMILY", "SOCKET_IFNAME", "SOCKET_NTHREADS"),
)


class Topology(Schema):
    """How many pods train, and how many processes run in each. A suspended run may be given another one: it goes on
    from its checkpoint, and what it learns is the same but for rounding and dropout."""

    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Pods of the gang, one per machine in production."""
    processes_per_node: Annotated[int, Field(ge=1, le=16)] | None = None
    """Ranks in one pod. When absent as many as it has GPUs, by `nvidia.com/gpu` in `resources.limits`; else 1."""
    threads_per_process: Annotated[int, Field(ge=1, le=256)] = 1
    """CPU threads of one rank. Part of the result: bit-identical resume holds for the same number only."""
    resources: Resources = Resources()
    shared_memory: Quantity = "64Mi"
    """Size of `/dev/shm`."""
    node_selector: NodeSelector = {}
    tolerations: Tolerations = []
    priority_class_name: PriorityClassName = ""
    grace_seconds: Annotated[int, Field(ge=10, le=3600)] = 60
    """How long a pod that is told to go has for its checkpoint, until it is killed."""
    rendezvous_seconds: Annotated[int, Field(ge=30, le=86_400)] = 600
    """A pod that has waited so long for the gang to be whole ends for a peer's sake (exit code 22); another comes."""
    nccl: Annotated[dict[str, Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=32)] = {}
    """NCCL's settings in each rank's environment, by their names without `NCCL_`: `SOCKET_IFNAME`, `IB_HCA`… Those that
    name a file or a plug-in aren't taken."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *resource_rules("spec.topology.resources"),
        size_rule("spec.topology.sharedMemory", "64Mi"),
        Rule(
            cel=f"self.nccl.all(name, name in {list(_NCCL)})",
            message="spec.topology.nccl has a name that isn't taken: give names as NCCL documents them, without NCCL_, "
            f"of {', '.join(_NCCL)}",
            check=lambda topology: topology.nccl.keys() <= set(_NCCL),
        ),
        Rule(
            cel=f"!has(self.processesPerNode) || !('{_GPU}' in self.resources.limits) || "
            f"quantity(string(self.resources.limits['{_GPU}'])).asInteger() == self.processesPerNode",
            message=f"spec.topology.processesPerNode must be the number of {_GPU} in spec.topology.resources.limits, "
            "as each process trains on one: set it to that number, or leave it out",
            check=lambda topology: (
                topology.processes_per_node is None
                or _GPU not in topology.resources.limits
                or quantity(topology.resources.limits[_GPU]) == topology.processes_per_node
            ),
        ),
    )

    @property
    def processes(self) -> int:
        """Ranks in one pod."""
        return self.processes_per_node or max(1, int(quantity(self.resources.limits.get(_GPU)) or 1))

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.processes


class AccessMode(StrEnum):
    """Whether the run's volume can be mounted on one machine or on many."""

    READ_WRITE_ONCE = "ReadWriteOnce"
    READ_WRITE_MANY = "ReadWriteMany"


class DataCache(Schema):
    """Where prepared data are that jobs share."""

    claim_name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
    """A claim of the job's namespace that all pods of the jobs can mount; nothing in it is ever removed, but for data
    that are damaged. Its file system must have locks (flock)."""


class Storage(Schema):
    """The run's volume: shards, checkpoints and the artifact before it is registered."""

    size: Quantity = "10Gi"
    storage_class_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    access_mode: AccessMode = AccessMode.READ_WRITE_ONCE
    """With ReadWriteOnce all pods of the run are pinned to one machine."""
    ephemeral: bool = False
    """No volume, but `size` of the pod's own machine: a new pod prepares the data again and goes on from the newest
    checkpoint, which `checkpoint.uri` has. For runs of one pod."""
    data_cache: DataCache | None = None
    """Prepared data that jobs share: of the same text, cleaning and tokenizer one prepares them, and the others take
    them. Each run prepares its own when absent. Whoever may write there decides what these jobs are trained on."""

    rules: ClassVar[tuple[Rule, ...]] = (
        size_rule("spec.storage.size", "10Gi"),
        Rule(
            cel="!self.ephemeral || !has(self.storageClassName)",
            message="spec.storage.storageClassName is for volumes, and spec.storage.ephemeral has none: remove one",
            check=lambda storage: not storage.ephemeral or storage.storage_class_name is None,
        ),
    )


#: Bucket names as Amazon has them; of the path whatever needs no escape.
_BUCKET_PATTERN: Final = r"^s3://[a-z0-9][-.a-z0-9]{1,61}[a-z0-9](/[A-Za-z0-9_=-][-A-Za-z0-9_.=]*)*/?$"


class Checkpoint(Schema):
    """When the training state is saved, and how much of it is kept."""

    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    uri: Annotated[str, Field(pattern=_BUCKET_PATTERN, max_length=512)] | None = None
    """`s3://bucket/prefix`, under which each run has a folder of its own; on the run's volume when absent."""
    credentials: Credentials | None = None
    """Of `uri`. Outside a cluster the environment's variables of the same names are used instead."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.credentials) || has(self.uri)",
            message="spec.checkpoint.credentials are for spec.checkpoint.uri: name the bucket, or remove them",
            check=lambda checkpoint: checkpoint.credentials is None or checkpoint.uri is not None,
        ),
    )


class FailurePolicy(Schema):
    """What happens when a training pod fails. Evictions and preemptions are not counted."""

    max_restarts: Annotated[int, Field(ge=0, le=100)] = 3
    stuck_seconds: Annotated[int, Field(ge=10, le=86_400)] = 600
    """A rank that has waited within a training step for so long ends, and names the ranks that haven't come and their
    pods. The gang starts again from the newest checkpoint. Of a run that has started it may change while suspended."""


class Signing(Schema):
    """The private key by which the artifact is signed: a key of a Secret of the job's namespace."""

    secret_name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = "model.key"
    """In PEM, without a password, on P-256, P-384 or P-521."""


class Registry(Schema):
    """Where the finished artifact is registered."""

    name: ModelName
    """The registered model in MLflow; created when missing."""
    alias: Alias = CANDIDATE_ALIAS
    """Alias that the operator points to the new version. It only ever moves to a higher version."""
    card: Card | None = None
    """What the model card can't know by itself: the artifact's `README.md`, and the version's description in MLflow."""
    signing: Signing | None = None
    """Sign the artifact before it is registered; servers and jobs with the public key load what is signed alone. Every
    pod of the run can read the key. Outside a cluster the environment's CLOZE_SIGNING_KEY names its file."""

    rules: ClassVar[tuple[Rule, ...]] = (alias_rule("spec.registry.alias"),)


class Schedule(StrEnum):
    """Learning-rate schedule after warm-up."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"
    WSD = "wsd"
    """Constant, and at the end down to zero over `decayShare` of the steps, as 1 - √x (arXiv:2405.18392)."""


class Algorithm(StrEnum):
    """How gradients change the weights."""

    ADAMW = "adamw"
    """Loshchilov and Hutter, arXiv:1711.05101."""
    STABLE_ADAMW = "stable-adamw"
    """AdamW with smaller steps for tensors whose gradient has grown faster than its average (arXiv:2304.13013)."""


class Arithmetic(StrEnum):
    """How numbers are multiplied. Weights, their updates and the loss are fp32 in any case."""

    FP32 = "fp32"
    BF16 = "bf16"
    """Matrix products in bfloat16: on GPUs from Ampere on, and on processors with AVX512_BF16, AMX or Arm's BF16; else
    refused."""
    FP16 = "fp16"
    """Matrix products in 16-bit floats with a loss that is scaled to fit: on GPUs, else refused. For those before
    Ampere, which have no bfloat16."""
    AUTO = "auto"
    """On GPUs bf16 where all have it, else fp16 (with `privacy` fp32); on processors fp32."""


class Sharding(StrEnum):
    """What each rank has of weights, gradients and optimizer state."""

    NONE = "none"
    """All of it."""
    FULL = "full"
    """A part, so that larger models fit; layers are gathered as they are run (FSDP2, arXiv:2304.11277)."""


class Optimization(Schema):
    """Optimizer settings that both kinds of training share."""

    algorithm: Algorithm = Algorithm.ADAMW
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-6

    batch_sequences: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Sequences in one global batch, over all ranks."""
    arithmetic: Arithmetic = Arithmetic.FP32
    activation_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them: the same weights, in less
    memory, for about a third more work."""
    compile: bool = False
    """Have torch.compile fuse the operations within each layer, for any number and length of rows; the first steps take
    a minute or so longer. The image needs a compiler, which Cloze's own has not: see the how-to; else refused."""
    sharding: Sharding = Sharding.NONE
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-4
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    schedule: Schedule = Schedule.LINEAR
    decay_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the steps after the warm-up in which the schedule `wsd` falls to zero."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    gradient_clip: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Largest allowed global L2 norm of the gradient."""
    max_loss_rise: Annotated[float, Field(gt=0, le=1000)] = 2.0
    """A training diverges when the mean loss of 16 steps lies more than so many nats above the lowest such mean, or
    when the gradient isn't finite in 3 steps in a row."""
    max_rollbacks: Annotated[int, Field(ge=0, le=100)] = 2
    """How often a diverging training goes back to a checkpoint of before and passes over the batches since. One that
    diverges once more, or before its first checkpoint, ends with the reason Diverged."""
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 0


class Profile(Schema):
    """Steps of the training that are profiled."""

    from_step: Annotated[int, Field(ge=0)] = 10
    """How many are done before; the first ones are slower than the rest."""
    steps: Annotated[int, Field(ge=1, le=10)] = 3
    """How many; a trace grows with each."""


class TrainingSpec(Schema):
    """Fields of both kinds of training job. After the start `suspend`, deadline, TTL and `maxRestarts` change freely,
    `topology`, `profile` and `stuckSeconds` while the job is suspended, and what defines the result not at all."""

    topology: Topology = Topology()
    storage: Storage = Storage()
    checkpoint: Checkpoint = Checkpoint()
    failure_policy: FailurePolicy = FailurePolicy()
    registry: Registry
    profile: Profile | None = None
    """A trace of some of rank 0's steps, in the run's volume and in MLflow. None is made when absent. Of a run that has
    started it may change while suspended."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Training image; the operator's default when absent."""
    suspend: bool = False
    """True stops the pods after a checkpoint and keeps the volume; false goes on from there."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """Seconds that the run may be active, over all its restarts, until it fails; any suspension begins them anew."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Seconds after the end until the resource and all its children are deleted."""


#: CEL on a spec for its ranks, `Topology.world_size`.
RANKS: Final = (
    "self.topology.nodes * (has(self.topology.processesPerNode) ? self.topology.processesPerNode : "
    f"'{_GPU}' in self.topology.resources.limits ? "
    f"quantity(string(self.topology.resources.limits['{_GPU}'])).asInteger() : 1)"
)

BATCH_COVERS_RANKS = Rule(
    cel=f"self.optimization.batchSequences >= {RANKS}",
    message="spec.optimization.batchSequences is smaller than the number of ranks "
    "(topology.nodes × topology.processesPerNode): raise the batch or use fewer processes",
    check=lambda spec: spec.optimization.batch_sequences >= spec.topology.world_size,
)


EPHEMERAL_NEEDS_BUCKET = Rule(
    cel="!self.storage.ephemeral || (has(self.checkpoint.uri) && self.topology.nodes == 1)",
    message="spec.storage.ephemeral is for runs of one pod (topology.nodes: 1) whose checkpoints are in a bucket: set "
    "spec.checkpoint.uri, or take a volume",
    check=lambda spec: not spec.storage.ephemeral or (spec.checkpoint.uri is not None and spec.topology.nodes == 1),
)

#: Rules on the spec of either kind.
SPEC_RULES: Final = (BATCH_COVERS_RANKS, EPHEMERAL_NEEDS_BUCKET)


def _unless(free: str, fields: tuple[str, ...], message: str) -> tuple[Rule, ...]:
    """Rules at the resource's root: once `status.startTime` is set, these fields of `spec` change only where `free`."""
    return tuple(
        Rule(
            cel=f"!has(oldSelf.status) || !has(oldSelf.status.startTime) || {free}"
            f"(has(self.spec.{field}) == has(oldSelf.spec.{field}) && "
            f"(!has(self.spec.{field}) || self.spec.{field} == oldSelf.spec.{field}))",
            message=message.format(field=field),
        )
        for field in fields
    )


def immutable_after_start(kind: str, fields: tuple[str, ...]) -> tuple[Rule, ...]:
    """Rules at the resource's root: these fields of `spec` may not change once `status.startTime` is set."""
    return _unless("", fields, f"spec.{{field}} can't change after the run has started: create a new {kind}")


#: What pods read once, as they start, and what the result doesn't follow from: a suspended run takes on another one
#: when it is resumed. Either of the two may be the suspended one, as a change may come together with a suspension, or
#: with its end: the operator stops pods that have the old one in any case.
ADJUSTABLE_RULES: Final = _unless(
    "self.spec.suspend || oldSelf.spec.suspend || ",
    ("topology", "profile", "failurePolicy.stuckSeconds"),
    "spec.{field} can't change while the run's pods have the old one: suspend the job first (spec.suspend: true), "
    "change it, then resume",
)
