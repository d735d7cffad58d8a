"""What a ModelDeployment's status says: counted from the pods, as they themselves report, and from the record."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cloze_api.rollout import Provider
from cloze_operator.analysis.checks import Judgement, Result
from cloze_operator.decide import pods
from cloze_operator.decide.arms import ROUTE_CHANGING, Arm, arm, full_size, mismatches, route_refusal
from cloze_operator.decide.drift import is_current
from cloze_operator.decide.fields import Object, condition, dig, format_time, is_going
from cloze_operator.decide.guards import obstacle
from cloze_operator.decide.rollout import View
from cloze_operator.decide.snapshot import ServingSnapshot
from cloze_operator.decide.traffic import step_text, weights
from cloze_operator.decide.verdict import Verdict


def report_serving(snapshot: ServingSnapshot, verdict: Verdict) -> Verdict:
    """Replica counts, loaded versions, and whether the stable revision serves: condition Ready."""
    stable = arm(snapshot, snapshot.record.stable)
    ready = [pod for pod in snapshot.pods if pods.is_ready(pod)]
    versions = Counter(said.version for pod in ready if (said := snapshot.loaded.get(pods.name_of(pod))))
    verdict = verdict.report(
        replicas=sum(int(dig(child, "status", "replicas") or 0) for child in _deployments(snapshot)),
        readyReplicas=len(ready),
        updatedReplicas=int(dig(stable.live, "status", "updatedReplicas") or 0),
        loaded=[
            {"version": version, "readyPods": count}
            for version, count in sorted(versions.items(), key=lambda entry: (len(entry[0]), entry[0]))
        ],
    )
    if any(pods.phase(pod) == "Pending" for pod in snapshot.pods):
        # Time alone makes a pod that is being created one that hangs.
        verdict = verdict.again(snapshot.platform.wait_seconds)
    if not snapshot.record.stable:
        # What runs is still counted; whether it is ready can't be said of a version that nobody knows.
        return verdict
    loops = [text for pod in stable.pods if not is_going(pod) and (text := pods.crash_loop(pod, snapshot.now))]
    if loops:
        # Time alone ends a crash loop: no event tells of it.
        verdict = verdict.again(snapshot.platform.wait_seconds)
        return verdict.find("Ready", "False", "CrashLoopBackOff", "; ".join(sorted(loops)))
    complete = _is_complete(stable, full_size(snapshot)) and not _is_outdated(stable, verdict)
    verdict = verdict.find("Ready", *_readiness(snapshot, stable, complete=complete))
    unrouted = snapshot.parsed.spec.traffic.provider == Provider.GATEWAY_API and route_refusal(snapshot)
    # A server's stages and a gateway's word are no events of the cluster: somebody has to ask again.
    return verdict.again(snapshot.platform.wait_seconds) if unrouted or not complete else verdict


def _deployments(snapshot: ServingSnapshot) -> list[Object]:
    return [child for (kind, _), child in snapshot.children.items() if kind == "Deployment"]


def _is_outdated(stable: Arm, verdict: Verdict) -> bool:
    name = dig(stable.live, "metadata", "name")
    mine = (one for one in verdict.apply if one["kind"] == "Deployment" and one["metadata"]["name"] == name)
    return any(not is_current(stable.live, manifest) for manifest in mine)


def _is_complete(stable: Arm, wanted: int) -> bool:
    """Whether the Deployment's controller has nothing left to do."""
    status = dig(stable.live, "status") or {}
    return (
        stable.live is not None
        and status.get("observedGeneration") == stable.live["metadata"].get("generation")
        and all((status.get(key) or 0) == wanted for key in ("replicas", "updatedReplicas", "availableReplicas"))
    )


