"""How far a ModelDeployment's pods are: counted from the pods, as they themselves report."""

from collections import Counter

from cloze_api.names import ANNOTATION_MODEL_DIGEST, ANNOTATION_MODEL_VERSION
from cloze_operator.decide import pods
from cloze_operator.decide.answers import Loaded
from cloze_operator.decide.drift import is_current
from cloze_operator.decide.fields import Object, condition, dig, is_going
from cloze_operator.decide.snapshot import ServingSnapshot
from cloze_operator.decide.verdict import Verdict


def made_for(pod: Object) -> Loaded:
    """What a pod was made to load: its server accepts nothing else."""
    annotations = dig(pod, "metadata", "annotations") or {}
    return Loaded(annotations.get(ANNOTATION_MODEL_VERSION, ""), annotations.get(ANNOTATION_MODEL_DIGEST, ""))


def report_rollout(snapshot: ServingSnapshot, verdict: Verdict) -> Verdict:
    """Replica counts, loaded versions, conditions Ready and Progressing."""
    live = snapshot.children.get("Deployment")
    status = dig(live, "status") or {}
    ready = [pod for pod in snapshot.pods if pods.is_ready(pod)]
    versions = Counter(said.version for pod in ready if (said := snapshot.loaded.get(pods.name_of(pod))))
    verdict = verdict.report(
        replicas=int(status.get("replicas") or 0),
        readyReplicas=len(ready),
        updatedReplicas=int(status.get("updatedReplicas") or 0),
        loaded=[
            {"version": version, "readyPods": count}
            for version, count in sorted(versions.items(), key=lambda entry: (len(entry[0]), entry[0]))
        ],
    )
    if any(pods.phase(pod) == "Pending" for pod in snapshot.pods):
        # Time alone makes a pod that is being created one that hangs.
        verdict = verdict.again(snapshot.platform.wait_seconds)
    loops = [text for pod in snapshot.pods if not is_going(pod) and (text := pods.crash_loop(pod, snapshot.now))]
    if loops:
        # Time alone ends a crash loop: no event tells of it.
        verdict = verdict.again(snapshot.platform.wait_seconds)
        return _progress(snapshot, verdict, False).find("Ready", "False", "CrashLoopBackOff", "; ".join(sorted(loops)))
    if verdict.status.get("desired") is None:
        # What runs is still counted; whether it is ready can't be said of a version that nobody knows.
        return verdict
    outdated = any(wanted["kind"] == "Deployment" and not is_current(live, wanted) for wanted in verdict.apply)
    complete = _is_complete(snapshot, live) and not outdated
    verdict = _progress(snapshot, verdict, complete)
    verdict = verdict.find("Ready", *_readiness(snapshot, verdict, ready, complete))
    # A server's stages are no events of the cluster: somebody has to ask again.
    return verdict if complete else verdict.again(snapshot.platform.wait_seconds)


def _is_complete(snapshot: ServingSnapshot, live: Object | None) -> bool:
    """Whether the Deployment's controller has nothing left to do."""
    wanted = snapshot.parsed.spec.replicas
    status = dig(live, "status") or {}
    return (
        live is not None
        and status.get("observedGeneration") == live["metadata"].get("generation")
        and all((status.get(key) or 0) == wanted for key in ("replicas", "updatedReplicas", "availableReplicas"))
    )


def _progress(snapshot: ServingSnapshot, verdict: Verdict, complete: bool) -> Verdict:
    live = snapshot.children.get("Deployment")
    stuck = condition(live, "Progressing")
    if stuck.get("status") == "False" and not complete:
        reason = str(stuck.get("reason") or "ProgressDeadlineExceeded")
        return verdict.find("Progressing", "False", reason, str(stuck.get("message", "")))
    if complete:
        return verdict.find("Progressing", "False", "RolloutComplete")
    updated, wanted = verdict.status.get("updatedReplicas", 0), snapshot.parsed.spec.replicas
    return verdict.find(
        "Progressing", "True", "RollingOut", f"{updated} of {wanted} replicas are of the wanted version"
    )


def _readiness(
    snapshot: ServingSnapshot, verdict: Verdict, ready: list[Object], complete: bool
) -> tuple[str, str, str]:
    wanted = snapshot.parsed.spec.replicas
    desired = verdict.status["desired"]
    # A pod that doesn't answer is taken for what it was made for: it wouldn't be ready with anything else.
    serves = {pods.name_of(pod): snapshot.loaded.get(pods.name_of(pod), made_for(pod)) for pod in ready}
    wrong = {name: loaded for name, loaded in serves.items() if loaded != Loaded(desired["version"], desired["digest"])}
    if complete and wrong:
        names = ", ".join(f"{name} has version {loaded.version}, {loaded.digest}" for name, loaded in wrong.items())
        return "False", "VersionMismatch", f"version {desired['version']}, {desired['digest']} is wanted, but {names}"
    if complete and wanted == 0:
        return "False", "NoReplicas", "spec.replicas is 0: nothing is served"
    if complete and len(ready) == wanted:
        silent = sum(name not in snapshot.loaded for name in serves)
        text = f"{wanted} of {wanted} replicas serve version {desired['version']}"
        return "True", "AllReplicasReady", text + (f"; {silent} didn't say so when asked" if silent else "")
    for pod in snapshot.pods:
        if not is_going(pod) and (found := pods.trouble(pod, snapshot.now)):
            return "False", found[0], found[1]
    for name, held_up in snapshot.held_up.items():
        return "False", held_up.reason, f"{name}: {held_up.message}"
    refused = condition(snapshot.children.get("Deployment"), "ReplicaFailure")
    if refused.get("status") == "True":
        return "False", str(refused.get("reason") or "ReplicaFailure"), str(refused.get("message", ""))
    up_to_date = len(ready) - len(wrong)
    return "False", "RollingOut", f"{up_to_date} of {wanted} replicas are ready with version {desired['version']}"
