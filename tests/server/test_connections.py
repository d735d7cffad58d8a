"""Which connection makes room for another; and for how many there are files."""

import resource
from typing import Any

import pytest

from cloze_server.connections import Bounds, Crowd
from cloze_server.listener import connections_within


class Fake:
    """A connection that notes what is done with it."""

    def __init__(self, unread: int = 0) -> None:
        self.bytes = unread
        self.left = self.given_up = False

    def unread(self) -> int:
        return self.bytes

    def leave(self) -> None:
        self.left = True

    def give_up(self) -> None:
        self.given_up = True


def crowd(connections: int = 3, unread_bytes: int = 100) -> tuple[Crowd, list[str]]:
    counted: list[str] = []
    bounds = Bounds(connections=connections, patience_seconds=1, unread_bytes=unread_bytes)
    return Crowd(bounds, counted.append), counted


def test_the_one_without_a_request_for_longest_makes_room() -> None:
    """Not the one that was dialled first: it had a request since."""
    found, counted = crowd()
    members = [Fake() for _ in range(5)]
    for each in members[:3]:
        found.opened(each)
    found.busy(members[0])
    found.waits(members[0])
    for each in members[3:]:
        found.opened(each)
    assert [each.left for each in members] == [False, True, True, False, False]
    assert (found.open, counted) == (3, ["crowded"] * 2)
    # When the socket is closed, too.
    found.closed(members[1])
    assert found.open == 3


def test_one_with_a_request_stays() -> None:
    """Where all have one, there are too many for a while."""
    found, counted = crowd(connections=2)
    members = [Fake() for _ in range(3)]
    for each in members:
        found.opened(each)
        found.busy(each)
    assert found.too_many
    assert not counted
    found.closed(members[0])
    assert not found.too_many


def test_replies_that_nobody_reads_are_bounded_together() -> None:
    """Who has not read for longest is given up; who has read meanwhile is not among them."""
    found, counted = crowd(unread_bytes=100)
    first, second, third, fourth = (Fake(40) for _ in range(4))
    for each in (first, second):
        found.blocked(each)
    found.flows(first)
    found.blocked(third)
    found.blocked(first)
    assert [each.given_up for each in (first, second, third)] == [False, True, False]
    found.closed(third)
    found.blocked(fourth)
    assert (fourth.given_up, counted) == (False, ["unread"])


@pytest.mark.parametrize(
    ("soft", "hard", "expected", "raised"),
    [
        (1 << 20, 1 << 20, 1000, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1000, None),
        (1024, 1 << 20, 1000, (1128, 1 << 20)),
        (1024, resource.RLIM_INFINITY, 1000, (1128, resource.RLIM_INFINITY)),
        (256, 512, 384, (512, 512)),
        (64, 64, 1, (64, 64)),
    ],
)
def test_a_connection_needs_a_file(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, expected: int, raised: Any
) -> None:
    """As many as are wanted where the process may have them, of which it takes leave itself; else those that fit."""
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    assert connections_within(1000) == expected
    assert limits == ([raised] if raised else [])