def _readiness(snapshot: ServingSnapshot, stable: Arm, *, complete: bool) -> tuple[str, str, str]:
    wanted = full_size(snapshot)
    served = snapshot.revisions[stable.name].revision.served if stable.name in snapshot.revisions else None
    version = served.version if served else "?"
    ready = [pod for pod in stable.pods if pods.is_ready(pod)]
    if wrong := mismatches(snapshot, ready):
        names = ", ".join(f"{name} has version {loaded.version}, {loaded.digest}" for name, loaded in wrong.items())
        return "False", "VersionMismatch", f"version {version} is wanted, but {names}"
    gateway = snapshot.parsed.spec.traffic.provider == Provider.GATEWAY_API
    if complete and wanted == 0:
        return "False", "NoReplicas", "spec.replicas is 0: nothing is served"
    if complete and len(ready) == wanted:
        refusal = route_refusal(snapshot) if gateway else None
        # One that is still at the route as it was goes on serving by that: each step of a rollout passes through this.
        if refusal and refusal[0] != ROUTE_CHANGING:
            return "False", *refusal
        silent = sum(pods.name_of(pod) not in snapshot.loaded for pod in ready)
        text = f"{wanted} of {wanted} replicas serve version {version}"
        return "True", "AllReplicasReady", text + (f"; {silent} didn't say so when asked" if silent else "")
    for pod in stable.pods:
        if not is_going(pod) and (found := pods.trouble(pod, snapshot.now)):
            return "False", found[0], found[1]
    own = {pods.name_of(pod) for pod in stable.pods}
    for name, held_up in snapshot.held_up.items():
        if name in own:
            return "False", held_up.reason, f"{name}: {held_up.message}"
    refused = condition(stable.live, "ReplicaFailure")
    if refused.get("status") == "True":
        return "False", str(refused.get("reason") or "ReplicaFailure"), str(refused.get("message", ""))
    if len(ready) > wanted:
        return "True", "ScalingDown", f"{len(ready)} replicas serve version {version}, {wanted} are wanted"
    return "False", "RollingOut", f"{len(ready)} of {wanted} replicas are ready with version {version}"


def report_rollout(view: View, verdict: Verdict) -> Verdict:
    """How far the rollout is: condition Progressing and the status fields."""
    snapshot, record = view.snapshot, view.record
    given = weights(snapshot) if record.stable else {}
    verdict = verdict.report(revisions=_revisions(view, given))
    served = snapshot.revisions.get(record.stable)
    if served:
        model = served.revision.served
        verdict = verdict.report(stable={"name": model.name, "version": model.version, "digest": model.digest})
    if not record.stable:
        return verdict
    status, reason, message = _progress(view)
    verdict = verdict.find("Progressing", status, reason, message)
    if not record.canary and not record.burning:
        return verdict.report(rollout=None).without("CanaryHealthy")
    verdict = verdict.find("CanaryHealthy", *_health(view))
    tried = snapshot.revisions.get(record.canary or record.stable)
    return verdict.report(
        rollout={
            "state": reason,
            "step": step_text(snapshot) if record.canary else "",
            "weight": given.get(record.canary, 0) if record.canary else 0,
            "approximate": snapshot.parsed.spec.traffic.provider == Provider.REPLICA_RATIO,
            "canaryVersion": tried.revision.served.version if tried and record.canary else "",
            "message": message[:1024],
            "startTime": format_time(record.began) if record.began else "",
            "checks": [_check(judgement) for judgement in view.judgements],
        }
    )


def _check(judgement: Judgement) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": judgement.name,
        "result": judgement.result.value,
        "message": judgement.message[:1024],
        "requests": judgement.requests,
    }
    return found if judgement.detectable is None else {**found, "detectable": round(judgement.detectable, 6)}


def _health(view: View) -> tuple[str, str, str]:
    """Condition CanaryHealthy: what the checks say together."""
    found = view.judgements
    if view.snapshot.evidence is not None and view.snapshot.evidence.unavailable:
        return "Unknown", "PrometheusUnavailable", view.snapshot.evidence.unavailable
    if not found:
        return "Unknown", "NotJudgedYet", "the canary has been given no requests yet"
    for result, status, reason in (
        (Result.FAIL, "False", "CheckFailed"),
        (Result.UNKNOWN, "Unknown", "CheckUnknown"),
        (Result.WAITING, "Unknown", "WaitingForRequests"),
    ):
        if chosen := [entry for entry in found if entry.result == result]:
            return status, reason, _sentence(chosen)
    return "True", "ChecksPass", _sentence(found)


