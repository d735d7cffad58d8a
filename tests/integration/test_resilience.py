"""Operators that are killed, stopped and lied to: what they leave behind is what an undisturbed one would have made."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes import client
from kubernetes.dynamic.exceptions import DynamicApiError
from proxy import Reply, Request
from urllib3.exceptions import HTTPError

pytestmark = pytest.mark.cluster

Document = dict[str, Any]
ALONE = {"CLOZE_LEADER_ELECTION": "false"}
DIGEST = "sha256:" + "1" * 64


def pretrain(name: str, **spec: Any) -> Document:
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": name},
        "spec": {
            "corpus": [{"uri": "https://example.org/text"}],
            "registry": {"name": name},
            "storage": {"size": "1Mi"},
            "suspend": True,
            **spec,
        },
    }


def finetune(name: str) -> Document:
    spec = {
        "base": {"model": {"name": "base", "version": "1"}},
        "task": "token-classification",
        "dataset": {"train": "https://example.org/a", "test": "https://example.org/b"},
        "registry": {"name": name},
        "storage": {"size": "1Mi"},
        "suspend": True,
    }
    return {"apiVersion": "cloze.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec}


def deployment(name: str, kubelet: Any) -> Document:
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": {"model": {"name": "base", "version": "1"}, "resources": kubelet.HUGE},
    }


def is_reconciled(objects: Any, name: str) -> bool:
    """Whether a PretrainJob has all that it needs."""
    return bool(objects.condition("PretrainJob", name, "Running").get("reason") == "Suspended")


# ---------------------------------------------------------------- two operators


@pytest.mark.full
def test_standby_takes_over_from_a_killed_leader(
    brief: Any, candidates: Any, kubelet: Any, registry: Any, eventually: Callable[..., Any]
) -> None:
    """A hundred objects, the leader killed: the standby leads, and does what was asked for meanwhile."""
    registry.register("base", "1", digest=DIGEST)
    first = candidates("first")
    second = candidates("second")
    assert first.leads()
    assert (second.leads(), second.get("/readyz"), second.get("/healthz")) == (False, "standby\n", "ok\n")
    for number in range(60):
        brief.create(pretrain(f"job-{number}"))
    for number in range(40):
        brief.create(deployment(f"model-{number}", kubelet))
    eventually(lambda: len(brief.list("Job")) == 60 and len(brief.list("Deployment")) == 40, "all children", 120)
    first.process.kill()
    first.process.wait()
    brief.create(pretrain("late"))
    eventually(lambda: is_reconciled(brief, "late"), "the object that came after the kill", 120)
    assert second.leads()
    holder = brief.get("Lease", "cloze-operator")["spec"]["holderIdentity"]
    assert holder.startswith("second_")
    told = [event["message"] for event in brief.list("Event") if event["reason"] == "LeaderElection"]
    assert f"{holder} became leader" in told


def test_leader_that_was_stopped_for_a_while_writes_nothing_any_more(
    brief: Any, candidates: Any, eventually: Callable[..., Any]
) -> None:
    """It wakes up believing that it leads, and ends before it writes anything."""
    first, second = candidates("first"), candidates("second")
    brief.create(pretrain("early"))
    eventually(lambda: is_reconciled(brief, "early"), "the first object", 60)
    first.process.send_signal(signal.SIGSTOP)
    brief.create(pretrain("late"))
    eventually(lambda: is_reconciled(brief, "late"), "the object that came after the stop", 120)
    before = len(first.said())
    first.process.send_signal(signal.SIGCONT)
    eventually(lambda: first.process.poll() is not None, "the first to end", 30)
    assert first.process.returncode == 1
    after = first.said()[before:]
    assert "ending at once" in after
    assert "applying" not in after
    assert second.leads()


def test_orderly_end_hands_over_at_once(brief: Any, candidates: Any, eventually: Callable[..., Any]) -> None:
    """A rolling update doesn't wait for a lease to run out: the holder gives it back."""
    first, second = candidates("first"), candidates("second")
    lease = brief.get("Lease", "cloze-operator")["spec"]
    first.process.terminate()
    assert first.process.wait(20) == 0
    eventually(second.leads, "the second to lead", 30)
    now = brief.get("Lease", "cloze-operator")["spec"]
    assert now["leaseTransitions"] == lease["leaseTransitions"] + 1
    told = [event["message"] for event in brief.list("Event") if event["reason"] == "LeaderElection"]
    assert f"{lease['holderIdentity']} stopped leading" in told


