"""Which exact version a run starts from."""

from cloze_api.resources import FineTuneJob, TrainingJob
from cloze_operator.decide.answers import Answer, NotFound, Unavailable, Version
from cloze_operator.decide.fields import dig
from cloze_operator.decide.snapshot import TrainingSnapshot, finished_status
from cloze_operator.decide.verdict import Verdict
from cloze_operator.desired.base import ResolvedBase, read_base, registered_base


def frozen_base(snapshot: TrainingSnapshot) -> ResolvedBase | None:
    """The base that the run has started from, read back from a child. Before the start nothing is frozen."""
    if not snapshot.has_started:
        return None
    return read_base(snapshot.children.get("ConfigMap")) or read_base(snapshot.children.get("Job"))


def resolved_base(snapshot: TrainingSnapshot) -> ResolvedBase | None:
    """The base to use; None for a run that has none in the registry, or when it isn't known yet."""
    if not _has_base(snapshot.job):
        return None
    if frozen := frozen_base(snapshot):
        return frozen
    answer = _answer(snapshot)
    if isinstance(answer, Version) and answer.digest:
        return ResolvedBase(answer.name, answer.version, answer.digest)
    return None


def _has_base(job: TrainingJob | None) -> bool:
    return job is not None and (registered_base(job) is not None or _awaited(job) is not None)


def _awaited(job: TrainingJob | None) -> str | None:
    """Name of the PretrainJob that makes the base."""
    base = job.spec.base.pretrain_job if isinstance(job, FineTuneJob) else None
    return base.name if base else None


def _answer(snapshot: TrainingSnapshot) -> Answer:
    if _awaited(snapshot.job) is None:
        return snapshot.base
    model = dig(snapshot.base_job, "status", "model")
    return Version(model["name"], model["version"], model["digest"], model.get("runId", "")) if model else None


def resolve_base(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """Condition BaseReady of a run with a base in the registry, or that waits for one."""
    if not _has_base(snapshot.job):
        return verdict
    if base := resolved_base(snapshot):
        return verdict.find("BaseReady", "True", "BaseResolved", f"{base.name} version {base.version}, {base.digest}")
    reason, message = _why_not(snapshot)
    return verdict.find("BaseReady", "False", reason, message)


def _why_not(snapshot: TrainingSnapshot) -> tuple[str, str]:
    pretrain = _awaited(snapshot.job)
    if pretrain is None:
        return _why_not_registered(snapshot.base)
    if snapshot.base_job is None:
        return "PretrainJobNotFound", f"PretrainJob {pretrain} doesn't exist: create it, or name another base"
    if finished_status(snapshot.base_job) is False:
        return "PretrainJobFailed", f"PretrainJob {pretrain} has failed: replace it, or name another base"
    return "WaitingForPretrainJob", f"PretrainJob {pretrain} hasn't registered its model yet"


def _why_not_registered(answer: Answer) -> tuple[str, str]:
    match answer:
        case NotFound(message):
            return "ModelNotFound", f"{message}: register it, or name another base"
        case Version(name=name, version=version):
            return "DigestMissing", f"{name} version {version} has no digest tag: it wasn't registered by Cloze"
        case Unavailable(message):
            return "RegistryUnavailable", message
        case None:
            return "RegistryUnavailable", "the registry wasn't asked"
