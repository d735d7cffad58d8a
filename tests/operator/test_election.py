"""Who leads: at most one at any time, whatever clocks, networks and processes do; and somebody in the end."""

import random
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cloze_operator.decide.election import Lost, Record, Seen, Take, Terms, Wait, decide, is_overdue, look

TERMS = Terms()
HELD = Record(holder="a", duration=15, acquired="t0", renewed="t1", transitions=3)


def step(seen: Seen, renewed: float | None, now: float, me: str = "b") -> Take | Wait | Lost:
    return decide(TERMS, me, seen, renewed=renewed, now=now, stamp="now")


def test_lease_that_is_not_there_or_free_is_taken() -> None:
    """At once, and a change of the holder is counted."""
    assert step(Seen(None, 5), None, 5) == Take(Record(holder="b", duration=15, acquired="now", renewed="now"))
    taken = step(Seen(replace(HELD, holder=""), 5), None, 5)
    assert taken == Take(Record(holder="b", duration=15, acquired="now", renewed="now", transitions=4))


def test_held_lease_is_waited_for_until_it_has_not_changed_for_its_duration() -> None:
    """By the observer's own clock, and not a moment longer."""
    assert step(Seen(HELD, 100), None, 100) == Wait(2)
    assert step(Seen(HELD, 100), None, 114.5) == Wait(0.5)
    assert isinstance(step(Seen(HELD, 100), None, 115), Take)
    # The holder's promise counts, not the observer's own terms.
    assert step(Seen(replace(HELD, duration=60), 100), None, 115) == Wait(2)


def test_only_a_change_of_the_record_starts_the_clock_again() -> None:
    """Times in the record, which another machine's clock has made, are compared with nothing."""
    seen = look(None, HELD, 100)
    assert look(seen, HELD, 110) == seen
    assert look(seen, replace(HELD, renewed="1970"), 110) == Seen(replace(HELD, renewed="1970"), 110)
    assert look(seen, None, 110) == Seen(None, 110)


def test_leader_renews_and_keeps_what_it_began_with() -> None:
    """Only the time of the renewal changes."""
    assert step(Seen(HELD, 100), 100, 102, "a") == Take(replace(HELD, renewed="now"))


def test_leader_stops_at_its_deadline_and_when_it_is_another_s() -> None:
    """The deadline is counted from the begin of its last renewal, even when the lease still names it."""
    assert isinstance(step(Seen(HELD, 105), 100, 110, "a"), Lost)
    assert isinstance(step(Seen(HELD, 100), 100, 102, "b"), Lost)
    assert isinstance(step(Seen(replace(HELD, holder=""), 100), 100, 102, "a"), Lost)


def test_leader_writes_again_a_lease_that_somebody_deleted() -> None:
    """Creating it is as exclusive as replacing it."""
    assert isinstance(step(Seen(None, 100), 100, 102, "a"), Take)


def test_write_whose_answer_was_lost_counts_when_it_is_seen() -> None:
    """A standby that finds itself named takes the lease again before it acts."""
    assert isinstance(step(Seen(HELD, 100), None, 100, "a"), Take)


@dataclass
class Process:
    """A candidate on a machine whose clock is wrong and runs at its own rate."""

    name: str
    offset: float
    rate: float
    seen: Seen | None = None
    renewed: float | None = None
    wakes: float = 0.0
    pending: tuple[Record, int, float] | None = None
    lives: int = 0

    def clock(self, now: float) -> float:
        return self.offset + now * self.rate

    def may_act(self, now: float) -> bool:
        """What its fence says."""
        return self.renewed is not None and not is_overdue(TERMS, self.renewed, self.clock(now))


class Store:
    """The API server: one record, written by compare and swap."""

    def __init__(self) -> None:
        self.record: Record | None = None
        self.version = 0

    def write(self, record: Record, version: int) -> bool:
        if version != self.version:
            return False
        self.record, self.version = record, self.version + 1
        return True


def turn(process: Process, store: Store, now: float, chance: random.Random, faults: float) -> None:
    """A look, or the write that follows from the last one; messages are late or lost, and others act in between."""
    late = chance.uniform(0, 0.2) if chance.random() > faults else chance.uniform(0, 8)
    lost = chance.random() < faults
    if process.pending is not None:
        record, version, began = process.pending
        process.pending = None
        process.wakes = now + TERMS.retry * chance.uniform(1, 1.2)
        # Unique as a time in microseconds is.
        if store.write(replace(record, renewed=str(store.version)), version) and not lost:
            process.seen, process.renewed = Seen(store.record, process.clock(now)), began
        return
    process.wakes = now + TERMS.retry * chance.uniform(1, 1.2)
    if lost:
        return
    process.seen = look(process.seen, store.record, process.clock(now))
    verdict = step_of(process, now)
    if isinstance(verdict, Lost):
        restart(process)
    elif isinstance(verdict, Wait):
        process.wakes = now + verdict.seconds / process.rate
    else:
        process.pending = (verdict.record, store.version, process.clock(now))
        process.wakes = now + late


def step_of(process: Process, now: float) -> Take | Wait | Lost:
    assert process.seen is not None
    return step(process.seen, process.renewed, process.clock(now), f"{process.name}{process.lives}")


def restart(process: Process) -> None:
    process.seen, process.renewed, process.pending, process.lives = None, None, None, process.lives + 1


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.4]))
def test_two_never_lead_at_once_and_one_does_in_the_end(seed: int, faults: float) -> None:
    """Three candidates with wrong clocks that run up to a tenth too fast or too slow, lost and late messages, processes
    that are killed and processes that are stopped for a while: no two may act at the same moment."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    processes = [Process(name, chance.uniform(-1e6, 1e6), chance.uniform(0.9, 1.1)) for name in "abc"]
    store, now, end = Store(), 0.0, 300.0
    while now < end + 90:
        calm = now > end
        process = min(processes, key=lambda one: one.wakes)
        now = max(now, process.wakes)
        event = chance.random()
        if not calm and event < 0.02:
            restart(process)
        elif not calm and event < 0.06:
            process.wakes = now + chance.uniform(0, 40)  # stopped, as by SIGSTOP: it still believes what it believed
        else:
            turn(process, store, now, chance, 0.0 if calm else faults)
        assert sum(one.may_act(now) for one in processes) <= 1
    assert sum(one.may_act(now) for one in processes) == 1
