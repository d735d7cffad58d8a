"""The queue's promises: one entry a key, one worker a key, backoff of the failing key alone, nobody starves."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze_operator.queue import Limits, Queue, Schedule

LIMITS = Limits(interval=0.1, base=1.0, cap=8.0, nudge=1.0)
KEYS = st.sampled_from("abcde")

#: What can happen to a queue: a key comes (with a delay), a worker takes one, a worker finishes one, time passes.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), KEYS, st.floats(0, 5)),
        st.tuples(st.just("pop"), KEYS, st.just(0.0)),
        st.tuples(st.just("done"), KEYS, st.sampled_from([0.0, 1.0])),
        st.tuples(st.just("wait"), KEYS, st.floats(0, 3)),
    ),
    max_size=60,
)


@given(STEPS)
def test_a_key_is_never_run_twice_at_once_nor_lost(steps: list[tuple[str, str, float]]) -> None:
    """Whatever the order of events, a running key isn't handed out again, and a key that was added runs in the end."""
    schedule: Schedule[str] = Schedule(LIMITS)
    now, running, wanted = 0.0, set[str](), set[str]()
    for kind, key, number in steps:
        if kind == "add":
            schedule.add(key, now, number)
            wanted.add(key)
        elif kind == "pop" and (popped := schedule.pop(now)):
            assert popped not in running
            running.add(popped)
            wanted.discard(popped)
        elif kind == "done" and key in running:
            running.discard(key)
            schedule.done(key, now, failed=bool(number))
            if number:
                wanted.add(key)
        else:
            now += number
        assert len(schedule) <= 5
    for key in sorted(running):
        schedule.done(key, now, failed=False)
    seen = set[str]()
    while (due := schedule.next_due()) is not None:
        now = max(now, due)
        key = schedule.pop(now) or pytest.fail("a key that is due can't be had")
        seen.add(key)
        schedule.done(key, now, failed=False)
    assert wanted <= seen


@given(st.lists(KEYS, min_size=1, max_size=40))
def test_many_events_of_one_key_are_one_run(keys: list[str]) -> None:
    """Events are merged: the queue holds a key once, at its earliest time."""
    schedule: Schedule[str] = Schedule(LIMITS)
    for key in keys:
        schedule.add(key, 0.0)
    runs = Counter[str]()
    while key := schedule.pop(0.0):
        runs[key] += 1
    assert runs == Counter(set(keys))


@given(st.integers(1, 12))
def test_failures_back_off_up_to_the_cap(failures: int) -> None:
    """The wait doubles with each failure and is bounded; success forgets them."""
    schedule: Schedule[str] = Schedule(LIMITS)
    now = 0.0
    schedule.add("a", now)
    for count in range(failures):
        assert schedule.pop(now) == "a"
        schedule.done("a", now, failed=True)
        due = schedule.next_due()
        assert due == pytest.approx(now + min(8.0, 2.0**count))
        now = due
    assert schedule.pop(now) == "a"
    schedule.done("a", now, failed=False)
    assert schedule.next_due() is None
    schedule.add("a", now + 1)
    assert schedule.pop(now + 1) == "a"
    schedule.done("a", now + 1, failed=True)
    assert schedule.next_due() == pytest.approx(now + 2)


def test_event_shortens_the_backoff_but_not_to_nothing() -> None:
    """A failing object that somebody edits is looked at soon, and one that keeps changing isn't run in a hot loop."""
    schedule: Schedule[str] = Schedule(LIMITS)
    for now in (0.0, 10.0, 20.0, 30.0):
        schedule.add("a", now)
        assert schedule.pop(now) == "a"
        schedule.done("a", now, failed=True)
    assert schedule.next_due() == 38.0
    schedule.add("a", 30.2)
    assert schedule.next_due() == 31.0


@pytest.mark.parametrize("during", [True, False])
def test_echo_of_ones_own_write_does_not_shorten_the_backoff(during: bool) -> None:
    """What isn't news leaves a failing key's wait alone, whether it comes while the key runs or afterwards."""
    schedule: Schedule[str] = Schedule(LIMITS)
    for now in (0.0, 10.0, 20.0, 30.0):
        schedule.add("a", now)
        assert schedule.pop(now) == "a"
        if during:
            schedule.add("a", now, news=False)
        schedule.done("a", now, failed=True)
        if not during:
            schedule.add("a", now + 0.2, news=False)
    assert schedule.next_due() == 38.0


