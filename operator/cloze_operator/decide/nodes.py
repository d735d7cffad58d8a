"""Each place of a gang: what its pod does, and how its last one ended."""

from typing import Any

from cloze_api.training_status import NODE_MESSAGE_MAX, REASON_MAX
from cloze_operator.decide import pods
from cloze_operator.decide.fields import Object, dig, format_time, is_going
from cloze_operator.decide.snapshot import TrainingSnapshot
from cloze_operator.decide.verdict import Verdict


def report_nodes(snapshot: TrainingSnapshot, verdict: Verdict) -> Verdict:
    """`status.nodes`. How a pod has ended stays there when the pod is gone, until the next one ends."""
    if "Job" not in snapshot.children and not dig(snapshot.resource, "status", "nodes"):
        return verdict
    before = {entry["index"]: entry for entry in dig(snapshot.resource, "status", "nodes") or ()}
    nodes = range(snapshot.parsed.spec.topology.nodes)
    return verdict.report(nodes=[_node(snapshot, index, before.get(index) or {}) for index in nodes])


def _node(snapshot: TrainingSnapshot, index: int, before: Object) -> dict[str, Any]:
    own = [pod for pod in snapshot.pods if pods.index_of(pod) == str(index)]
    newest = max(own, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), default=None)
    node: dict[str, Any] = {"index": index, "state": "Absent" if newest is None else pods.phase(newest)}
    if newest is not None and not is_going(newest) and (found := pods.trouble(newest, snapshot.now)):
        node |= {"reason": found[0][:REASON_MAX], "message": found[1][:NODE_MESSAGE_MAX]}
    ended = pods.ends(own)[-1:]
    if last := _last_exit(ended[0]) if ended else before.get("lastExit"):
        node["lastExit"] = last
    return node


def _last_exit(end: pods.End) -> dict[str, Any]:
    told: dict[str, Any] = {"reason": end.outcome.reason or "Ended", "time": format_time(end.at)}
    if end.outcome.message:
        told["message"] = end.outcome.message[:NODE_MESSAGE_MAX]
    if end.exit_code >= 0:
        told["exitCode"] = end.exit_code
    return told
