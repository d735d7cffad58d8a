"""kopf is used for watch streams alone."""

import asyncio
import queue
import threading

import kopf
import pytest

from cloze_operator import watch as module
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
    registry = handlers(controller, lambda function, *arguments: function(*arguments))
    assert len(registry._watching.get_all_handlers()) == 6
    assert not registry._changing.get_all_handlers()
    assert not registry._spawning.get_all_handlers()
    assert not registry._indexing.get_all_handlers()
    assert not registry._webhooks.get_all_handlers()


def test_kopf_keeps_to_itself() -> None:
    """No peering, no events of its own, and children filtered by the API server."""
    settings = kopf_settings()
    assert settings.peering.standalone
    assert settings.process.ultimate_exiting_timeout is None
    assert not settings.posting.enabled
    assert settings.scanning.disabled
    assert settings.watching.server_timeout
    assert set(settings.watching.label_selectors.values()) == {"app.kubernetes.io/managed-by=cloze"}


def test_child_tells_its_owner() -> None:
    """Our labels lead to the resource; other objects lead nowhere."""
    assert key_of_child(labels("FineTuneJob", "x"), "ns") == Key("FineTuneJob", "ns", "x")
    assert key_of_child({"app.kubernetes.io/managed-by": "cloze"}, "ns") is None
    assert key_of_child({**labels("FineTuneJob", "x"), "cloze.dev/kind": "Other"}, "ns") is None


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> queue.Queue[threading.Event]:
    """For each life of the watches an event that tells that its other task was cancelled. Each fails at once, and the
    other task of the first one doesn't end."""
    lives: queue.Queue[threading.Event] = queue.Queue()
    first = threading.Event()

    async def fail() -> None:
        raise RuntimeError("a stream has failed")

    async def go_on(cancelled: threading.Event, *, hangs: bool) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                if not hangs:
                    raise

    async def spawn_tasks(**_: object) -> list["asyncio.Task[None]"]:
        cancelled = threading.Event() if first.is_set() else first
        other = asyncio.create_task(go_on(cancelled, hangs=cancelled is first))
        lives.put(cancelled)
        await asyncio.sleep(0)
        return [other, asyncio.create_task(fail())]

    monkeypatch.setattr(kopf, "spawn_tasks", spawn_tasks)
    monkeypatch.setattr(module, "_END_SECONDS", 0.05)
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.0)
    return lives


def test_watches_that_fail_begin_anew_whatever_hangs(
    controller: Controller, lives: queue.Queue[threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    """A task that doesn't end holds up neither the next watches nor the end, and other people's tasks go on."""

    async def main() -> None:
        bystander = asyncio.create_task(asyncio.Event().wait())
        platform = Platform(train_image="t", serve_image="s", tracking_uri="http://m")
        watching = asyncio.create_task(watch(controller, Settings(platform=platform)))
        first, second, _ = [await asyncio.to_thread(lives.get, timeout=20) for _ in range(3)]
        assert first.is_set()
        assert second.is_set()
        assert not bystander.done()
        watching.cancel()
        await asyncio.wait([watching], timeout=10)
        assert watching.cancelled()
        bystander.cancel()

    asyncio.run(main())
    assert "a stream has failed" in caplog.text
