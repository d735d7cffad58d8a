"""What canary analysis reads of a server: durations by length, predictions, and who the replica is."""

import asyncio
import threading
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from cloze_api import metrics
from cloze_api.task import Task
from cloze_server import routes
from cloze_server.backend import DummyBackend, Ids, Logits
from cloze_server.dummy import dummy_model
from cloze_server.tasks.classify import Classify
from cloze_server.telemetry import length_class

pytestmark = pytest.mark.anyio

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(client: httpx.AsyncClient) -> Series:
    """Every sample of the server's own metrics."""
    text = (await client.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("cloze_")
    }


def values(series: Series, name: str, by: str, **labels: str) -> dict[str, float]:
    """Values of a metric's samples with these labels, keyed by the label `by`; the model's identity is checked."""
    result = {}
    for (sample, found), value in series.items():
        each = dict(found)
        if sample == name and labels.items() <= each.items():
            assert (each["model"], each["version"]) == ("dummy", "local")
            result[each[by]] = value
    return result


class Scattered:
    """Prefers any of many classes, by a sequence's ids."""

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def infer(self, ids_BL: Ids, mask_BL: Ids, segments_BL: Ids | None = None) -> Logits:  # noqa: N803 - as in Backend
        best = (ids_BL * mask_BL * np.arange(1, ids_BL.shape[1] + 1)).sum(axis=1) % self._classes
        return np.eye(self._classes, dtype=np.float32)[best]


def loads(task: Task, labels: list[str] | None = None) -> Any:
    """Loads the stand-in for a task, or one that knows these labels of texts."""
    model = dummy_model(task)
    if labels is not None:
        model = replace(model, labels=labels, backend=DummyBackend(classes=len(labels), per_token=False))
    return lambda: model


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(None, "none"), (0, "32"), (32, "32"), (33, "128"), (128, "128"), (129, "512"), (512, "512"), (513, "more")],
)
def test_a_length_belongs_to_the_smallest_class_that_holds_it(tokens: int | None, expected: str) -> None:
    """Bounds included."""
    assert length_class(tokens) == expected


async def test_durations_are_kept_by_the_longest_input(serving: Any) -> None:
    """As the model reads it: special tokens count, what was cut off doesn't."""
    requests: list[dict[str, Any]] = [
        {"inputs": ["a " * 30, "a"]},
        {"inputs": ["a", "a " * 31, "a"]},
        {"inputs": "a " * 500, "truncate": "right"},
    ]
    async with serving(loads(Task.SEQUENCE_CLASSIFICATION)) as client:
        for body in requests:
            assert (await client.post("/v1/classify", json=body)).status_code == 200
        series = await scrape(client)
    counted = values(series, "cloze_request_duration_seconds_count", "length", status_class="2xx")
    assert counted == {"32": 1, "128": 2}


async def test_what_was_not_tokenized_has_no_length(serving: Any) -> None:
    """Refused requests, and routes without a model."""
    async with serving(loads(Task.SEQUENCE_CLASSIFICATION)) as client:
        await client.post("/v1/classify", json={})
        await client.post("/v1/fill-mask", json={"inputs": "[MASK]"})
        await client.get("/v1/models")
        series = await scrape(client)
    routes = values(series, "cloze_request_duration_seconds_count", "route", length="none")
    assert routes == {"/v1/classify": 1, "/v1/fill-mask": 1, "/v1/models": 1}


