"""Runs that are given another topology, profile or stuckSeconds: their Job and ConfigMap are made anew.

Pods read their job once, as they start. The ConfigMap has what they were given, so that a change is seen by what it is,
also where nobody looked while the run was suspended; and it stays as it is until the last of them is gone.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from cloze_api.training import Profile, Topology
from cloze_operator.decide.fields import dig, is_going, is_true
from cloze_operator.decide.snapshot import TrainingSnapshot
from cloze_operator.decide.verdict import Verdict, target_of
from cloze_operator.desired.training import read_spec, run_name

_STUCK: Final = "failurePolicy.stuckSeconds"
#: What a person calls the run's size.
_SIZE: Final = ("topology.nodes", "topology.processesPerNode")


def adjustments(snapshot: TrainingSnapshot) -> tuple[str, ...]:
    """Names of the fields that a run's pods were given otherwise than its spec has them now, with what changes.

    There are none before the start, when the children simply follow the spec, and none once the Job has ended.
    """
    live = snapshot.children.get("Job")
    if not snapshot.has_started or is_true(live, "Complete") or is_true(live, "Failed"):
        return ()
    spec = snapshot.parsed.spec
    wanted = _fields(spec.topology, spec.profile, spec.failure_policy.stuck_seconds)
    given = _given(snapshot)
    return tuple(
        _told(name, given[name], value) for name, value in wanted.items() if name in given and given[name] != value
    )


def adjust_job(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """Delete the Job of pods that were given something else: they save a checkpoint, from which the next ones go on."""
    live = snapshot.children.get("Job")
    if live is None or is_going(live) or not adjustments(snapshot):
        return verdict
    if verdict.delete:
        return verdict.again(1)
    return verdict.replacing(replace(target_of(live), with_pods=True)).again(1)


def tell_adjustments(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """The event of a run that goes on with something else than before."""
    changes = adjustments(snapshot)
    resized = any(change.startswith(_SIZE) for change in changes)
    text = f"{', '.join(changes)}: Job {run_name(snapshot.parsed)} is made anew and goes on from the newest checkpoint"
    return verdict.telling("Normal", "Resized" if resized else "Adjusted", text)


def _fields(topology: Topology, profile: Profile | None, stuck_seconds: int | None) -> dict[str, Any]:
    """The values by name; without stuckSeconds where it isn't known."""
    found = {
        **{f"topology.{name}": value for name, value in topology.model_dump(mode="json", by_alias=True).items()},
        # As many as there are, whether they were told or follow from the GPUs.
        "topology.processesPerNode": topology.processes,
        "profile": profile.model_dump(mode="json", by_alias=True) if profile else None,
    }
    return found if stuck_seconds is None else {**found, _STUCK: stuck_seconds}


def _given(snapshot: TrainingSnapshot) -> Mapping[str, Any]:
    """What the pods have. Nothing where it can't be read: a run isn't stopped for that."""
    spec = read_spec(snapshot.children.get("ConfigMap"))
    if spec is None:
        return {}
    try:
        profile = Profile.model_validate(spec["profile"]) if spec.get("profile") else None
        # Operators of before left stuckSeconds out.
        stuck_seconds = dig(spec, "failurePolicy", "stuckSeconds")
        return _fields(Topology.model_validate(spec.get("topology") or {}), profile, stuck_seconds)
    except ValueError:
        return {}


def _told(name: str, before: object, now: object) -> str:
    return f"{name} {before} → {now}" if isinstance(before, int) and isinstance(now, int) else name