def test_echo_leads_to_another_look_at_a_key_that_does_not_fail() -> None:
    """A success is followed by a look at what it has written."""
    schedule: Schedule[str] = Schedule(LIMITS)
    schedule.add("a", 0.0)
    assert schedule.pop(0.0) == "a"
    schedule.add("a", 0.0, news=False)
    schedule.done("a", 0.0, failed=False)
    assert schedule.next_due() == pytest.approx(0.1)


def test_depth_counts_what_is_due() -> None:
    """A key that waits for its time isn't waiting for a worker."""
    schedule: Schedule[str] = Schedule(LIMITS)
    schedule.add("a", 0.0)
    schedule.add("b", 0.0, 5.0)
    assert (len(schedule), schedule.depth(0.0), schedule.depth(5.0)) == (2, 1, 2)


def test_event_during_a_run_leads_to_another_run() -> None:
    """What changes while a key is worked on isn't missed, and keeps its distance."""
    schedule: Schedule[str] = Schedule(LIMITS)
    schedule.add("a", 0.0)
    assert schedule.pop(0.0) == "a"
    schedule.add("a", 0.01)
    assert schedule.pop(0.02) is None
    schedule.done("a", 0.03, failed=False)
    assert schedule.next_due() == pytest.approx(0.1)


def test_failing_keys_do_not_block_others() -> None:
    """Poisoned keys wait by themselves; a good key is next as soon as it comes."""
    schedule: Schedule[str] = Schedule(LIMITS)
    for key in "abcd":
        schedule.add(key, 0.0)
    for key in "abcd":
        assert schedule.pop(0.0) == key
        schedule.done(key, 0.0, failed=True)
    schedule.add("good", 0.1)
    assert schedule.pop(0.1) == "good"


def test_requeue_is_not_pushed_back_by_a_later_one() -> None:
    """The earliest of two times counts."""
    schedule: Schedule[str] = Schedule(LIMITS)
    schedule.add("a", 0.0, 3.0)
    schedule.add("a", 0.0, 10.0)
    assert schedule.next_due() == 3.0


def test_forgotten_key_is_gone() -> None:
    """A deleted object's key is due no more, and its failures are forgotten."""
    schedule: Schedule[str] = Schedule(LIMITS)
    schedule.add("a", 0.0, 3.0)
    schedule.forget("a")
    assert (len(schedule), schedule.next_due()) == (0, None)


def test_new_object_of_a_forgotten_name_is_looked_at() -> None:
    """An object that is made again while its predecessor is found to be gone isn't left to the resync."""
    schedule: Schedule[str] = Schedule(LIMITS)
    schedule.add("a", 0.0)
    assert schedule.pop(0.0) == "a"
    schedule.add("a", 0.05)
    schedule.forget("a")
    schedule.done("a", 0.1, failed=False)
    assert schedule.next_due() is not None


@settings(deadline=None, max_examples=20)
@given(st.lists(KEYS, min_size=1, max_size=30), st.integers(1, 4))
def test_workers_serve_every_key_and_never_the_same_one_together(keys: list[str], workers: int) -> None:
    """Several workers share the queue: each key's runs are serial, and all keys are served although one hangs."""

    async def scenario() -> None:
        queue: Queue[str] = Queue(Limits(interval=0.0, base=0.001, cap=0.01, nudge=0.001))
        active, served, failed = set[str](), set[str](), set[str]()
        complete = asyncio.Event()

        async def work() -> None:
            while True:
                key = await queue.get()
                assert key not in active
                active.add(key)
                await asyncio.sleep(0)
                active.discard(key)
                first = key not in failed
                failed.add(key)
                if not first:
                    served.add(key)
                if served == set(keys):
                    complete.set()
                queue.done(key, failed=first)

        tasks = [asyncio.create_task(work()) for _ in range(workers)]
        for key in keys:
            queue.add(key)
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await complete.wait()
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)

    asyncio.run(scenario())