# ---------------------------------------------------------------- killed while it works

#: Digests of content that has a uid in it; a model's has its algorithm before it.
_DIGEST = re.compile(r"(?<!sha256:)\b[0-9a-f]{64}\b")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
#: Given by the API server and its controllers.
_SERVERS = ("clusterIP", "clusterIPs", "volumeName", "status", "managedFields", "resourceVersion", "generation")
_CHILDREN = ("Job", "Deployment", "Service", "ConfigMap", "PersistentVolumeClaim", "ControllerRevision")


def bare(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: bare(value) for key, value in sorted(node.items()) if key not in _SERVERS}
    return [bare(entry) for entry in node] if isinstance(node, list) else node


def end_state(objects: Any) -> dict[str, Any]:
    """All children by their content, and what the resources say of themselves, without what no two runs share."""
    kinds = ("PretrainJob", "FineTuneJob", "ModelDeployment")
    owners = [(kind, entry) for kind in kinds for entry in objects.list(kind)]
    children = [(kind, e) for kind in _CHILDREN for e in objects.list(kind, "app.kubernetes.io/managed-by=cloze")]
    names = {
        entry["metadata"]["uid"]: f"uid of {kind} {entry['metadata']['name']}" for kind, entry in owners + children
    }

    def same(document: Any) -> Any:
        text = _DIGEST.sub("digest", _TIME.sub("then", json.dumps(bare(document))))
        for uid, name in names.items():
            text = text.replace(uid, name)
        return json.loads(text.replace(objects.namespace, "here"))

    state = {f"{kind} {entry['metadata']['name']}": same(entry) for kind, entry in children}
    for kind, entry in owners:
        status = entry.get("status") or {}
        conditions = {c["type"]: (c["status"], c["reason"]) for c in status.get("conditions") or ()}
        state[f"{kind} {entry['metadata']['name']}"] = (status.get("state"), conditions)
    return state


