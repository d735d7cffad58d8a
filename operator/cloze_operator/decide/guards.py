"""Whether a revision may take another one's place at all: its clients must go on understanding each other's words."""

from cloze_api.manifest import SCHEMA_VERSION
from cloze_api.precision import Precision
from cloze_operator.decide.shares import plan
from cloze_operator.decide.snapshot import ServingSnapshot
from cloze_operator.desired.revision import ServedVersion


def obstacle(snapshot: ServingSnapshot, target: str) -> tuple[str, str] | None:
    """Why the target can't follow the stable revision: (reason, message). What nobody tells is no obstacle.

    The server checks the artifact itself before it loads it; here it is said before any pod is made.
    """
    stable, tried = snapshot.revisions.get(snapshot.record.stable), snapshot.revisions.get(target)
    if stable is None or tried is None:
        return None
    old, new = stable.revision.served.facts, tried.revision.served.facts
    name = f"version {tried.revision.served.version}"
    if fault := unloadable(tried.revision.served, tried.revision.runtime.precision):
        return fault
    if old.task and new.task and old.task != new.task:
        text = f"{name} is for {new.task}, and {old.task} is served: make a ModelDeployment of its own for it"
        return "TaskMismatch", text
    if old.labels and new.labels and old.labels != new.labels:
        text = f"{name} has other labels than clients are used to: make a ModelDeployment of its own for it"
        return "LabelSchemaMismatch", text
    if old.tokenizer and new.tokenizer and old.tokenizer != new.tokenizer:
        rollout = snapshot.parsed.spec.rollout
        if not rollout.allow_tokenizer_change:
            text = f"{name} has another tokenizer: set spec.rollout.allowTokenizerChange if it is meant to"
            return "TokenizerMismatch", text
        if not any(share.judged for share in plan(snapshot.parsed.spec, max(1, snapshot.parsed.spec.replicas))):
            text = f"{name} has another tokenizer, which always takes a canary: give spec.rollout.steps"
            return "TokenizerChangeNeedsSteps", text
    return None


def unloadable(served: ServedVersion, precision: Precision) -> tuple[str, str] | None:
    """Why no server can load a version as it is asked to: (reason, message). What nobody tells is no obstacle."""
    name, facts = f"version {served.version}", served.facts
    if facts.schema and facts.schema != str(SCHEMA_VERSION):
        text = (
            f"the manifest of {name} has schema version {facts.schema}, this Cloze knows {SCHEMA_VERSION}: upgrade it"
        )
        return "ManifestSchemaUnknown", text
    if facts.precisions and precision not in facts.precisions.split(", "):
        text = f"{name} has the precisions {facts.precisions}, not {precision}: change spec.runtime.precision, or make "
        return "PrecisionMissing", f"{text}a version with it (spec.export.precisions of a FineTuneJob)"
    return None


def changes_tokenizer(snapshot: ServingSnapshot, target: str) -> bool:
    """Whether the target reads texts by another tokenizer than the stable revision."""
    stable, tried = snapshot.revisions.get(snapshot.record.stable), snapshot.revisions.get(target)
    if stable is None or tried is None:
        return False
    old, new = stable.revision.served.facts.tokenizer, tried.revision.served.facts.tokenizer
    return bool(old and new and old != new)
