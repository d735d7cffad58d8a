"""Probabilities and abstentions by the calibration that a model came with."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from cloze_api.manifest import Calibration
from cloze_api.task import Task
from cloze_server.dummy import dummy_model

pytestmark = pytest.mark.anyio

TEXTS = ["Ada lived here", "my card", "late"]


def loads(task: Task, **calibration: Any) -> Any:
    """Loads the stand-in with a calibration."""
    return lambda: replace(dummy_model(task), calibration=Calibration(**calibration))


async def answers(
    serving: Any, task: Task, path: str, body: dict[str, Any], **calibration: Any
) -> tuple[list[Any], str]:
    """Results, and the metrics afterwards."""
    async with serving(loads(task, **calibration)) as client:
        return (await client.post(path, json=body)).json()["results"], (await client.get("/metrics")).text


def scores(result: Any) -> dict[str, float]:
    """By label."""
    return {each["label"]: each["score"] for each in result["predictions"]}


@pytest.mark.parametrize("temperature", [0.5, 3.0])
async def test_logits_are_divided_by_the_temperature(serving: Any, temperature: float) -> None:
    """Which leaves the order of the labels, and makes the model more or less sure."""
    body = {"inputs": TEXTS}
    plain, _ = await answers(serving, Task.SEQUENCE_CLASSIFICATION, "/v1/classify", body)
    calibrated, _ = await answers(serving, Task.SEQUENCE_CLASSIFICATION, "/v1/classify", body, temperature=temperature)
    for before, after in zip(plain, calibrated, strict=True):
        labels = [each["label"] for each in before["predictions"]]
        assert [each["label"] for each in after["predictions"]] == labels
        # softmax of logarithms of probabilities is softmax of logits.
        logits = np.log([scores(before)[label] for label in labels]) / temperature
        expected = np.exp(logits) / np.exp(logits).sum()
        assert [scores(after)[label] for label in labels] == pytest.approx(expected.tolist(), rel=1e-4)


async def test_a_text_below_the_threshold_is_abstained_and_counted(serving: Any) -> None:
    """By one bound for all labels; none abstains without."""
    body = {"inputs": TEXTS, "top_k": 1}
    plain, counted = await answers(serving, Task.SEQUENCE_CLASSIFICATION, "/v1/classify", body)
    assert [result["abstained"] for result in plain] == [False] * 3
    assert 'cloze_abstained_predictions_total{model="dummy",version="local"} 0.0' in counted
    best = [result["predictions"][0]["score"] for result in plain]
    bound = sorted(best)[1]
    results, counted = await answers(serving, Task.SEQUENCE_CLASSIFICATION, "/v1/classify", body, thresholds=bound)
    assert [result["abstained"] for result in results] == [score < bound for score in best]
    assert 'cloze_abstained_predictions_total{model="dummy",version="local"} 1.0' in counted
    assert [result["predictions"] for result in results] == [result["predictions"] for result in plain]


async def test_each_label_can_have_a_bound_of_its_own(serving: Any) -> None:
    """As replies name them: entities without their prefix."""
    body = {"inputs": ["Ada lived here and there, my card was late"] * 2, "aggregation": "first"}
    results, counted = await answers(
        serving, Task.TOKEN_CLASSIFICATION, "/v1/token-classify", body, thresholds={"PER": 1.0}
    )
    tags = [tag for result in results for tag in result["tags"]]
    assert {tag["label"] for tag in tags} == {"PER", "LOC"}
    assert all(tag["abstained"] == (tag["label"] == "PER") for tag in tags)
    withheld = sum(tag["abstained"] for tag in tags)
    assert f'cloze_abstained_predictions_total{{model="dummy",version="local"}} {withheld}.0' in counted


async def test_a_bound_of_one_is_reached_by_no_probability(serving: Any) -> None:
    """Not by one that is rounded to 1 either: it says that the model is never sure enough of the label."""
    results, _ = await answers(
        *(serving, Task.SEQUENCE_CLASSIFICATION, "/v1/classify", {"inputs": TEXTS, "top_k": 1}),
        temperature=1e-6,
        thresholds=1.0,
    )
    assert {result["predictions"][0]["score"] for result in results} == {1.0}
    assert all(result["abstained"] for result in results)


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0}, {"temperature": float("inf")}, {"thresholds": 1.5}, {"thresholds": {"a": -1}}]
)
def test_a_calibration_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    """By the manifest's schema."""
    with pytest.raises(ValidationError):
        Calibration(**wrong)