def differences(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    return {key: (one.get(key), two.get(key)) for key in one.keys() | two.keys() if one.get(key) != two.get(key)}


KILLS = 8


def batch(number: int, kubelet: Any) -> list[Document]:
    """One resource of each kind: together more writes than any operator is let make."""
    return [pretrain(f"encoder-{number}"), finetune(f"tagger-{number}"), deployment(f"model-{number}", kubelet)]


@pytest.fixture
def undisturbed(
    operate: Any, api_client: client.ApiClient, registry: Any, kubelet: Any, tmp_path: Any, other: Any, eventually: Any
) -> dict[str, Any]:
    """What an operator makes of the population when nobody disturbs it."""
    registry.register("base", "1", digest=DIGEST)
    with operate(other.namespace, registry.uri, tmp_path / "undisturbed"):
        for document in (one for run in range(KILLS) for one in batch(run, kubelet)):
            other.create(document)
        seen: list[dict[str, Any]] = [{}]

        def settled() -> bool:
            seen.append(end_state(other))
            ready = all(value[0] for value in seen[-1].values() if isinstance(value, tuple))
            return ready and len(seen) > 5 and len(seen[-1]) > 3 * KILLS and seen[-1] == seen[-5]

        eventually(settled, "the undisturbed state", 120)
    return seen[-1]


def chased(brief: Any, candidates: Any, kubelet: Any, proxy: Any) -> None:
    """Batch after batch is given to an operator that is killed while it makes its 1st, 3rd, 5th... write."""
    for run in range(KILLS):
        for document in batch(run, kubelet):
            brief.create(document)
        victim: list[Any] = []
        writes = 0

        def harm(request: Request, run: int = run, victim: list[Any] = victim) -> Reply | None:
            nonlocal writes
            writes += request.method != "GET"
            if writes == 2 * run + 1 and victim:
                victim[0].process.kill()
                # Every other time the write is lost with it, else it arrives though nobody hears of it.
                return Reply(503, "ServiceUnavailable") if run % 2 else None
            return None

        proxy.harm = lambda _: Reply(503, "ServiceUnavailable") if _.method != "GET" else None
        victim.append(candidates(f"victim-{run}", server=proxy.address, **ALONE))
        proxy.harm = harm
        victim[0].process.wait(60)
    proxy.harm = lambda _: None


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_kill_at_any_write_changes_nothing_in_the_end(
    brief: Any,
    candidates: Any,
    kubelet: Any,
    proxy: Any,
    undisturbed: dict[str, Any],
    eventually: Callable[..., Any],
) -> None:
    """What operators that were killed in the middle leave, the next one completes: the children are the same."""
    chased(brief, candidates, kubelet, proxy)
    candidates("last", **ALONE)
    eventually(lambda: not differences(end_state(brief), undisturbed), "the undisturbed run's state", 120)


# ---------------------------------------------------------------- an API server in trouble

GONE, BROKEN = Reply(410, "Expired"), Reply(500, "InternalError")


def test_watches_survive_what_api_servers_do(
    brief: Any, candidates: Any, proxy: Any, eventually: Callable[..., Any]
) -> None:
    """A restart, a history that is gone (told in the stream and at its begin), an error in all streams or in one: each
    time the watches come back and no object is missed, though the next resync is far away."""
    operator = candidates("one", server=proxy.address, CLOZE_RESYNC_SECONDS="3600", **ALONE)
    eventually(lambda: len(proxy.watches()) >= 6, "the watches", 30)
    paths = proxy.watches()

    def refuse_watches(until: float) -> Callable[[Request], Reply | None]:
        return lambda request: GONE if request.is_watch and request.at < until else None

    def restart() -> None:
        with proxy.away():
            # Asked again and again meanwhile.
            seen = len(proxy.requests)
            eventually(lambda: len(proxy.requests) >= seen + 12, "tries to connect", 30)

    def begin_too_late() -> None:
        proxy.harm = refuse_watches(time.monotonic() + 1)
        proxy.break_streams()

    troubles = {
        "restart": restart,
        "gone": lambda: proxy.tell_watches(GONE),
        "broken": lambda: proxy.tell_watches(BROKEN),
        "one": lambda: proxy.tell_watches(BROKEN, "pretrainjobs"),
        "late": begin_too_late,
    }
    for name, trouble in troubles.items():
        trouble()
        brief.create(pretrain(name))
        eventually(lambda name=name: is_reconciled(brief, name), f"the object that came during {name}", 60)
        eventually(lambda: proxy.watches() == paths, "all watches", 30)
    assert operator.process.poll() is None


def api_server(address: str) -> int | None:
    """Process id of the API server of a cluster of `hack/cluster` on this machine."""
    advertised = f"--advertise-address={urlsplit(address).hostname}"
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            arguments = path.read_text(encoding="utf-8").split("\0")
            if arguments[0].endswith("/kube-apiserver") and advertised in arguments:
                return int(path.parent.name)
    return None


@pytest.mark.full
def test_killed_api_server_is_met_again(
    brief: Any, candidates: Any, api_client: client.ApiClient, eventually: Callable[..., Any]
) -> None:
    """The real one, killed: leader and standby live on, and what was asked for right after is done."""
    address = api_client.configuration.host
    killed = api_server(address)
    if killed is None:
        pytest.skip("the API server isn't a process of this machine")
    first, second = candidates("first", CLOZE_RESYNC_SECONDS="3600"), candidates("second")
    brief.create(pretrain("early"))
    eventually(lambda: is_reconciled(brief, "early"), "the first object", 60)
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: api_server(address) not in (None, killed), "a new API server", 60)

    def create() -> bool:
        with suppress(OSError, HTTPError, client.ApiException, DynamicApiError):
            brief.create(pretrain("late"))
            return True
        return False

    eventually(create, "the API server to take an object", 120)
    eventually(lambda: is_reconciled(brief, "late"), "the object that came after the restart", 120)
    assert (second.process.poll(), second.get("/readyz")) == (None, "standby\n" if first.leads() else "ok\n")


