"""Who leads, by a Lease: given the lease as it was read, a clock and who asks, what to do next.

The rule is client-go's (https://pkg.go.dev/k8s.io/client-go/tools/leaderelection): clocks of different machines are
never compared. A lease has run out when its record hasn't changed for its duration by the observer's own clock, and a
leader gives up earlier than that by its own clock, counted from the moment at which it *began* its last renewal.
"""

from dataclasses import dataclass
from typing import Final

Moment = float
"""Seconds on the clock of one machine, which goes on while the machine sleeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How long things take, in seconds. `duration` exceeds `renew_deadline` by what the clocks' rates may differ."""

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the lease says. Its times are for people: nothing is decided from them."""

    holder: str
    """Empty when it was released."""
    duration: float
    acquired: str
    renewed: str
    transitions: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """A record, and since when this observer has seen it like that. `record` is None when there is no lease."""

    record: Record | None
    since: Moment


@dataclass(frozen=True, slots=True)
class Take:
    """Write a record that names oneself, provided that nobody has written since the last look."""

    record: Record


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again in so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Lost:
    """The lease that one held is, or may by now be, another's."""

    reason: str


RELEASED: Final = ""


def look(seen: Seen | None, record: Record | None, now: Moment) -> Seen:
    """What is seen, after the lease was read once more."""
    return seen if seen is not None and seen.record == record else Seen(record, now)


def is_overdue(terms: Terms, renewed: Moment, now: Moment) -> bool:
    """Whether a leader that began its last renewal then must not act any more."""
    return now - renewed >= terms.renew_deadline


def decide(
    terms: Terms, identity: str, seen: Seen, *, renewed: Moment | None, now: Moment, stamp: str
) -> Take | Wait | Lost:
    """The next step of one candidate.

    renewed: when a leader began its last renewal that succeeded; None for a standby.
    stamp: the present time, for people.
    """
    record = seen.record
    if renewed is not None:
        if is_overdue(terms, renewed, now):
            return Lost(f"it couldn't be renewed for {now - renewed:.1f} s")
        if record is not None and record.holder != identity:
            return Lost(f"it is held by {record.holder or 'nobody'}")
    elif record is not None and record.holder not in (RELEASED, identity):
        left = seen.since + (record.duration or terms.duration) - now
        if left > 0:
            # The moment at which it runs out isn't missed by up to a whole period.
            return Wait(min(terms.retry, left))
    return Take(_taken(terms, identity, record, stamp))


def _taken(terms: Terms, identity: str, old: Record | None, stamp: str) -> Record:
    same = old is not None and old.holder == identity
    return Record(
        holder=identity,
        duration=terms.duration,
        acquired=old.acquired if old is not None and same else stamp,
        renewed=stamp,
        # Counts changes of the holder, as client-go does.
        transitions=0 if old is None else old.transitions + (0 if same else 1),
    )
