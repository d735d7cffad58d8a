"""Planning of batches."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from cloze_server.batching import LOOKAHEAD, REACH, plan_batch, tolerance


@dataclass(frozen=True)
class Waiting:
    """A sequence in the queue."""

    length: int


QUEUES = st.lists(st.integers(1, 512).map(Waiting), max_size=60)
BUDGETS = st.integers(1, 4096)


def test_an_empty_queue_gives_an_empty_batch() -> None:
    """Nothing waits, nothing runs."""
    assert plan_batch([], 100) == []


@given(QUEUES.filter(bool), BUDGETS)
def test_a_batch_holds_the_oldest_sequence_and_each_at_most_once(queue: list[Waiting], budget: int) -> None:
    """The oldest is always served, so nothing starves."""
    batch = plan_batch(queue, budget)
    assert 0 in batch
    assert len(set(batch)) == len(batch)
    assert all(0 <= index < len(queue) for index in batch)


@given(QUEUES, BUDGETS)
def test_padded_tokens_stay_within_the_budget(queue: list[Waiting], budget: int) -> None:
    """Unless one sequence alone is already longer."""
    lengths = [queue[index].length for index in plan_batch(queue, budget)]
    assert len(lengths) <= 1 or len(lengths) * max(lengths) <= budget


@given(QUEUES, BUDGETS)
def test_lengths_in_a_batch_are_close(queue: list[Waiting], budget: int) -> None:
    """Padding is bounded for every row."""
    lengths = [queue[index].length for index in plan_batch(queue, budget)]
    assert not lengths or max(lengths) - min(lengths) <= tolerance(max(lengths))


@given(QUEUES, BUDGETS)
def test_older_sequences_of_the_same_length_go_first(queue: list[Waiting], budget: int) -> None:
    """Among equals the queue is first come, first served."""
    batch = plan_batch(queue, budget)
    left = [index for index in range(len(queue)) if index not in batch]
    for chosen in batch:
        assert not any(queue[other].length == queue[chosen].length and other < chosen for other in left)


@given(QUEUES, BUDGETS)
def test_nobody_is_overtaken_by_one_that_came_much_later(queue: list[Waiting], budget: int) -> None:
    """However well its length fits: under overload the old would wait for all that is new and alike."""
    for chosen in plan_batch(queue, budget)[1:]:
        assert sum(waiting.length for waiting in queue[1 : chosen + 1]) <= REACH * budget


@given(QUEUES, BUDGETS)
def test_repeated_planning_serves_every_sequence_exactly_once(queue: list[Waiting], budget: int) -> None:
    """No loss, no repetition, and no more batches than there were sequences ahead."""
    left = list(enumerate(queue))
    served: list[int] = []
    batches = 0
    while left:
        chosen = plan_batch([waiting for _, waiting in left], budget)
        batches += 1
        names = [left[index][0] for index in chosen]
        assert all(name >= batches - 1 for name in names[:1])
        served += names
        left = [each for index, each in enumerate(left) if index not in chosen]
    assert sorted(served) == list(range(len(queue)))


def test_equal_lengths_fill_the_budget() -> None:
    """Work-conserving within the budget."""
    assert plan_batch([Waiting(100)] * 30, 2000) == list(range(20))


def test_a_plan_looks_at_a_bounded_part_of_a_long_queue() -> None:
    """The time of a plan doesn't grow with the queue."""
    assert len(plan_batch([Waiting(1)] * (3 * LOOKAHEAD), 10 * LOOKAHEAD)) == LOOKAHEAD
