"""Decisions about a ModelDeployment: which version, is it rolled out, may the alias follow."""

from cloze_api.deployment import ModelDeploymentStatus
from cloze_api.resources import ModelDeployment
from cloze_operator.decide.answers import NotFound, Unavailable, Version, current_version
from cloze_operator.decide.drift import has_drifted, is_current
from cloze_operator.decide.fields import Object, is_going
from cloze_operator.decide.ownership import foreign, left_over
from cloze_operator.decide.rollout import report_rollout
from cloze_operator.decide.snapshot import ServingSnapshot
from cloze_operator.decide.verdict import AliasMove, Steps, Verdict, carried
from cloze_operator.desired.metadata import selector
from cloze_operator.desired.platform import Platform
from cloze_operator.desired.serving import ServedVersion, read_served_version, server_deployment, server_service


def leave_when_going(snapshot: ServingSnapshot, verdict: Verdict) -> Verdict:
    """A resource that is being deleted is the garbage collector's."""
    return verdict.settle() if is_going(snapshot.resource) else verdict


def accept(snapshot: ServingSnapshot, verdict: Verdict) -> Verdict:
    """The spec is one that this operator understands."""
    if snapshot.deployment is None:
        return verdict.find("Accepted", "False", "InvalidSpec", snapshot.invalid).settle()
    return verdict.find("Accepted", "True", "SpecAccepted")


def claim_alias(snapshot: ServingSnapshot, verdict: Verdict) -> Verdict:
    """Condition AliasConflict: an alias has one owner, the oldest. The others serve, but never move it."""
    follow = snapshot.parsed.spec.model.follow
    if follow is None or not snapshot.rivals:
        return verdict.without("AliasConflict")
    text = (
        f"{snapshot.rivals[0]} is older and moves alias {follow.alias} of {snapshot.parsed.spec.model.name}: "
        "this one serves the model but leaves the alias alone; give it another spec.model.follow.alias"
    )
    return verdict.find("AliasConflict", "True", "AliasOwnedByAnother", text)


def intact_version(
    live: Object | None, owner: Object, resource: ModelDeployment, platform: Platform
) -> ServedVersion | None:
    """The version in a Deployment that is what we made of it; None when somebody may have put another one there.

    Versions never change, so there is nothing to ask the registry about such a one.
    """
    served = read_served_version(live)
    if (
        live is None
        or served is None
        or (served.name, served.version) != (resource.spec.model.name, resource.spec.model.version)
    ):
        return None
    made = server_deployment(owner, resource, served, platform)
    return served if is_current(live, made) else None


def decided_version(snapshot: ServingSnapshot) -> ServedVersion | None:
    """The version to serve: what the registry says, else what is being served already."""
    if isinstance(snapshot.model, Version) and snapshot.model.digest:
        return ServedVersion(snapshot.model.name, snapshot.model.version, snapshot.model.digest)
    served = read_served_version(snapshot.children.get("Deployment"))
    model = snapshot.parsed.spec.model
    if served is None or served.name != model.name:
        return None
    return served if model.version in (None, served.version) else None


def resolve_model(snapshot: ServingSnapshot, verdict: Verdict) -> Verdict:
    """Condition ModelResolved. Without an answer, what was resolved before is served on."""
    served = decided_version(snapshot)
    unanswered = isinstance(snapshot.model, NotFound | Unavailable)
    if snapshot.parsed.spec.model.follow is not None or served is None or unanswered:
        # Nothing tells when an alias moves, a version appears, or the registry is back.
        verdict = verdict.again(snapshot.platform.wait_seconds)
    kept = f"; serving version {served.version} as before" if served else ""
    match snapshot.model:
        case Version(name=name, version=version, digest=digest) if digest:
            verdict = verdict.find("ModelResolved", "True", "Resolved", f"{name} version {version}, {digest}")
        case Version(name=name, version=version):
            text = f"{name} version {version} has no digest tag: it wasn't registered by Cloze{kept}"
            verdict = verdict.find("ModelResolved", "False", "DigestMissing", text)
        case NotFound(message):
            verdict = verdict.find("ModelResolved", "False", "ModelNotFound", f"{message}{kept}")
        case Unavailable(message):
            verdict = verdict.find("ModelResolved", "Unknown", "RegistryUnavailable", f"{message}{kept}")
        case None:
            # A fixed version that is being served: versions never change, so there was nothing to ask.
            assert served is not None, "the registry wasn't asked although nothing is served"
            text = f"{served.name} version {served.version}, {served.digest}"
            verdict = verdict.find("ModelResolved", "True", "Resolved", text)
    if served is None:
        verdict = verdict.report(desired=None)
        waiting = verdict.findings["ModelResolved"]
        return verdict.find("Ready", "False", waiting.reason, waiting.message)
    return verdict.report(desired={"name": served.name, "version": served.version, "digest": served.digest})