def _sentence(judgements: Sequence[Judgement]) -> str:
    return "; ".join(f"{judgement.name}: {judgement.message}" for judgement in judgements)


def _progress(view: View) -> tuple[str, str, str]:
    snapshot, record = view.snapshot, view.record
    stable = arm(snapshot, record.stable)
    if record.canary:
        text = f"{view.version(record.canary)} beside {view.version(record.stable)}, step {step_text(snapshot)}"
        if record.pause:
            return "True", "Paused", f"{text}: {record.pause}: {record.pause_message}"
        if snapshot.parsed.spec.rollout.paused:
            return "True", "Paused", f"{text}: spec.rollout.paused is true"
        if record.since is None:
            ready = f"{view.canary.ready} of {view.share.pods} pods ready"
            return "True", "PreparingStep", f"{text}: {ready}{_obstacle(view)}"
        return "True", "CanaryStep", f"{text}: {weights(snapshot)[record.canary]} % of the requests"
    if record.burning:
        return (
            "True",
            "ProbingBurn",
            f"{view.version(record.stable)} and {view.version(record.previous)} share requests",
        )
    if view.target and (rejected := record.rejected.get(view.target)) and view.target != record.stable:
        text = f"{view.version(view.target)} was rolled back at {rejected.at}: {rejected.message}"
        return (
            "False",
            "RolledBack",
            f"{rejected.reason}: {text}; annotate with cloze.dev/rollout=retry to try it again",
        )
    if view.target and view.quarantined and view.target not in (record.stable, record.retried):
        text = f"{view.version(view.target)} is quarantined in the registry: {view.quarantined}"
        return "False", "Quarantined", f"{text}; annotate with cloze.dev/rollout=retry to try it all the same"
    if view.target and view.target != record.stable and (blocked := obstacle(snapshot, view.target)):
        return "False", *blocked
    stuck = condition(stable.live, "Progressing")
    complete = _is_complete(stable, full_size(snapshot))
    if stuck.get("status") == "False" and not complete:
        return "False", str(stuck.get("reason") or "ProgressDeadlineExceeded"), str(stuck.get("message", ""))
    if complete:
        return "False", "RolloutComplete", ""
    updated = int(dig(stable.live, "status", "updatedReplicas") or 0)
    return "True", "RollingOut", f"{updated} of {full_size(snapshot)} replicas are as they should be"


def _obstacle(view: View) -> str:
    """Why the canary's share isn't in force yet, if somebody says so."""
    for pod in view.canary.pods:
        if not is_going(pod) and (found := pods.trouble(pod, view.now)):
            return f"; {found[0]}: {found[1]}"
    for pod in view.canary.pods:
        if held_up := view.snapshot.held_up.get(pods.name_of(pod)):
            return f"; {held_up.reason}: {pods.name_of(pod)}: {held_up.message}"
    gateway = view.snapshot.parsed.spec.traffic.provider == Provider.GATEWAY_API
    if gateway and view.canary.ready >= view.share.pods and (refusal := route_refusal(view.snapshot)):
        return f"; {refusal[0]}: {refusal[1]}"
    return ""


def _revisions(view: View, given: dict[str, int]) -> list[dict[str, Any]]:
    record = view.record
    roles = {record.previous: "Previous", record.canary: "Canary", record.stable: "Stable"}
    found = []
    for stored in sorted(view.snapshot.revisions.values(), key=lambda stored: -stored.number)[:64]:
        rejected = record.rejected.get(stored.name)
        own = arm(view.snapshot, stored.name)
        found.append(
            {
                "name": stored.name,
                "number": stored.number,
                "version": stored.revision.served.version,
                "image": stored.revision.image,
                "role": roles.get(stored.name) or ("Rejected" if rejected else ""),
                "replicas": own.replicas or 0,
                "readyReplicas": own.ready,
                "weight": given.get(stored.name, 0),
                "reason": rejected.reason if rejected else "",
                "message": rejected.message if rejected else "",
            }
        )
    return found


def mismatched_pods(snapshot: ServingSnapshot) -> int:
    """Ready pods that report another version than they were made for."""
    return len(mismatches(snapshot, [pod for pod in snapshot.pods if pods.is_ready(pod)]))
