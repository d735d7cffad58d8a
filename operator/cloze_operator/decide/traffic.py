"""Who gets which share of the requests: follows from the record and from which pods are ready."""

from cloze_api.rollout import Provider
from cloze_operator.decide.arms import arm, full_size
from cloze_operator.decide.shares import Share, plan
from cloze_operator.decide.snapshot import ServingSnapshot

#: Share of the requests that the former revision gets back while it is found out who burns.
PROBE_WEIGHT = 50


def present_share(snapshot: ServingSnapshot) -> Share:
    """The share that the record asks for."""
    shares = plan(snapshot.parsed.spec, full_size(snapshot))
    return shares[min(snapshot.record.step, len(shares) - 1)]


def step_text(snapshot: ServingSnapshot) -> str:
    """Which step of how many."""
    count = len(plan(snapshot.parsed.spec, full_size(snapshot)))
    return f"{min(snapshot.record.step, count - 1) + 1}/{count}"


def canary_weight(snapshot: ServingSnapshot) -> int:
    """Per cent of the requests that the canary can be given now: none that nobody would answer."""
    record = snapshot.record
    if not record.canary:
        return 0
    shares = plan(snapshot.parsed.spec, full_size(snapshot))
    step = min(record.step, len(shares) - 1)
    ready = arm(snapshot, record.canary).ready
    if not shares[step].pods:
        # Nobody is to serve, so there is nobody to wait for.
        return shares[step].weight
    if not ready or _is_crowded(snapshot):
        return 0
    if ready >= shares[step].pods:
        return shares[step].weight
    if record.since is not None:
        # Some of its pods are gone: those that are left get no more than they are there for.
        return min(shares[step].weight, max(1, shares[step].weight * ready // shares[step].pods))
    served = [share.weight for share in shares[:step] if share.pods <= ready]
    return served[-1] if served else 0


def weights(snapshot: ServingSnapshot) -> dict[str, int]:
    """Per cent of the requests by revision."""
    record = snapshot.record
    if record.canary:
        share = canary_weight(snapshot)
        return {record.stable: 100 - share, record.canary: share}
    if record.burning and record.previous and arm(snapshot, record.previous).ready and not _is_crowded(snapshot):
        return {record.stable: 100 - PROBE_WEIGHT, record.previous: PROBE_WEIGHT}
    return {record.stable: 100}


def _is_crowded(snapshot: ServingSnapshot) -> bool:
    """Whether a Service before all pods would have some behind it that aren't meant."""
    shared = snapshot.parsed.spec.traffic.provider == Provider.REPLICA_RATIO
    return shared and any(arm(snapshot, revision).pods for revision in snapshot.record.retired)
