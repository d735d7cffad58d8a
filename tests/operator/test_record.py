"""The record of a rollout as text: what is written is what is read again, by whichever operator."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cloze_operator.decide.record import Record, Rejection, dump, load
from cloze_operator.desired.record import record_map
from cloze_operator.observe.validity import explain

Document = dict[str, Any]

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)

moments = st.integers(0, 10**9).map(lambda seconds: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds))
names = st.text("0123456789abcdef", min_size=8, max_size=8)
rejections = st.builds(Rejection, reason=st.text(), message=st.text(), at=st.text())
records = st.builds(
    Record,
    stable=st.just("") | names,
    canary=st.just("") | names,
    step=st.integers(0, 20),
    asked=st.none() | moments,
    since=st.none() | moments,
    began=st.none() | moments,
    pause=st.text(),
    pause_message=st.text(),
    resumed=st.booleans(),
    previous=st.just("") | names,
    promoted=st.none() | moments,
    burning=st.none() | moments,
    blamed=st.booleans(),
    retired=st.dictionaries(names, moments),
    rejected=st.dictionaries(names, rejections),
    retried=st.just("") | names,
    obeyed=st.text(),
)


def stored(text: str) -> Document:
    return {"data": {"record.json": text}}


@given(record=records)
def test_what_is_written_is_read_again(record: Record) -> None:
    """Every field of every record, to the second, through the ConfigMap's own text."""
    assert load(stored(dump(record))) == record


def test_nothing_is_written_of_what_is_empty() -> None:
    """A person who looks at the ConfigMap sees what there is to know."""
    record = Record(stable="aaaaaaaa", retired={"bbbbbbbb": NOW})
    assert json.loads(dump(record)) == {"stable": "aaaaaaaa", "retired": {"bbbbbbbb": "2026-03-01T12:00:00Z"}}


@pytest.mark.parametrize("there", [None, {}, {"data": None}, {"data": {}}, {"data": {"record.json": ""}}])
def test_without_a_record_there_is_an_empty_one(there: Document | None) -> None:
    assert load(there) == Record()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "7",
        '"stable"',
        '{"asked": "yesterday"}',
        '{"asked": "2026-03-01T12:00:00"}',
        '{"step": "two"}',
        '{"stable": 7}',
        '{"resumed": "no"}',
        '{"retired": ["a"]}',
        '{"rejected": {"a": {"reason": "x"}}}',
        '{"rejected": {"a": "x"}}',
        '{"weight": 10}',
    ],
)
def test_nonsense_is_said_to_be_some(text: str) -> None:
    """Whatever somebody has written there, a sentence about it ends up in the status, and nothing comes of it."""
    with pytest.raises(ValidationError) as said:
        load(stored(text))
    assert explain(said.value)


def test_the_map_replaces_only_what_was_read() -> None:
    """With the version of the one that the decision was made from, the API server refuses to overwrite another."""
    owner = {"kind": "ModelDeployment", "metadata": {"name": "spam", "namespace": "ml", "uid": "uid-1"}}
    first, later = record_map(owner, "{}", None), record_map(owner, "{}", "41")
    assert "resourceVersion" not in first["metadata"]
    assert later["metadata"]["resourceVersion"] == "41"
    assert (later["metadata"]["name"], later["data"]) == ("spam-rollout", {"record.json": "{}"})


def test_only_the_last_rejections_are_kept() -> None:
    """The newest is always among them, and one that is rejected again is the newest."""
    record = Record()
    for number in (*range(14), 5):
        record = record.rejecting(f"{number:08x}", Rejection("Aborted", "", ""))
    assert list(record.rejected) == [f"{number:08x}" for number in (4, 6, 7, 8, 9, 10, 11, 12, 13, 5)]


@st.composite
def rollouts(draw: st.DrawFn) -> Record:
    """Records as they come: a canary beside the stable revision, or a former one; each name in one place."""
    stable, other, *gone = draw(st.lists(names, min_size=2, max_size=6, unique=True))
    return Record(
        stable=stable,
        **{draw(st.sampled_from(("canary", "previous"))): other},
        retired=dict.fromkeys(gone, NOW),
        asked=draw(st.none() | moments),
    )


@given(record=rollouts(), place=st.integers(0, 5))
def test_nobody_loses_pods_at_once(record: Record, place: int) -> None:
    """Whatever changes, who had pods has them still, or is told to go, which takes its time; who serves isn't told."""
    others = [*record.retired, "ffffffff"]
    target = others[place % len(others)]
    changed = [record.trying(target, NOW), record.without_canary(NOW), record.forgetting(NOW), record.at_step(3, NOW)]
    for after in (*changed, *([record.promoting(NOW)] if record.canary else [])):
        assert record.in_use <= after.in_use
        assert not {after.stable, after.canary, after.previous} & after.retired.keys()
        assert after.stable != after.canary
