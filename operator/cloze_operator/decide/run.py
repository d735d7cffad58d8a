"""How a training run is going, and how it ended."""

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from itertools import islice
from typing import Any

from cloze_api.evaluation import Gate
from cloze_api.figures import by_importance
from cloze_api.progress import ExitCode, Outcome, Progress
from cloze_api.training_status import METRICS_MAX
from cloze_operator.decide import pods
from cloze_operator.decide.admission import held_reason, is_held, waiting_for_admission
from cloze_operator.decide.fields import Object, condition, dig, format_time, is_going, is_true, parse_time
from cloze_operator.decide.snapshot import TrainingSnapshot
from cloze_operator.decide.verdict import Verdict

#: Progress changes with every step; the status is written this often at most.
_PROGRESS_INTERVAL = timedelta(seconds=2)

#: A Job that lacks pods for this long has been refused them: by a quota, by admission.
_NO_PODS = timedelta(seconds=10)


def summary(step: int, total: int) -> str:
    """`120/400 (30%)`."""
    return f"{step}/{total} ({100 * step // total}%)" if total else ""


def _of_data(progress: Progress) -> str:
    """`reading (30%)`, or `reading (12000 documents)` where the share isn't known."""
    if progress.doing is None:
        return ""
    if progress.done_bytes is not None and progress.total_bytes:
        return f"{progress.doing} ({100 * progress.done_bytes // progress.total_bytes}%)"
    return progress.doing if progress.documents is None else f"{progress.doing} ({progress.documents} documents)"


def _rounded(figure: float | None, digits: int) -> float | None:
    return None if figure is None else round(figure, digits)


def progress_status(progress: Progress, now: str) -> dict[str, Any]:
    """`status.progress`. JSON has no NaN, so a loss that isn't finite is left out."""
    figures = {
        "stage": progress.stage,
        "step": progress.step,
        "totalSteps": progress.total_steps,
        # For people, in a column; the registry has all digits.
        "loss": _rounded(progress.loss, 4),
        "tokensPerSecond": _rounded(progress.tokens_per_second, 1),
        "etaSeconds": progress.eta_seconds,
        "checkpointStep": progress.checkpoint_step,
        "figures": dict(islice(_told(progress.figures), METRICS_MAX)),
        "summary": summary(progress.step, progress.total_steps) or _of_data(progress),
        "doing": progress.doing,
        "documents": progress.documents,
        "doneBytes": progress.done_bytes,
        "totalBytes": progress.total_bytes,
        "updated": now,
    }
    return {
        key: value
        for key, value in figures.items()
        if value not in (None, {}) and not (isinstance(value, float) and not math.isfinite(value))
    }


