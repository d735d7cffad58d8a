"""Resources, pods and snapshots to decide about."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloze_api.resources import ModelDeployment, parse_job
from cloze_operator.decide.snapshot import ServingSnapshot, TrainingSnapshot
from cloze_operator.desired.platform import Platform

Document = dict[str, Any]

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
PLATFORM = Platform(train_image="train:1", serve_image="serve:1", tracking_uri="http://mlflow:5000")
DIGEST = "sha256:" + "a" * 64
METADATA = {
    "namespace": "ml",
    "uid": "uid-1",
    "generation": 2,
    "resourceVersion": "7",
    "creationTimestamp": "2026-03-01T11:00:00Z",
}
SPECS: dict[str, Document] = {
    "PretrainJob": {
        "corpus": [{"uri": "pvc://books/*.txt"}, {"uri": "configmap://extra/a.txt"}, {"uri": "pvc://books/b.txt"}],
        "registry": {"name": "encoder"},
        "topology": {"nodes": 2},
    },
    "FineTuneJob": {
        "base": {"pretrainJob": {"name": "encoder"}},
        "task": "sequence-classification",
        "dataset": {"train": "configmap://mails/train.jsonl", "test": "configmap://mails/test.jsonl"},
        "registry": {"name": "spam"},
    },
    "ModelDeployment": {"model": {"name": "spam", "version": "3"}},
}


def at(seconds: float) -> str:
    """A moment so many seconds from now."""
    return (NOW + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def now() -> datetime:
    """The snapshots' clock."""
    return NOW


@pytest.fixture
def moment() -> Callable[[float], str]:
    return at


@pytest.fixture
def resource() -> Callable[..., Document]:
    """A resource of a kind, with changes of its spec and a status."""

    def make(
        kind: str, *, status: Document | None = None, name: str = "run", labels: Document | None = None, **spec: Any
    ) -> Document:
        return {
            "apiVersion": "cloze.dev/v1alpha1",
            "kind": kind,
            "metadata": {**METADATA, "name": name, **({"labels": labels} if labels else {})},
            "spec": {**SPECS[kind], **spec},
            **({"status": status} if status else {}),
        }

    return make


@pytest.fixture
def training(resource: Callable[..., Document]) -> Callable[..., TrainingSnapshot]:
    """A snapshot of a training job; `parts` are the snapshot's own fields."""

    def make(
        kind: str = "PretrainJob",
        *,
        status: Document | None = None,
        spec: Document | None = None,
        labels: Document | None = None,
        **parts: Any,
    ) -> TrainingSnapshot:
        body = resource(kind, status=status, labels=labels, **(spec or {}))
        return TrainingSnapshot(**{"now": NOW, "platform": PLATFORM, "resource": body, "job": parse_job(body), **parts})

    return make


@pytest.fixture
def serving(resource: Callable[..., Document]) -> Callable[..., ServingSnapshot]:
    """A snapshot of a ModelDeployment."""

    def make(*, status: Document | None = None, spec: Document | None = None, **parts: Any) -> ServingSnapshot:
        body = resource("ModelDeployment", status=status, **(spec or {}))
        defaults = {"now": NOW, "platform": PLATFORM, "resource": body}
        return ServingSnapshot(**{**defaults, "deployment": ModelDeployment.model_validate(body), **parts})

    return make


@pytest.fixture
def live() -> Callable[..., Document]:
    """A child as the API server has it: a manifest with a uid and a status."""

    def make(manifest: Document, *, status: Document | None = None, **metadata: Any) -> Document:
        extra = {"uid": f"uid-{manifest['kind']}", "generation": 1, "creationTimestamp": at(-100), **metadata}
        return {**manifest, "metadata": {**manifest["metadata"], **extra}, "status": status or {}}

    return make


@pytest.fixture
def pod() -> Callable[..., Document]:
    """A pod: `state`, `last` are the container's; times are seconds from now."""

    def make(
        name: str = "run-0",
        phase: str = "Running",
        *,
        state: Document | None = None,
        last: Document | None = None,
        restarts: int = 0,
        conditions: dict[str, str | Document] | None = None,
        created: float = -60,
        going: bool = False,
        annotations: dict[str, str] | None = None,
        index: int | None = None,
        **status: Any,
    ) -> Document:
        entries = [
            {"type": kind, **(value if isinstance(value, dict) else {"status": value})}
            for kind, value in (conditions or {}).items()
        ]
        container = {"name": "c", "restartCount": restarts, "state": state or {}, "lastState": last or {}}
        return {
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": "ml",
                "creationTimestamp": at(created),
                "annotations": {
                    **(annotations or {}),
                    **({} if index is None else {"batch.kubernetes.io/job-completion-index": str(index)}),
                },
                **({"deletionTimestamp": at(0)} if going else {}),
            },
            "status": {
                "phase": phase,
                "conditions": entries,
                "containerStatuses": [container] if state is not None or last is not None else [],
                **status,
            },
        }

    return make


@pytest.fixture
def ended(pod: Callable[..., Document]) -> Callable[..., Document]:
    """A pod whose container has ended."""

    def make(
        name: str, code: int, finished: float = -10, *, message: str = "", reason: str = "Error", **more: Any
    ) -> Document:
        state = {"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": at(finished)}}
        return pod(name, "Failed" if code else "Succeeded", state=state, **more)

    return make
