"""From a finished run to a version behind an alias."""

from typing import Any

from cloze_operator.decide.answers import NotFound, Unavailable, Version, current_version
from cloze_operator.decide.snapshot import TrainingSnapshot
from cloze_operator.decide.verdict import AliasMove, Verdict


def name_version(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """The version of a run whose pods can't tell it any more, as the registry has it."""
    succeeded = verdict.findings.get("Succeeded")
    if verdict.status.get("model") or succeeded is None or succeeded.status != "True":
        return verdict
    match snapshot.registered:
        case Version(name=name, version=version, digest=""):
            text = f"{name} version {version} has no digest tag, so nobody can verify it: run the job again"
            return verdict.find("Registered", "False", "DigestMissing", text).again(snapshot.platform.wait_seconds)
        case Version(name=name, version=version, digest=digest, run_id=run_id):
            return verdict.report(model={"name": name, "version": version, "digest": digest, "runId": run_id})
        case NotFound():
            text = "the run is complete, but the registry has no version with its uid: was it deleted?"
            return verdict.find("Registered", "False", "VersionNotFound", text).again(snapshot.platform.wait_seconds)
        case Unavailable(message):
            verdict = verdict.find("Registered", "False", "RegistryUnavailable", message)
            return verdict.again(snapshot.platform.wait_seconds)
        case None:
            # The run has only just ended; the next snapshot asks.
            return verdict.again(0.5)


def point_alias(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """`registry.alias` of a run that has registered its version. The registry's own answer makes it Registered.

    The alias only ever moves to a higher version.
    """
    model: Any = verdict.status.get("model")
    succeeded = verdict.findings.get("Succeeded")
    if not model or snapshot.job is None or succeeded is None or succeeded.status != "True":
        return verdict
    alias, version = snapshot.job.spec.registry.alias, int(model["version"])
    title = f"{model['name']} version {version}"
    match snapshot.alias:
        case None:
            return verdict.again(0.5)
        case Unavailable(message):
            verdict = verdict.find("Registered", "False", "RegistryUnavailable", message)
            return verdict.again(snapshot.platform.wait_seconds)
        case Version() as current if current.number == version:
            return verdict.find("Registered", "True", "AliasSet", f"{title}, alias {alias}")
        case Version() as current if current.number > version:
            text = f"{title}; alias {alias} stays at the newer version {current.version}"
            return verdict.find("Registered", "True", "AliasNewer", text)
        case current:
            move = AliasMove(model["name"], alias, str(version), current_version(current), "Registered")
            return verdict.pointing(move, f"{title}: pointing alias {alias} to it", snapshot.platform.wait_seconds)