async def test_a_failure_after_tokenizing_keeps_its_length(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error belongs to the class that it happened in."""
    async with serving(loads(Task.SEQUENCE_CLASSIFICATION)) as client:
        monkeypatch.setattr(Classify, "result", None)
        assert (await client.post("/v1/classify", json={"inputs": "a " * 40})).status_code == 500
        series = await scrape(client)
    assert values(series, "cloze_request_duration_seconds_count", "length", status_class="5xx") == {"128": 1}


async def test_every_series_of_a_loaded_model_carries_its_name_and_version(serving: Any) -> None:
    """Also those of requests that failed, of a full queue, and of routes that don't exist."""
    async with serving(loads(Task.SEQUENCE_CLASSIFICATION), max_queue_tokens=4, max_batch_tokens=4) as client:
        for body in ({"inputs": "a"}, {}, {"inputs": "a b c d e"}):
            await client.post("/v1/classify", json=body)
        await client.get("/v1/poetry")
        series = await scrape(client)
    assert len(series) > 100
    of_the_process = tuple(metric.name for metric in metrics.ALL if "model" not in metric.labels)
    for name, labels in series:
        if name.startswith(of_the_process):
            continue
        each = dict(labels)
        assert (each.get("model"), each.get("version")) == ("dummy", "local"), name


async def test_predicted_labels_are_counted_from_zero(serving: Any) -> None:
    """One for each text: the best label, however many are in the reply; warming up predicts nothing."""
    labels = ["spam", "ham", "unsure"]
    async with serving(loads(Task.SEQUENCE_CLASSIFICATION, labels)) as client:
        before = await scrape(client)
        body = {"inputs": ["abc", "some words", "more of them", "abc"]}
        results = (await client.post("/v1/classify", json=body)).json()["results"]
        await client.post("/v1/classify", json={**body, "top_k": 1})
        after = await scrape(client)
    assert values(before, "cloze_predictions_total", "label") == dict.fromkeys(labels, 0)
    assert values(before, "cloze_prediction_confidence_count", "version") == {"local": 0}
    best = [result["predictions"][0] for result in results]
    expected = {label: 2.0 * sum(each["label"] == label for each in best) for label in labels}
    assert values(after, "cloze_predictions_total", "label") == expected
    assert values(after, "cloze_prediction_confidence_count", "version") == {"local": 8}
    total = values(after, "cloze_prediction_confidence_sum", "version")["local"]
    assert total == pytest.approx(2 * sum(each["score"] for each in best))


async def test_labels_past_the_hundredth_are_counted_together(serving: Any) -> None:
    """The model decides how many there are; the number of series must not."""
    labels = [f"topic-{number}" for number in range(metrics.PREDICTION_LABELS_MAX + 50)]
    model = replace(dummy_model(Task.SEQUENCE_CLASSIFICATION), labels=labels, backend=Scattered(len(labels)))
    async with serving(lambda: model) as client:
        body = {"inputs": [f"text {number}" for number in range(200)], "top_k": 1}
        results = (await client.post("/v1/classify", json=body)).json()["results"]
        counted = values(await scrape(client), "cloze_predictions_total", "label")
    assert set(counted) == {*labels[: metrics.PREDICTION_LABELS_MAX], "other"}
    late = sum(labels.index(each["predictions"][0]["label"]) >= metrics.PREDICTION_LABELS_MAX for each in results)
    assert late > 0
    assert (counted["other"], sum(counted.values())) == (late, 200)


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": ["some more words here", "and here"], "aggregation": "first"},
        {"inputs": ["some more words here", "and here"], "aggregation": "none"},
        {"words": [["some", "more", "words", "\u0007"], ["and", "here"]]},
    ],
)
async def test_tags_are_counted_as_they_are_answered(serving: Any, body: dict[str, Any]) -> None:
    """Entities by their names, words and sub-words by the model's labels; a word without a label isn't counted."""
    async with serving(loads(Task.TOKEN_CLASSIFICATION)) as client:
        before = values(await scrape(client), "cloze_predictions_total", "label")
        results = (await client.post("/v1/token-classify", json=body)).json()["results"]
        series = await scrape(client)
    assert before == dict.fromkeys(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "PER", "LOC"], 0)
    answered = [tag["label"] for result in results for tag in result["tags"] if tag["label"]]
    assert answered
    counted = values(series, "cloze_predictions_total", "label")
    assert counted == {label: answered.count(label) for label in counted}
    assert sum(counted.values()) == len(answered)
    assert values(series, "cloze_prediction_confidence_count", "version") == {"local": len(answered)}


async def test_the_likeliest_token_of_each_mask_gives_the_confidence(serving: Any) -> None:
    """Without a name: tokens are text, and as many as the vocabulary has."""
    async with serving(loads(Task.FILL_MASK)) as client:
        body = {"inputs": ["[MASK] and [MASK]", "a [MASK]"]}
        results = (await client.post("/v1/fill-mask", json=body)).json()["results"]
        series = await scrape(client)
    best = [mask["predictions"][0]["score"] for result in results for mask in result["masks"]]
    assert values(series, "cloze_predictions_total", "label") == {}
    assert values(series, "cloze_prediction_confidence_count", "version") == {"local": 3}
    assert values(series, "cloze_prediction_confidence_sum", "version")["local"] == pytest.approx(sum(best))


async def test_a_request_that_fails_predicts_nothing(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though one of its inputs had an answer."""
    result, calls = Classify.result, []

    def fail_on_the_second(self: Classify, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > 1:
            raise ValueError
        return result(self, *arguments)

    async with serving(loads(Task.SEQUENCE_CLASSIFICATION)) as client:
        monkeypatch.setattr(Classify, "result", fail_on_the_second)
        assert (await client.post("/v1/classify", json={"inputs": ["a", "b"]})).status_code == 500
        series = await scrape(client)
    assert len(calls) == 2
    assert sum(values(series, "cloze_predictions_total", "label").values()) == 0
    assert values(series, "cloze_prediction_confidence_count", "version") == {"local": 0}


async def test_a_replica_says_which_revision_it_is(serving: Any) -> None:
    """In the model's info and its description; outside a cluster it belongs to none."""
    load = loads(Task.SEQUENCE_CLASSIFICATION)
    async with serving(load, deployment="mails", revision="7f9c") as client:
        inside = (await scrape(client), (await client.get("/v1/models")).json()["models"][0])
    async with serving(load) as client:
        outside = (await scrape(client), (await client.get("/v1/models")).json()["models"][0])
    assert values(inside[0], "cloze_model_info", "revision", deployment="mails") == {"7f9c": 1}
    assert inside[1]["revision"] == "7f9c"
    assert values(outside[0], "cloze_model_info", "revision", deployment="") == {"": 1}
    assert "revision" not in outside[1]
    info = next(dict(labels) for name, labels in inside[0] if name == "cloze_model_info")
    assert info.keys() == set(metrics.MODEL_INFO.labels)


async def test_requests_do_not_wait_for_a_scrape(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is answered while the metrics are being written, in a thread of its own."""
    begun, go_on = threading.Event(), threading.Event()

    def encode(_: CollectorRegistry) -> bytes:
        begun.set()
        return b"whole" if go_on.wait(10) else b"nobody was answered meanwhile"

    monkeypatch.setattr(routes, "choose_encoder", lambda _: (encode, "text/plain"))
    async with serving(loads(Task.SEQUENCE_CLASSIFICATION)) as client:
        scraping = asyncio.create_task(client.get("/metrics"))
        assert await asyncio.to_thread(begun.wait, 10)
        assert (await client.post("/v1/classify", json={"inputs": "a"})).status_code == 200
        go_on.set()
        assert (await scraping).text == "whole"
