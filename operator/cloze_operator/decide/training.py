"""Decisions about a training job, in order: may it exist, may it start, how is it going, how did it end."""

from dataclasses import replace
from datetime import timedelta

from cloze_api.training_status import TrainingStatus
from cloze_operator.decide.adjustment import adjust_job, adjustments, tell_adjustments
from cloze_operator.decide.admission import OUT_OF_QUEUE, is_held, queue_of
from cloze_operator.decide.drift import has_drifted, is_current
from cloze_operator.decide.fields import condition, dig, format_time, is_going, is_true, parse_time
from cloze_operator.decide.nodes import report_nodes
from cloze_operator.decide.origins import resolve_base, resolve_teacher, resolved_origins
from cloze_operator.decide.ownership import foreign, left_over
from cloze_operator.decide.registration import name_version, point_alias
from cloze_operator.decide.renewal import begin_deadline_anew, renew_job
from cloze_operator.decide.run import conclude, follow_run, is_exhausted, report_progress
from cloze_operator.decide.snapshot import TrainingSnapshot, finished_status
from cloze_operator.decide.verdict import Change, Steps, Verdict, carried, target_of
from cloze_operator.desired.metadata import Manifest
from cloze_operator.desired.trainer import is_pinned
from cloze_operator.desired.training import claim, config_map, indexed_job, mutable_job_fields, service

#: Kinds that can't be changed in place: before the start an outdated one is deleted and made anew.
_IMMUTABLE_KINDS = ("Job", "PersistentVolumeClaim")


