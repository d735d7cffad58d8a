"""Jobs that are made anew after their pods were taken away: Kubernetes doubles a Job's back-off with each such pod."""

import re
from dataclasses import replace
from datetime import timedelta
from typing import Final

from cloze_operator.decide import pods
from cloze_operator.decide.admission import is_suspended, queue_of
from cloze_operator.decide.deletions import ENDING
from cloze_operator.decide.fields import dig, is_going, is_true, parse_time
from cloze_operator.decide.run import is_exhausted
from cloze_operator.decide.snapshot import TrainingSnapshot
from cloze_operator.decide.verdict import Verdict, target_of

#: A younger Job's own back-off is short, and whatever goes on taking its pods away is not to be fed faster.
YOUNG: Final = timedelta(seconds=10)

#: A gang of which some still run is left to a short back-off: they'd have to start again.
PATIENCE: Final = timedelta(seconds=20)

#: A pod that took more than its own limit will take it again.
_OWN_FAULT: Final = re.compile(r"exceeds the|exceeded", re.IGNORECASE)


def begin_deadline_anew(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """Forget how long former Jobs were active, as Kubernetes forgets it of a Job that is suspended."""
    spent = dig(snapshot.resource, "status", "activeSeconds")
    return verdict.report(activeSeconds=0) if spent and is_suspended(snapshot) else verdict


def renew_job(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """Make the Job of an interrupted gang anew, so that the successors of its pods come at once.

    Not one that failed by itself, for which waiting is right, nor one that waits for the registry; not one in a queue
    either, which would lose its place. Nothing is lost with the Job: what counts of it stands in the status by then.
    """
    live = snapshot.children.get("Job")
    if live is None or is_going(live) or verdict.delete or is_suspended(snapshot) or queue_of(live):
        return verdict
    if any(is_true(live, kind) for kind in ENDING) or verdict.findings["Running"].reason == "WaitingForRegistry":
        return verdict
    # Kubernetes hasn't counted it yet, perhaps, and a Job made anew would be given another attempt.
    if is_exhausted(snapshot):
        return verdict
    status, guilty = dig(snapshot.resource, "status") or {}, pods.culprit(snapshot.pods)
    # A failure that is seen for the first time isn't in the status yet; a final one never is.
    failures = (parse_time(status.get("lastFailureTime")), guilty.at if guilty else None)
    failed = max((each for each in failures if each), default=None)
    interrupted = parse_time(status.get("lastInterruptionTime"))
    made = parse_time(live["metadata"].get("creationTimestamp"))
    if interrupted is None or made is None or interrupted < made or (failed and failed >= interrupted):
        return verdict
    phases = [pods.phase(pod) for pod in snapshot.pods]
    there = sum(phase in ("Pending", "Running", "Succeeded") for phase in phases)
    if there >= snapshot.parsed.spec.topology.nodes or "Terminating" in phases:
        return verdict
    if any(_OWN_FAULT.search(end.outcome.message) for end in pods.ends(snapshot.pods) if end.taken):
        return verdict
    age = min(snapshot.now - made, snapshot.now - interrupted if there else snapshot.now - made)
    needed = PATIENCE if there else YOUNG
    if age < needed:
        return verdict.again((needed - age).total_seconds())
    began = parse_time(dig(live, "status", "startTime"))
    active = int(status.get("activeSeconds") or 0) + (int((snapshot.now - began).total_seconds()) if began else 0)
    name = live["metadata"]["name"]
    return (
        verdict.deleting(replace(target_of(live), with_pods=True))
        .report(activeSeconds=active)
        .telling(
            "Normal", "JobRenewed", f"Job {name} is made anew after an interruption, without the back-off of this one"
        )
        .again(1)
    )
