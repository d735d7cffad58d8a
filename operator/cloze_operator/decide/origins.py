"""Which exact versions a run starts from and learns from."""

from cloze_api.resources import FineTuneJob, TrainingJob
from cloze_operator.decide.answers import Answer, NotFound, Unavailable, Version
from cloze_operator.decide.fields import dig
from cloze_operator.decide.snapshot import TrainingSnapshot, finished_status
from cloze_operator.decide.verdict import Verdict
from cloze_operator.desired.origins import Origins, ResolvedModel, read_origins, registered_base, registered_teacher


def frozen_origins(snapshot: TrainingSnapshot) -> Origins:
    """The versions that the run has started from, read back from a child. Before the start nothing is frozen."""
    if not snapshot.has_started:
        return Origins()
    kept, job = (read_origins(snapshot.children.get(kind)) for kind in ("ConfigMap", "Job"))
    return Origins(base=kept.base or job.base, teacher=kept.teacher or job.teacher)


def resolved_origins(snapshot: TrainingSnapshot) -> Origins:
    """The versions to use."""
    frozen = frozen_origins(snapshot)
    base = frozen.base or _exact(_base_answer(snapshot)) if _has_base(snapshot.job) else None
    teacher = frozen.teacher or _exact(snapshot.teacher) if _has_teacher(snapshot.job) else None
    return Origins(base=base, teacher=teacher)


def _exact(answer: Answer) -> ResolvedModel | None:
    if isinstance(answer, Version) and answer.digest:
        return ResolvedModel(answer.name, answer.version, answer.digest)
    return None


def _has_base(job: TrainingJob | None) -> bool:
    return job is not None and (registered_base(job) is not None or _awaited(job) is not None)


def _has_teacher(job: TrainingJob | None) -> bool:
    return job is not None and registered_teacher(job) is not None


def _awaited(job: TrainingJob | None) -> str | None:
    """Name of the PretrainJob that makes the base."""
    base = job.spec.base.pretrain_job if isinstance(job, FineTuneJob) else None
    return base.name if base else None


def _base_answer(snapshot: TrainingSnapshot) -> Answer:
    if _awaited(snapshot.job) is None:
        return snapshot.base
    model = dig(snapshot.base_job, "status", "model")
    return Version(model["name"], model["version"], model["digest"], model.get("runId", "")) if model else None


def resolve_base(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """Condition BaseReady of a run with a base in the registry, or that waits for one."""
    if not _has_base(snapshot.job):
        return verdict.without("BaseReady")
    if base := resolved_origins(snapshot).base:
        return verdict.find("BaseReady", "True", "BaseResolved", _told(base))
    reason, message = _why_no_base(snapshot)
    return verdict.find("BaseReady", "False", reason, message)


def resolve_teacher(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """Condition TeacherReady of a run that is distilled."""
    if not _has_teacher(snapshot.job):
        return verdict.without("TeacherReady")
    if teacher := resolved_origins(snapshot).teacher:
        return verdict.find("TeacherReady", "True", "TeacherResolved", _told(teacher))
    reason, message = _why_not_registered(snapshot.teacher, "teacher")
    return verdict.find("TeacherReady", "False", reason, message)


def _told(model: ResolvedModel) -> str:
    return f"{model.name} version {model.version}, {model.digest}"


def _why_no_base(snapshot: TrainingSnapshot) -> tuple[str, str]:
    pretrain = _awaited(snapshot.job)
    if pretrain is None:
        return _why_not_registered(snapshot.base, "base")
    if snapshot.base_job is None:
        return "PretrainJobNotFound", f"PretrainJob {pretrain} doesn't exist: create it, or name another base"
    if finished_status(snapshot.base_job) is False:
        return "PretrainJobFailed", f"PretrainJob {pretrain} has failed: replace it, or name another base"
    return "WaitingForPretrainJob", f"PretrainJob {pretrain} hasn't registered its model yet"


def _why_not_registered(answer: Answer, what: str) -> tuple[str, str]:
    match answer:
        case NotFound(message):
            return "ModelNotFound", f"{message}: register it, or name another {what}"
        case Version(name=name, version=version):
            return "DigestMissing", f"{name} version {version} has no digest tag: it wasn't registered by Cloze"
        case Unavailable(message):
            return "RegistryUnavailable", message
        case None:
            return "RegistryUnavailable", "the registry wasn't asked"
