"""kopf is used for watch streams alone."""

import asyncio

import pytest

from cloze_operator.cluster import Cluster
from cloze_operator.controller import Controller, Key, utc_now
from cloze_operator.desired.metadata import labels
from cloze_operator.desired.platform import Platform
from cloze_operator.observe.evidence import EvidenceObserver
from cloze_operator.registry import Registry
from cloze_operator.reports import Direct, Reports
from cloze_operator.settings import Settings
from cloze_operator.watch import handlers, key_of_child, kopf_settings


@pytest.fixture
def controller() -> Controller:
    platform = Platform(train_image="t", serve_image="s", tracking_uri="http://m")
    settings = Settings(platform=platform)
    # Neither is asked anything here.
    cluster: Cluster = object()  # type: ignore[assignment]
    return Controller(cluster, Registry("http://m"), Reports(Direct()), EvidenceObserver(None, None, utc_now), settings)


def test_no_handler_needs_a_finalizer_or_an_annotation(controller: Controller) -> None:
    """Change handlers, daemons, timers and indexes are what makes kopf write to other people's objects."""
    registry = handlers(controller, asyncio.Event())
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
