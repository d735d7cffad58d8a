"""When a training is taken for one that diverges."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze_trainer.health import NON_FINITE_BUDGET, WINDOW, Health

FINITE = st.floats(0, 20)


def after(losses: list[float], start: Health | None = None) -> Health:
    health = start or Health()
    for loss in losses:
        health = health.updated(finite=True).seen(loss)
    return health


@given(st.lists(FINITE, max_size=80).map(lambda losses: sorted(losses, reverse=True)))
def test_losses_that_fall_are_no_trouble(losses: list[float]) -> None:
    """However they fall."""
    assert after(losses).trouble(1e-9) == ""


@given(st.lists(FINITE, min_size=WINDOW, max_size=60), st.floats(0.1, 10))
def test_a_rise_beyond_the_bound_is_noticed_within_a_window(losses: list[float], bound: float) -> None:
    """All losses of a window above the lowest mean by more than the bound."""
    before = after(losses)
    assert before.lowest is not None
    assert "risen" in after([before.lowest + bound + 0.01] * WINDOW, before).trouble(bound)


@given(FINITE)
def test_one_batch_is_no_trouble(odd: float) -> None:
    """It moves the mean by its part only."""
    health = after([2.0] * WINDOW)
    assert health.seen(odd).trouble(20 / WINDOW + 1e-9) == ""


def test_a_few_updates_may_be_left_out() -> None:
    """One that is made ends the row."""
    health = after([2.0] * WINDOW)
    for _ in range(NON_FINITE_BUDGET - 1):
        health = health.updated(finite=False).seen(math.nan)
    assert (health.trouble(1.0), health.sound(1.0)) == ("", False)
    assert health.updated(finite=True).left_out == 0
    assert "not finite in 3 steps" in health.updated(finite=False).trouble(1.0)


@pytest.mark.parametrize(("every", "tolerable"), [(2, False), (5, False), (11, True)])
def test_gradients_that_fail_again_and_again_are_trouble(every: int, tolerable: bool) -> None:
    """Though never twice in a row: else half of a training could be lost without a word. One in eleven may be."""
    health, first = after([2.0] * WINDOW), None
    for step in range(1, 1001):
        health = health.updated(finite=step % every != 0)
        if first is None and health.trouble(1.0):
            first = step
    assert (first is None) == tolerable
    assert first is None or first <= 5 * every
    assert tolerable or "more than one of 10 steps" in health.trouble(1.0)
    assert health.restarted().trouble(1.0) == ""


def test_halfway_to_trouble_is_not_sound() -> None:
    """A checkpoint of a training that has begun to diverge is none to go back to."""
    good = after([2.0] * WINDOW)
    assert good.sound(1.0)
    assert not after([2.7] * WINDOW, good).sound(1.0)
    assert after([2.7] * WINDOW, good).trouble(1.0) == ""


def test_what_went_back_has_a_window_to_show_that_it_helped() -> None:
    """The losses from before say nothing; until then it is no state to go back to, and no trouble."""
    bad = after([2.0] * WINDOW + [2.4] * WINDOW)
    again = bad.restarted()
    assert (again.trouble(0.3), again.sound(10.0)) == ("", False)
    assert "risen" in after([2.4] * WINDOW, again).trouble(0.3)
    assert after([2.1] * WINDOW, again).sound(0.3)