def provide_children(snapshot: ServingSnapshot, verdict: Verdict) -> Verdict:
    """The Deployment and the Service, unless somebody else has their names."""
    served = decided_version(snapshot)
    if conflict := foreign(snapshot.children, snapshot.resource):
        verdict = verdict.find("Ready", "False", "NameConflict", conflict)
        return verdict.again(snapshot.platform.wait_seconds).settle()
    if leaving := left_over(snapshot.children, snapshot.resource):
        return verdict.find("Ready", "False", "WaitingForCleanup", leaving).again(2).settle()
    if served is None:
        return verdict
    owner = snapshot.resource
    name, namespace = owner["metadata"]["name"], owner["metadata"]["namespace"]
    wanted = (server_service(owner), server_deployment(owner, snapshot.parsed, served, snapshot.platform))
    if any(is_going(child) for child in snapshot.children.values()):
        # Applying to an object that is going would be lost with it.
        verdict = verdict.again(2)
    verdict = verdict.applying(
        *(
            manifest
            for manifest in wanted
            if has_drifted(child := snapshot.children.get(manifest["kind"]), manifest) and not is_going(child)
        )
    )
    labels = ",".join(f"{key}={value}" for key, value in sorted(selector(owner["kind"], name).items()))
    return verdict.report(url=f"http://{name}.{namespace}.svc", selector=labels)


def promote(snapshot: ServingSnapshot, verdict: Verdict) -> Verdict:
    """`follow.alias` goes to the version that is completely rolled out, and only from where it was seen to be."""
    model = snapshot.parsed.spec.model
    desired = verdict.status.get("desired")
    ready = verdict.findings.get("Ready")
    if model.follow is None:
        return verdict.without("AliasMoved")
    if snapshot.rivals or not desired or ready is None or ready.status != "True":
        return verdict
    alias, version = model.follow.alias, desired["version"]
    match snapshot.alias:
        case None:
            return verdict.again(0.5)
        case Unavailable(message):
            verdict = verdict.find("AliasMoved", "Unknown", "RegistryUnavailable", message)
            return verdict.again(snapshot.platform.wait_seconds)
        case Version() as current if current.version == version:
            return verdict.find("AliasMoved", "True", f"Version{version}", f"alias {alias} points to version {version}")
        case current:
            move = AliasMove(model.name, alias, version, current_version(current), "AliasMoved")
            return verdict.pointing(
                move, f"pointing alias {alias} to version {version}", snapshot.platform.wait_seconds
            )


def serving_state(verdict: Verdict) -> str:
    """`status.state`: derived from the conditions, for people."""
    found = {kind: (finding.status, finding.reason) for kind, finding in verdict.findings.items()}
    ready, reason = found.get("Ready", ("False", ""))
    special = {
        "NoReplicas": "Stopped",
        "CrashLoopBackOff": "Failing",
        "NameConflict": "Invalid",
        "WaitingForCleanup": "Waiting",
    }
    if found.get("Accepted", ("True", ""))[0] == "False":
        return "Invalid"
    if ready == "True":
        return "Ready"
    if reason in special:
        return special[reason]
    if verdict.status.get("desired") is None:
        return "Waiting"
    return "RollingOut" if found.get("Progressing", ("True", ""))[0] == "True" else "Failing"


SERVING = Steps(
    steps=(
        leave_when_going,
        accept,
        claim_alias,
        resolve_model,
        provide_children,
        report_rollout,
        promote,
    ),
    state=serving_state,
)


def decide_serving(snapshot: ServingSnapshot) -> tuple[Verdict, str]:
    """What is to happen to a ModelDeployment, and its state."""
    return SERVING.decide(snapshot, carried(snapshot.resource, ModelDeploymentStatus))
