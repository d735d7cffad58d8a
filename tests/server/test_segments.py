"""What requests say of themselves: what is allowed, and what is counted for it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cloze_api.manifest import Calibration
from cloze_api.task import Task
from cloze_server.dummy import dummy_model
from cloze_server.exits import FatalError
from cloze_server.problems import ProblemError
from cloze_server.segments import Segments, declared
from cloze_server.settings import read

pytestmark = pytest.mark.anyio

_METADATA = ("language=de,en", "channel=mail,chat")


def classifier() -> Any:
    """One that is never sure."""
    return replace(dummy_model(Task.SEQUENCE_CLASSIFICATION), calibration=Calibration(thresholds=0.99999))


async def samples(client: Any) -> dict[tuple[str, ...], float]:
    """Samples by segment: name, key, value, what else tells them apart."""
    found = {}
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        for sample in family.samples:
            if sample.name.startswith("cloze_segment_") and not sample.name.endswith(("_bucket", "_created", "_sum")):
                labels = dict(sample.labels)
                assert (labels.pop("model"), labels.pop("version")) == ("dummy", "local")
                name = sample.name.removeprefix("cloze_segment_")
                found[name, labels.pop("key"), labels.pop("value"), *labels.values()] = sample.value
    return found


def test_settings_declare_keys_and_values() -> None:
    """By flags, or in a variable that separates them by white space."""
    expected = {"language": ("de", "en"), "channel": ("mail", "chat")}
    flags = [part for each in _METADATA for part in ("--metadata", each)]
    assert declared(read(["--model", "x", *flags], {}).metadata) == expected
    assert declared(read(["--model", "x"], {"CLOZE_METADATA": " ".join(_METADATA)}).metadata) == expected


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["language"], "language=de,en"),
        (["language="], "language=de,en"),
        (["Language=de"], "language=de,en"),
        (["language=de,,en"], "language=de,en"),
        (["language=de,de"], "twice"),
        (["language=de", "language=en"], "twice"),
        ([f"key{number}=a" for number in range(9)], "at most 8 keys"),
        (["key=" + ",".join(map(str, range(51)))], "50 values"),
    ],
)
def test_a_declaration_that_is_wrong_is_refused(texts: list[str], said: str) -> None:
    """At the start, and so is one that would make too many series."""
    flags = [part for each in texts for part in ("--metadata", each)]
    with pytest.raises(FatalError, match=said):
        read(["--model", "x", *flags], {})


async def test_requests_count_under_each_of_their_segments(serving: Any) -> None:
    """Requests, durations, predictions, confidence, abstentions; and not under a combination."""
    async with serving(classifier, metadata=_METADATA) as client:
        both = {"language": "de", "channel": "mail"}
        answered = await client.post("/v1/classify", json={"inputs": ["a", "b"], "metadata": both, "top_k": 1})
        await client.post("/v1/classify", json={"inputs": "a " * 500, "metadata": {"language": "de"}})
        await client.post("/v1/classify", json={"inputs": "a"})
        found = await samples(client)
    results = answered.json()["results"]
    labels = [result["predictions"][0]["label"] for result in results]
    for key, value in both.items():
        assert found["requests_total", key, value, "2xx"] == 1
        assert found["request_duration_seconds_count", key, value] == 1
        assert found["prediction_confidence_count", key, value] == 2
        assert found["abstained_predictions_total", key, value] == sum(each["abstained"] for each in results) == 2
        for label in labels:
            assert found["predictions_total", key, value, label] == labels.count(label)
    assert found["requests_total", "language", "de", "4xx"] == 1
    assert {each[1:3] for each in found} == set(both.items())


async def test_a_kept_reply_counts_for_who_asks(serving: Any) -> None:
    """Metadata doesn't change an answer, only where it counts."""
    async with serving(classifier, metadata=_METADATA, cache_bytes=1 << 20) as client:
        replies = [
            await client.post("/v1/classify", json={"inputs": "a", "metadata": {"language": language}})
            for language in ("de", "en")
        ]
        found = await samples(client)
    assert [each.headers["x-cloze-cache"] for each in replies] == ["miss", "hit"]
    assert [found["prediction_confidence_count", "language", each] for each in ("de", "en")] == [1, 1]


@pytest.mark.parametrize(
    "metadata", [{"language": "pineapple"}, {"pineapple": "de"}, {"language": "de", "channel": "pineapple"}]
)
async def test_what_was_not_declared_is_refused_and_told(serving: Any, metadata: dict[str, str]) -> None:
    """What is allowed is said; what was sent isn't repeated."""
    async with serving(classifier, metadata=_METADATA) as client:
        refused = await client.post("/v1/classify", json={"inputs": "a", "metadata": metadata})
        found = await samples(client)
    assert (refused.status_code, refused.json()["type"].rsplit("/")[-1]) == (422, "input-invalid")
    assert refused.json()["metadata"] == {"language": ["de", "en"], "channel": ["mail", "chat"]}
    assert "language: de, en; channel: mail, chat" in refused.json()["detail"]
    assert "pineapple" not in refused.text
    assert not found


@pytest.mark.parametrize(
    "metadata", [{"pineapple": 1}, {"pineapple": None}, {"pineapple": {}}, ["pineapple"], "pineapple"]
)
async def test_what_is_no_metadata_is_refused_without_repeating_it(serving: Any, metadata: Any) -> None:
    """Not even a key, which is a part of where an error is."""
    async with serving(classifier, metadata=_METADATA) as client:
        refused = await client.post("/v1/classify", json={"inputs": "a", "metadata": metadata})
    assert refused.status_code == 422
    assert "pineapple" not in refused.text


async def test_without_a_declaration_there_is_no_metadata(serving: Any) -> None:
    """An empty one, and none, are allowed."""
    async with serving(classifier) as client:
        refused = await client.post("/v1/classify", json={"inputs": "a", "metadata": {"language": "de"}})
        empty = await client.post("/v1/classify", json={"inputs": "a", "metadata": {}})
    assert (refused.status_code, empty.status_code) == (422, 200)
    assert "--metadata" in refused.json()["detail"]


async def test_the_open_inference_protocol_takes_it_as_a_parameter(serving: Any) -> None:
    """Like any other option."""
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}
    body = {"inputs": [tensor], "parameters": {"metadata": {"language": "en"}}}
    async with serving(classifier, metadata=_METADATA) as client:
        answered = await client.post("/v2/models/dummy/infer", json=body)
        found = await samples(client)
    assert answered.status_code == 200
    assert found["requests_total", "language", "en", "2xx"] == 1


@given(st.dictionaries(st.text(max_size=8) | st.just("language"), st.text(max_size=8) | st.sampled_from(["de", "en"])))
def test_only_declared_segments_get_through(metadata: dict[str, str]) -> None:
    """So there are never more series than were declared."""
    known = declared(_METADATA)
    try:
        segments = Segments(known).of(metadata)
    except ProblemError:
        assert any(value not in known.get(key, ()) for key, value in metadata.items())
    else:
        assert dict(segments) == metadata
        assert all(value in known[key] for key, value in segments)