def test_conflicts_are_decided_again(brief: Any, candidates: Any, proxy: Any, eventually: Callable[..., Any]) -> None:
    """Somebody else is always faster for a while: the operator looks again each time."""
    left = [3]

    def harm(request: Request) -> Reply | None:
        if request.method == "PATCH" and left[0]:
            left[0] -= 1
            return Reply(409, "Conflict")
        return None

    proxy.harm = harm
    operator = candidates("one", server=proxy.address, **ALONE)
    brief.create(pretrain("contested"))
    eventually(lambda: is_reconciled(brief, "contested"), "the contested object", 60)
    assert left == [0]
    assert 'result="conflict"' in operator.get("/metrics")
    assert brief.condition("PretrainJob", "contested", "ReconcileFailed") == {}


def test_server_that_asks_for_quiet_is_left_alone(
    brief: Any, candidates: Any, proxy: Any, eventually: Callable[..., Any]
) -> None:
    """429 with Retry-After: nothing is asked until then, and the same request is made again."""
    operator = candidates("one", server=proxy.address, CLOZE_RESYNC_SECONDS="3600", **ALONE)
    eventually(lambda: len(proxy.watches()) >= 6, "the watches", 30)
    refused: list[Request] = []

    def harm(request: Request) -> Reply | None:
        if request.method == "PATCH" and len(refused) < 2:
            refused.append(request)
            return Reply(429, "TooManyRequests", {"Retry-After": "2"})
        return None

    proxy.harm = harm
    brief.create(pretrain("throttled"))
    eventually(lambda: is_reconciled(brief, "throttled"), "the throttled object", 60)
    for one in refused:
        after = [request for request in proxy.requests if one.at < request.at < one.at + 1.9]
        assert after == []
        again = next(request for request in proxy.requests if request.at > one.at)
        assert (again.method, again.path) == (one.method, one.path)
    assert 'result="error"' not in operator.get("/metrics")


# ---------------------------------------------------------------- poisoned objects


def test_poisoned_objects_block_nobody(
    brief: Any, candidates: Any, kubelet: Any, registry: Any, eventually: Callable[..., Any]
) -> None:
    """Statuses that can't be read, huge annotations and specs, letters of all the world: others go on beside them."""
    registry.register("base", "1", digest=DIGEST)
    poisoned = ["unreadable", "annotated", "huge", "unicode"]
    for document in (
        pretrain("unreadable"),
        {**pretrain("annotated"), "metadata": {"name": "annotated", "annotations": {"x": "y" * 200_000}}},
        pretrain("huge", corpus=[{"uri": f"https://example.org/{n}/{'a' * 900}"} for n in range(32)]),
        pretrain("unicode", corpus=[{"uri": "https://example.org/\u202e\U0001f9ea\u0301\ufeffé"}]),
    ):
        brief.create(document)
    # A year that RFC 3339 has and Python hasn't: whatever reads it raises.
    brief.patch_status("PretrainJob", "unreadable", {"completionTime": "0000-01-01T00:00:00Z"})
    operator = candidates("one", CLOZE_OPERATOR_WORKERS="2", **ALONE)
    for number in range(5):
        brief.create(pretrain(f"fine-{number}"))
    for number in range(5):
        eventually(lambda name=f"fine-{number}": is_reconciled(brief, name), f"healthy object {number}", 30)
    told = brief.wait_for_reason("PretrainJob", "unreadable", "ReconcileFailed", "InternalError")
    assert "ValueError" in told["message"]
    for name in poisoned[1:]:
        eventually(lambda name=name: is_reconciled(brief, name), name, 30)
    assert operator.get("/healthz") == "ok\n"
