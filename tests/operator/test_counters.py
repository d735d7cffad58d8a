"""Increases of raw counters: exact whatever restarts, appears late or isn't scraped."""

from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cloze_operator.analysis.counters import Grid, Increase, Series, increases

GRID = Grid(1000.0, 10.0, 5)


def series(values: Sequence[float | None], grid: Grid = GRID, **labels: str) -> Series:
    """A series by its values at the grid's boundaries; None where there is no sample."""
    samples = ((grid.start + at * grid.step, value) for at, value in enumerate(values) if value is not None)
    return Series(labels, tuple(samples))


def counted(*found: Series, born: bool = False) -> dict[str, tuple[float, ...]]:
    """The increases by the label `kind`."""
    return {one.labels.get("kind", ""): one.counts for one in increases(found, GRID, target=("pod",), born=born)}


def test_differences_between_boundaries_are_counted_and_nothing_from_before() -> None:
    assert counted(series([100, 101, 101, 105, 105, 106], pod="a")) == {"": (1, 0, 4, 0, 1)}


def test_a_counter_that_falls_counts_from_zero() -> None:
    assert counted(series([100, 110, 3, 4, 0, 2], pod="a")) == {"": (10, 3, 1, 0, 2)}


def test_all_counters_of_a_process_restart_together() -> None:
    """The errors that came after the restart are as many as before it: their counter alone shows nothing."""
    good, bad = series([50, 60, 7, 8, 9, 10], pod="a", kind="2xx"), series([4, 4, 4, 4, 4, 4], pod="a", kind="5xx")
    assert counted(good, bad) == {"2xx": (10, 7, 1, 1, 1), "5xx": (0, 4, 0, 0, 0)}
    other = series([4, 4, 4, 4, 4, 4], pod="b", kind="5xx")
    assert counted(good, other)["5xx"] == (0, 0, 0, 0, 0)


def test_a_counter_that_was_lost_in_a_restart_counts_from_zero_when_it_is_back() -> None:
    good = series([50, 60, 7, 8, 9, 10], pod="a", kind="2xx")
    bad = series([4, 4, None, None, 6, 6], pod="a", kind="5xx")
    assert counted(good, bad)["5xx"] == (0, 0, 0, 6, 0)


def test_a_counter_that_appears_beside_others_of_its_process_was_created_by_its_first_count() -> None:
    good = series([50, 51, 52, 53, 54, 55], pod="a", kind="2xx")
    late = series([None, None, 3, 3, 4, 4], pod="a", kind="5xx")
    assert counted(good, late)["5xx"] == (0, 3, 0, 1, 0)


def test_a_process_that_appears_is_new_only_in_the_canary() -> None:
    """A pod that Prometheus has just begun to scrape may be old: what it counted isn't the rollout's."""
    late = series([None, None, 300, 304, 304, 305], pod="a")
    assert counted(late) == {"": (0, 0, 4, 0, 1)}
    assert counted(late, born=True) == {"": (0, 300, 4, 0, 1)}


def test_what_a_process_counted_while_it_was_not_scraped_comes_with_the_next_scrape() -> None:
    assert counted(series([5, None, None, 9, None, 10], pod="a")) == {"": (0, 0, 4, 0, 1)}
    assert counted(series([5, None, None, 2, None, 3], pod="a")) == {"": (0, 0, 2, 0, 1)}


def test_samples_outside_of_the_grid_are_left_out() -> None:
    early = Series({"pod": "a"}, ((990.0, 1.0), (1000.0, 5.0), (1010.001, 6.0), (1060.0, 99.0)))
    assert increases([early], GRID, target=("pod",), born=False) == [Increase({"pod": "a"}, (1, 0, 0, 0, 0), 5.0)]


Life = list[tuple[bool, list[int]]]
"""Of a process at each boundary after the start: whether it was restarted right after the boundary before, and what
each of its counters has counted since then."""

KINDS = ("2xx", "4xx", "5xx")


@st.composite
def lives(draw: st.DrawFn) -> Life:
    counts = st.lists(st.integers(0, 20), min_size=len(KINDS), max_size=len(KINDS))
    return draw(st.lists(st.tuples(st.booleans(), counts), min_size=GRID.count, max_size=GRID.count))


def scraped(pod: str, first: Sequence[int], life: Life, lazy: bool) -> list[Series]:
    """A process' counters as they are scraped. lazy: a counter doesn't exist until its first count."""
    values: list[list[float | None]] = [[float(value) if value or not lazy else None] for value in first]
    now = list(first)
    for restarted, counts in life:
        before = list(now)
        now = [(0 if restarted else value) + count for value, count in zip(now, counts, strict=True)]
        # A restart after which each counter is past its former value can't be seen by anybody.
        assume(not restarted or any(one < other for one, other in zip(now, before, strict=True) if one or not lazy))
        for own, value in zip(values, now, strict=True):
            own.append(float(value) if value or not lazy else None)
    return [series(own, pod=pod, kind=kind) for own, kind in zip(values, KINDS, strict=True)]


@given(lives(), st.lists(st.integers(1, 99), min_size=3, max_size=3), st.booleans())
def test_the_increases_are_what_was_counted_whatever_restarts(life: Life, first: list[int], lazy: bool) -> None:
    """Interval by interval, and so in total."""
    found = counted(*scraped("a", first, life, lazy))
    for number, kind in enumerate(KINDS):
        assert found[kind] == tuple(counts[number] for _, counts in life)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]),
            st.lists(st.none() | st.integers(0, 50), min_size=GRID.count + 1, max_size=GRID.count + 1),
        ),
        max_size=8,
    ),
    st.booleans(),
    st.randoms(),
)
def test_nothing_is_negative_and_the_order_of_the_series_says_nothing(
    drawn: list[tuple[str, list[int | None]]], born: bool, random: object
) -> None:
    found = [series(values, pod=pod, kind=str(number)) for number, (pod, values) in enumerate(drawn)]
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    seen = counted(*found, born=born)
    assert seen == counted(*shuffled, born=born)
    assert all(count >= 0 for counts in seen.values() for count in counts)


@pytest.mark.parametrize(("moment", "index"), [(1000.0, 0), (1009.999, 1), (1050.0, 5)])
def test_a_moment_belongs_to_the_nearest_boundary(moment: float, index: int) -> None:
    """Prometheus rounds to milliseconds."""
    assert GRID.index(moment) == index