def leave_when_going(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """A resource that is being deleted is the garbage collector's."""
    return verdict.settle() if is_going(snapshot.resource) else verdict


def expire(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """`ttlSecondsAfterFinished`, from the moment on which nothing is left to do: a success has its alias to set yet.

    Only the resource has a TTL; its children go with it.
    """
    ttl = dig(snapshot.resource, "spec", "ttlSecondsAfterFinished")
    ended = parse_time(dig(snapshot.resource, "status", "completionTime"))
    finished = finished_status(snapshot.resource)
    if ttl is None or ended is None or finished is None:
        return verdict
    if finished:
        registered = condition(snapshot.resource, "Registered")
        if registered.get("status") != "True":
            return verdict
        ended = max(ended, parse_time(registered.get("lastTransitionTime")) or ended)
    left = (ended + timedelta(seconds=ttl) - snapshot.now).total_seconds()
    if left <= 0:
        return verdict.expiring().settle()
    return verdict.again(left)


def accept(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """The spec is one that this operator understands, and its children's names are free."""
    if snapshot.job is None:
        return verdict.find("Accepted", "False", "InvalidSpec", snapshot.invalid).settle()
    if conflict := foreign(snapshot.children, snapshot.resource):
        verdict = verdict.find("Accepted", "False", "NameConflict", conflict)
        return verdict.again(snapshot.platform.wait_seconds).settle()
    if leaving := left_over(snapshot.children, snapshot.resource):
        return _waiting(verdict, "WaitingForCleanup", leaving).again(2).settle()
    pinned = (
        f"storage.accessMode is ReadWriteOnce: all {snapshot.job.spec.topology.nodes} pods are pinned to one machine"
    )
    return verdict.find("Accepted", "True", "SpecAccepted", pinned if is_pinned(snapshot.job) else "")


def rest_when_finished(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """A run that has ended is never started again; what is left to do is its alias."""
    finished = finished_status(snapshot.resource)
    if finished is None:
        return verdict
    # Whatever has become of the spec since: the end stands.
    verdict = verdict.confirmed()
    if finished and not is_true(snapshot.resource, "Registered"):
        verdict = point_alias(snapshot, name_version(snapshot, verdict))
    return verdict.settle()


def find_sources(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """Claims and ConfigMaps that the run reads must exist before there are pods that would hang without them."""
    if snapshot.missing:
        text = "; ".join(snapshot.missing)
        verdict = verdict.find("SourcesReady", "False", "SourceNotFound", text)
        return _waiting(verdict, "WaitingForSources", text).again(snapshot.platform.wait_seconds).settle()
    return verdict.find("SourcesReady", "True", "SourcesFound")


def wait_for_former_pods(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """No gang beside the last pods of one whose Job is gone already: two would write the same checkpoints."""
    if not snapshot.leaving or is_held(snapshot):
        return verdict
    names = ", ".join(sorted(snapshot.leaving))
    text = (
        f"pods of a Job that is gone haven't ended: {names}; delete them if they aren't stopping, and with --force if "
        "their machine is off for good"
    )
    return _waiting(verdict, "WaitingForPods", text).again(2).settle()


def _waiting(verdict: Verdict, reason: str, message: str) -> Verdict:
    return verdict.find("Running", "False", reason, message).find("Succeeded", "Unknown", reason, message)


def wait_for_origins(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """A run starts from exact versions of its base and its teacher; until it has them, it waits."""
    verdict = resolve_teacher(snapshot, resolve_base(snapshot, verdict))
    for kind, reason in (("BaseReady", "WaitingForBase"), ("TeacherReady", "WaitingForTeacher")):
        ready = verdict.findings.get(kind)
        if ready and ready.status != "True":
            return _waiting(verdict, reason, ready.message).again(snapshot.platform.wait_seconds).settle()
    return verdict


def provide_children(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """Children that are missing are made; before the start, outdated ones are made anew, and after it the ConfigMap
    that gives another topology to pods, once the former ones are gone.

    The start is written into the status right before the Job: from then on the API server refuses changes of what
    defines the result, so no pod can run with another spec than the one that is shown.
    """
    job, owner, origins = snapshot.parsed, snapshot.resource, resolved_origins(snapshot)
    ephemeral = job.spec.storage.ephemeral
    manifests = (
        *(() if ephemeral else (claim(owner, job),)),
        config_map(owner, job, origins),
        service(owner, job),
        *(() if is_held(snapshot) else (indexed_job(owner, job, origins, snapshot.platform),)),
    )
    outdated = [manifest for manifest in manifests if not _is_settled(snapshot, manifest)]
    replaced = [manifest["kind"] for manifest in outdated if _must_go(snapshot, manifest)]
    if replaced:
        targets = tuple(target_of(snapshot.children[kind]) for kind in replaced if _exists(snapshot, kind))
        text = f"{' and '.join(replaced)} made from an older spec or being deleted"
        verdict = _waiting(verdict, "ReplacingChildren", text)
        return verdict.replacing(*targets).again(2).settle()
    verdict = verdict.applying(*outdated)
    if any(manifest["kind"] == "ConfigMap" for manifest in outdated) and adjustments(snapshot):
        verdict = tell_adjustments(snapshot, verdict)
    if ephemeral and _exists(snapshot, "PersistentVolumeClaim"):
        verdict = verdict.deleting(target_of(snapshot.children["PersistentVolumeClaim"]))
    if is_held(snapshot) and _exists(snapshot, "Job"):
        verdict = verdict.deleting(replace(target_of(snapshot.children["Job"]), with_pods=True))
    if not job.spec.suspend and not dig(owner, "status", "startTime"):
        started = dig(snapshot.children.get("Job"), "status", "startTime") or format_time(snapshot.now)
        verdict = verdict.starting(started)
    return verdict


def _exists(snapshot: TrainingSnapshot, kind: str) -> bool:
    return kind in snapshot.children and not is_going(snapshot.children[kind])


def _is_settled(snapshot: TrainingSnapshot, manifest: Manifest) -> bool:
    child = snapshot.children.get(manifest["kind"])
    if child is None:
        return False
    if is_going(child):
        # A claim that is in use goes only after its pods: until then the run isn't disturbed.
        return snapshot.has_started and manifest["kind"] == "PersistentVolumeClaim"
    if manifest["kind"] == "Service":
        return not has_drifted(child, manifest)
    if manifest["kind"] == "ConfigMap" and adjustments(snapshot):
        return "Job" in snapshot.children
    return snapshot.has_started or is_current(child, manifest)


def _must_go(snapshot: TrainingSnapshot, manifest: Manifest) -> bool:
    child = snapshot.children.get(manifest["kind"])
    return child is not None and (is_going(child) or manifest["kind"] in _IMMUTABLE_KINDS)


def keep_job_in_step(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """Suspension, deadline and restarts follow the resource while the run lasts; in a queue, suspension is Kueue's.

    A Job whose limit is below the failures that it has had is ended by its controller: that is how a gang which has
    used its restarts up is stopped.
    """
    live = snapshot.children.get("Job")
    if live is None or is_going(live) or is_held(snapshot) or is_true(live, "Complete") or is_true(live, "Failed"):
        return verdict
    spec = dig(live, "spec") or {}
    spent = int(verdict.status.get("activeSeconds") or 0)
    fields = mutable_job_fields(snapshot.parsed, spent) | ({"backoffLimit": 0} if is_exhausted(snapshot) else {})
    if queue_of(live):
        del fields["suspend"]
    wanted = {key: value for key, value in fields.items() if (spec.get(key) or 0) != (value or 0)}
    return verdict.changing(Change(target_of(live), wanted)) if wanted else verdict


def training_state(verdict: Verdict) -> str:
    """`status.state`: derived from the conditions, for people."""
    found = {kind: (finding.status, finding.reason) for kind, finding in verdict.findings.items()}
    succeeded = found.get("Succeeded", ("Unknown", ""))[0]
    running, reason = found.get("Running", ("False", ""))
    if succeeded in ("True", "False"):
        return "Succeeded" if succeeded == "True" else "Failed"
    if found.get("Accepted", ("True", ""))[0] == "False":
        return "Invalid"
    if reason in ("Suspended", "Queued"):
        return reason
    if reason == OUT_OF_QUEUE:
        return "Suspended"
    if running == "True":
        return "Running"
    return "Waiting" if reason.startswith("Waiting") else "Pending"


TRAINING = Steps(
    steps=(
        leave_when_going,
        expire,
        rest_when_finished,
        accept,
        wait_for_origins,
        find_sources,
        begin_deadline_anew,
        wait_for_former_pods,
        provide_children,
        keep_job_in_step,
        report_progress,
        report_nodes,
        follow_run,
        adjust_job,
        renew_job,
        conclude,
        name_version,
        point_alias,
    ),
    state=training_state,
)


def decide_training(snapshot: TrainingSnapshot) -> tuple[Verdict, str]:
    """What is to happen to a training job, and its state."""
    return TRAINING.decide(snapshot, carried(snapshot.resource, TrainingStatus))
