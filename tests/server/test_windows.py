"""Which parts of an input the model reads."""

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cloze_server.windows import Window, count, covered, default_stride, largest_stride, plan

LENGTHS = st.integers(0, 400)
ROOMS = st.integers(1, 60)
STRIDES = st.integers(0, 30)


@given(LENGTHS, ROOMS, STRIDES)
def test_windows_cover_every_token_and_overlap_as_asked(length: int, room: int, stride: int) -> None:
    """In the text's order; all but the last are full, and none is without a token that only it has."""
    assume(stride <= largest_stride(room))
    windows = plan(length, room, "window", stride)
    assert covered(windows) == range(length)
    assert len(windows) == count(length, room, stride)
    for before, after in pairwise(windows):
        assert before.start < after.start
        assert before.stop - after.start == stride
        assert before.stop - before.start == room
        assert after.stop > before.stop
    assert all(window.stop - window.start <= room for window in windows)


@given(LENGTHS, ROOMS, STRIDES)
def test_each_token_is_owned_by_one_window_where_it_has_most_context(length: int, room: int, stride: int) -> None:
    """Context ends where the text is cut, not where it ends."""
    assume(stride <= largest_stride(room))
    windows = plan(length, room, "window", stride)

    def context(window: Window, token: int) -> int:
        left = token - window.start if window.start else length
        right = window.stop - 1 - token if window.stop < length else length
        return min(left, right)

    owned = [token for window in windows for token in range(window.first, window.last)]
    assert owned == list(range(length))
    for window in windows:
        for token in range(window.first, window.last):
            holding = [each for each in windows if each.start <= token < each.stop]
            assert context(window, token) == max(context(each, token) for each in holding)


@given(LENGTHS, ROOMS)
def test_left_and_right_leave_as_much_as_fits(length: int, room: int) -> None:
    """`left` drops the beginning, `right` the end."""
    kept = min(length, room)
    assert plan(length, room, "left", 0) == [Window(length - kept, length, length - kept, length)]
    assert plan(length, room, "right", 0) == [Window(0, kept, 0, kept)]


@given(LENGTHS, ROOMS)
def test_no_token_is_read_more_than_twice(length: int, room: int) -> None:
    """With the largest overlap; the one by default is smaller."""
    windows = plan(length, room, "window", largest_stride(room))
    for token in range(length):
        assert sum(window.start <= token < window.stop for window in windows) <= 2
    assert default_stride(room) <= largest_stride(room)


@pytest.mark.parametrize(("truncation", "room", "stride"), [("error", 4, 0), ("window", 0, 0), ("window", 4, 3)])
def test_what_cannot_be_planned_is_an_error(truncation: str, room: int, stride: int) -> None:
    """A text that doesn't fit and may not be cut, no room, and windows that hardly move on."""
    with pytest.raises(ValueError, match="10 tokens"):
        plan(10, room, truncation, stride)  # type: ignore[arg-type]
