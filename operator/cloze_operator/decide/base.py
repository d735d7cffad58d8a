"""Which exact version a fine-tuning run starts from."""

from cloze_api.resources import FineTuneJob
from cloze_operator.decide.answers import Answer, NotFound, Unavailable, Version
from cloze_operator.decide.fields import dig
from cloze_operator.decide.snapshot import TrainingSnapshot, finished_status
from cloze_operator.decide.verdict import Verdict
from cloze_operator.desired.base import ResolvedBase, read_base


def frozen_base(snapshot: TrainingSnapshot) -> ResolvedBase | None:
    """The base that the run has started from, read back from a child. Before the start nothing is frozen."""
    if not snapshot.has_started:
        return None
    return read_base(snapshot.children.get("ConfigMap")) or read_base(snapshot.children.get("Job"))


def resolved_base(snapshot: TrainingSnapshot) -> ResolvedBase | None:
    """The base to use; None for a PretrainJob, or when it isn't known yet."""
    if not isinstance(snapshot.job, FineTuneJob):
        return None
    if frozen := frozen_base(snapshot):
        return frozen
    answer = _answer(snapshot)
    if isinstance(answer, Version) and answer.digest:
        return ResolvedBase(answer.name, answer.version, answer.digest)
    return None


def _answer(snapshot: TrainingSnapshot) -> Answer:
    assert isinstance(snapshot.job, FineTuneJob)
    if snapshot.job.spec.base.pretrain_job is None:
        return snapshot.base
    model = dig(snapshot.base_job, "status", "model")
    return Version(model["name"], model["version"], model["digest"], model.get("runId", "")) if model else None


def resolve_base(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """Condition BaseReady of a FineTuneJob."""
    if not isinstance(snapshot.job, FineTuneJob):
        return verdict
    if base := resolved_base(snapshot):
        return verdict.find("BaseReady", "True", "BaseResolved", f"{base.name} version {base.version}, {base.digest}")
    reason, message = _why_not(snapshot, snapshot.job)
    return verdict.find("BaseReady", "False", reason, message)


def _why_not(snapshot: TrainingSnapshot, job: FineTuneJob) -> tuple[str, str]:
    pretrain = job.spec.base.pretrain_job
    if pretrain is None:
        return _why_not_registered(snapshot.base)
    if snapshot.base_job is None:
        return "PretrainJobNotFound", f"PretrainJob {pretrain.name} doesn't exist: create it, or name another base"
    if finished_status(snapshot.base_job) is False:
        return "PretrainJobFailed", f"PretrainJob {pretrain.name} has failed: replace it, or name another base"
    return "WaitingForPretrainJob", f"PretrainJob {pretrain.name} hasn't registered its model yet"


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