def _told(figures: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Figures in four digits, which are for people."""
    return ((name, float(f"{value:.4g}")) for name, value in figures.items() if math.isfinite(value))


def report_progress(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """`status.progress`, not more often than every two seconds, and only when a figure has changed."""
    if snapshot.progress is None:
        return verdict
    old: dict[str, Any] = verdict.status.get("progress") or {}
    new = progress_status(snapshot.progress, format_time(snapshot.now))
    updated = parse_time(old.get("updated"))
    same = {**old, "updated": ""} == {**new, "updated": ""}
    if same or (updated and snapshot.now - updated < _PROGRESS_INTERVAL):
        return verdict
    return verdict.report(progress=new)


def _attempts(snapshot: TrainingSnapshot) -> tuple[list[pods.Attempt], list[pods.Attempt]]:
    """The gang's own failures that don't end the run: those that have been counted, and the new ones."""
    until = parse_time(dig(snapshot.resource, "status", "lastFailureTime"))
    failed = [attempt for attempt in pods.failed_attempts(snapshot.pods) if not pods.is_final(attempt)]
    old = [attempt for attempt in failed if until is not None and attempt[0].at <= until]
    return old, failed[len(old) :]


def count_restarts(snapshot: TrainingSnapshot) -> tuple[int, str | None]:
    """How often the gang has been restarted after a failure of its own, and until when failures have been counted.

    What was counted stays so: pods, and Jobs too, are deleted in time, and their stories with them.
    """
    before = int(dig(snapshot.resource, "status", "restarts") or 0)
    limit = snapshot.parsed.spec.failure_policy.max_restarts
    old, new = _attempts(snapshot)
    counted = new[: max(0, limit - before)]
    until = parse_time(dig(snapshot.resource, "status", "lastFailureTime"))
    # A pod may end later than the first of its attempt: its end is counted along with that one.
    ends = [end.at for attempt in (*old, *counted) for end in attempt] + ([until] if until else [])
    return before + len(counted), format_time(max(ends)) if ends else None


def is_exhausted(snapshot: TrainingSnapshot) -> bool:
    """Whether the gang has failed, and more often than it may be restarted: a lower limit alone ends no run."""
    before = int(dig(snapshot.resource, "status", "restarts") or 0)
    new = len(_attempts(snapshot)[1])
    return new > 0 and before + new > snapshot.parsed.spec.failure_policy.max_restarts


def count_interruptions(snapshot: TrainingSnapshot) -> tuple[int, str | None]:
    """How often the gang was interrupted, and until when that has been counted, as for restarts."""
    status = dig(snapshot.resource, "status") or {}
    before, until = int(status.get("interruptions") or 0), parse_time(status.get("lastInterruptionTime"))
    stopped = pods.interruptions(snapshot.pods)
    new = [attempt for attempt in stopped if until is None or attempt[0].at > until]
    times = max(before, len(new)) if until is None else before + len(new)
    ends = [end.at for attempt in stopped for end in attempt] + ([until] if until else [])
    return times, format_time(max(ends)) if ends else None


def follow_run(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """Condition Running, the number of restarts, and that of interruptions.

    What is counted in the look in which a Job goes would be counted of pods that may be gone: the next one sees them.
    """
    live = snapshot.children.get("Job")
    if is_held(snapshot) and (live is None or is_going(live) or verdict.delete):
        reason, text = held_reason(snapshot), _suspended(snapshot)
        return verdict.find("Running", "False", reason, text).find("Succeeded", "Unknown", reason, text)
    if live is None or verdict.delete:
        return verdict.find("Running", "False", "PodsPending", "the Job is being created").find(
            "Succeeded", "Unknown", "PodsPending", "the Job is being created"
        )
    limit = snapshot.parsed.spec.failure_policy.max_restarts
    before = dig(snapshot.resource, "status") or {}
    used, until = count_restarts(snapshot)
    guilty = pods.culprit(snapshot.pods)
    if used > int(before.get("restarts") or 0) and guilty:
        verdict = verdict.telling("Warning", "PodFailed", guilty.text)
    stopped = pods.interruptions(snapshot.pods)
    times, interrupted = count_interruptions(snapshot)
    if stopped and times > int(before.get("interruptions") or 0):
        verdict = verdict.telling("Warning", stopped[-1][0].outcome.reason, stopped[-1][0].text)
    verdict = verdict.report(
        restarts=used, lastFailureTime=until, interruptions=times, lastInterruptionTime=interrupted
    )
    status, reason, message = _running(snapshot, live)
    if not snapshot.parsed.spec.suspend:
        if used and guilty:
            message = f"{message}; {used} of {limit} restarts used, the last after {guilty.text}"
        if stopped:
            message = (
                f"{message}; interrupted {times} times (not counted as restarts), the last by {stopped[-1][0].text}"
            )
    verdict = verdict.find("Running", status, reason, message).find("Succeeded", "Unknown", reason, message)
    return verdict if reason in ("Suspended", "Queued") else verdict.again(snapshot.platform.poll_seconds)


def _suspended(snapshot: TrainingSnapshot) -> str:
    phases = [pods.phase(pod) for pod in snapshot.pods]
    if stopping := phases.count("Running") + phases.count("Terminating"):
        return f"{stopping} pods are stopping"
    checkpoint = dig(snapshot.resource, "status", "progress", "checkpointStep")
    since = f"the newest checkpoint is of step {checkpoint}" if checkpoint else "no checkpoint has been reported"
    return f"spec.suspend is true; {since}"


def _running(snapshot: TrainingSnapshot, live: Object) -> tuple[str, str, str]:
    nodes = snapshot.parsed.spec.topology.nodes
    phases = [pods.phase(pod) for pod in snapshot.pods]
    up = phases.count("Running")
    if snapshot.parsed.spec.suspend:
        return "False", "Suspended", _suspended(snapshot)
    if queued := waiting_for_admission(snapshot):
        return "False", "Queued", queued
    done = phases.count("Succeeded")
    if up + done == nodes:
        return "True", "PodsRunning", f"{up} of {nodes} pods run" + (f", {done} are done" if done else "")
    for pod in snapshot.pods:
        if not is_going(pod) and (found := pods.trouble(pod, snapshot.now)):
            return "False", found[0], found[1]
    begun = parse_time(dig(live, "status", "startTime") or live["metadata"].get("creationTimestamp"))
    made = len({pods.index_of(pod) or pods.name_of(pod) for pod in snapshot.pods})
    if made < nodes and begun and snapshot.now - begun > _NO_PODS:
        some = f"{made} of {nodes} pods" if made else "no pods"
        name = live["metadata"]["name"]
        return "False", "NoPods", f"Kubernetes has created {some}: `kubectl describe job {name}` says why"
    if _waits_for_registry(snapshot):
        text = "MLflow didn't answer; the finished artifact is on the run's volume and is registered once it does"
        return "False", "WaitingForRegistry", text
    return "False", "PodsPending", f"{up} of {nodes} pods run"


def _waits_for_registry(snapshot: TrainingSnapshot) -> bool:
    """Whether the last thing that happened to the gang is that its work was done and the registry away."""
    last = pods.attempts(snapshot.pods)[-1:]
    return any(end.exit_code == ExitCode.REGISTRY for attempt in last for end in attempt)


def conclude(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """Condition Succeeded of a run whose Job has ended."""
    live = snapshot.children.get("Job")
    if is_true(live, "Complete"):
        return _completed(snapshot, verdict, condition(live, "Complete"))
    if is_true(live, "Failed"):
        return _failed(snapshot, verdict, condition(live, "Failed"))
    return verdict


def _completed(snapshot: TrainingSnapshot, verdict: Verdict, ended: Object) -> Verdict:
    at = dig(snapshot.children["Job"], "status", "completionTime") or ended.get("lastTransitionTime")
    verdict = verdict.report(completionTime=at or format_time(snapshot.now))
    name = snapshot.parsed.spec.registry.name
    outcome = pods.registered(snapshot.pods, name)
    if outcome:
        model = {"name": name, "version": outcome.model_version}
        model |= {"digest": outcome.model_digest, "runId": outcome.run_id or ""}
        verdict = verdict.report(model=model, metrics=_figures(outcome, snapshot.parsed.spec.evaluation.gates))
        total = dig(verdict.status, "progress", "totalSteps")
        if total:
            # The last look at a pod's progress was before its end.
            done = {**verdict.status["progress"], "stage": "done", "step": total}
            done.pop("etaSeconds", None)
            verdict = verdict.report(progress={**done, "summary": summary(int(total), int(total))})
    text = outcome.message if outcome else ""
    verdict = verdict.find("Running", "False", "Completed", "all pods are done")
    return verdict.find("Succeeded", "True", "Completed", text).calm()


def _figures(outcome: Outcome, gates: Iterable[Gate]) -> dict[str, float]:
    """As many of the outcome's figures as a status holds; JSON has none that aren't finite."""
    finite = {name: value for name, value in outcome.metrics.items() if math.isfinite(value)}
    return by_importance(finite, gates, most=METRICS_MAX)


def _failed(snapshot: TrainingSnapshot, verdict: Verdict, ended: Object) -> Verdict:
    reason, message = _verdict_of_job(snapshot, ended)
    verdict = verdict.report(completionTime=ended.get("lastTransitionTime") or format_time(snapshot.now))
    verdict = verdict.find("Running", "False", "Failed", "the Job has failed").find(
        "Succeeded", "False", reason, message
    )
    guilty = pods.culprit(snapshot.pods)
    if guilty and guilty.outcome.metrics:
        # A model that isn't good enough: how good it is says what to do.
        verdict = verdict.report(metrics=_figures(guilty.outcome, snapshot.parsed.spec.evaluation.gates))
    return verdict.failing(reason).calm()


def _verdict_of_job(snapshot: TrainingSnapshot, ended: Object) -> tuple[str, str]:
    """The reason that helps most: the pod's own, unless time ran out."""
    reason = str(ended.get("reason") or "Failed")
    said = str(ended.get("message") or "")
    guilty = pods.culprit(snapshot.pods)
    if reason == "DeadlineExceeded":
        seconds = snapshot.parsed.spec.active_deadline_seconds
        return reason, f"the run was active longer than spec.activeDeadlineSeconds ({seconds} s)"
    if guilty is None:
        return reason, said
    if reason == "BackoffLimitExceeded":
        limit = snapshot.parsed.spec.failure_policy.max_restarts
        return guilty.outcome.reason, f"{guilty.text} (all {limit} restarts of failurePolicy.maxRestarts are used up)"
    return guilty.outcome.reason, guilty.text
