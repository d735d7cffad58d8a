"""kopf is used for watch streams alone."""

import asyncio
import signal
from collections.abc import Collection, Mapping
from typing import Any

import kopf
import pytest

from cloze_operator.cluster import Cluster
from cloze_operator.controller import Controller, Key, utc_now
from cloze_operator.desired.metadata import labels
from cloze_operator.desired.platform import Platform
from cloze_operator.observe.evidence import EvidenceObserver
from cloze_operator.registry import Registry
from cloze_operator.reports import Direct, Reports
from cloze_operator.settings import Settings
from cloze_operator.watch import handlers, key_of_child, kopf_settings, watch


@pytest.fixture
def controller() -> Controller:
    platform = Platform(train_image="t", serve_image="s", tracking_uri="http://m")
    settings = Settings(platform=platform)
    # Neither is asked anything here.
    cluster: Cluster = object()  # type: ignore[assignment]
    return Controller(cluster, Registry("http://m"), Reports(Direct()), EvidenceObserver(None, None, utc_now), settings)


def test_no_handler_needs_a_finalizer_or_an_annotation(controller: Controller) -> None:
    """Change handlers, daemons, timers and indexes are what makes kopf write to other people's objects."""
    registry = handlers(controller)
    assert len(registry._watching.get_all_handlers()) == 6
    assert not registry._changing.get_all_handlers()
    assert not registry._spawning.get_all_handlers()
    assert not registry._indexing.get_all_handlers()
    assert not registry._webhooks.get_all_handlers()


def test_kopf_keeps_to_itself() -> None:
    """No peering, no events of its own, and children filtered by the API server."""
    settings = kopf_settings()
    assert settings.peering.standalone
    assert not settings.posting.enabled
    assert settings.scanning.disabled
    assert settings.watching.server_timeout
    assert set(settings.watching.label_selectors.values()) == {"app.kubernetes.io/managed-by=cloze"}


def test_child_tells_its_owner() -> None:
    """Our labels lead to the resource; other objects lead nowhere."""
    assert key_of_child(labels("FineTuneJob", "x"), "ns") == Key("FineTuneJob", "ns", "x")
    assert key_of_child({"app.kubernetes.io/managed-by": "cloze"}, "ns") is None
    assert key_of_child({**labels("FineTuneJob", "x"), "cloze.dev/kind": "Other"}, "ns") is None


def test_a_signal_is_heard_as_soon_as_kopf_has_begun(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    """kopf takes the signals for itself, and what it makes of them is lost when its watches fail at that moment."""
    taken: list[int] = []

    async def main() -> None:
        stopped = asyncio.Event()

        async def run_tasks(tasks: Collection["asyncio.Task[Any]"], **_: object) -> None:
            # What hears the signals now; sending one would end this very process if nothing did.
            handlers: Mapping[int, asyncio.Handle] = asyncio.get_running_loop()._signal_handlers  # type: ignore[attr-defined]
            taken.extend(number for number, handle in handlers.items() if handle._callback == stopped.set)  # type: ignore[attr-defined]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

        monkeypatch.setattr(kopf, "run_tasks", run_tasks)
        platform = Platform(train_image="t", serve_image="s", tracking_uri="http://m")
        await watch(controller, Settings(platform=platform), stopped)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        asyncio.run(main())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert sorted(taken) == [signal.SIGINT, signal.SIGTERM]
