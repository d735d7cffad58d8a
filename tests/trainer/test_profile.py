"""The reference profile: what a server would count if it were asked the test examples."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cloze_api.manifest import verify
from cloze_api.profile import PROFILE_FILE, Histogram, Profile
from cloze_api.task import Problem, Task
from cloze_trainer.quality import profile
from cloze_trainer.tasks.kind import Said
from cloze_trainer.tasks.rows import Rows

TEXTS = Task.SEQUENCE_CLASSIFICATION
TOWNS = ["london", "paris", "rome", "oslo", "vienna", "madrid", "lisbon", "dublin"]


def text(number: int) -> str:
    """Of lengths of their own, some longer than the model; some have a sign that no tokenizer was shown."""
    return " ".join([TOWNS[number], "a", "letter"] * (1 + number * 2)) + " ☃" * (number % 3)


EXAMPLES: dict[Problem, list[dict[str, Any]]] = {
    Problem.SINGLE_LABEL: [{"text": text(number), "label": "ab"[number % 2]} for number in range(8)],
    Problem.MULTI_LABEL: [
        {"text": text(number), "labels": [["a"], ["a", "b"], [], ["b"]][number % 4]} for number in range(8)
    ],
}


@pytest.mark.anyio
@pytest.mark.parametrize("problem", EXAMPLES)
async def test_a_profile_is_what_a_server_counts(tuned: Callable[..., Any], problem: Problem) -> None:
    """Tokens, those that are unknown, labels and their probabilities, for whole texts in windows."""
    rows = EXAMPLES[problem]
    made = tuned(
        TEXTS,
        [{**row, "text": row["text"].replace(" ☃", "")} for row in rows],
        rows,
        max_length=16,
        steps=60,
        problem=problem,
        truncate="window",
    )
    artifact = made.publish(made.judge())
    found = Profile.model_validate_json((artifact / PROFILE_FILE).read_bytes())
    assert PROFILE_FILE in verify(artifact).files
    labels: Counter[str] = Counter()
    confidences, tokens = [], []
    async with made.serving(artifact) as client:
        before = await _unknown(client)
        unknown = []
        for row in rows:
            reply = (await client.post("/v1/classify", json={"inputs": row["text"], "truncate": "window"})).json()
            (result,) = reply["results"]
            tokens.append(result["tokens"])
            said = [each for each in result["predictions"] if each.get("applies", each is result["predictions"][0])]
            labels.update(each["label"] for each in said)
            confidences += [each["score"] for each in said]
            now = await _unknown(client)
            unknown.append((now - before) / result["tokens"])
            before = now
    assert found.inputs == len(rows)
    assert found.tokens == profile.histogram(np.array(tokens), tuple(found.tokens.bounds))
    assert {label: count for label, count in found.predictions.items() if count} == labels
    assert found.confidences == profile.histogram(np.array(confidences), tuple(found.confidences.bounds))
    assert sum(found.unknown.counts[1:]) == sum(share > 0 for share in unknown) > 0


async def _unknown(client: Any) -> float:
    """Unknown tokens that the server has counted."""
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("cloze_unknown_tokens_total{"))


def test_each_text_of_a_pair_is_an_input(tuned: Callable[..., Any]) -> None:
    """An embedding model is asked one at a time, and says no labels."""
    rows = [{"text": f"a letter to {town}", "positive": f"{town} has a letter"} for town in TOWNS]
    made = tuned(Task.EMBEDDING, rows, rows)
    found = made.workload.profile(made.judge().said)
    assert found.inputs == 2 * len(rows)
    assert (found.predictions, found.confidences) == ({}, None)


@given(
    st.lists(st.floats(-10, 10), max_size=40),
    st.lists(st.floats(-10, 10), min_size=1, max_size=8, unique=True),
)
def test_a_histogram_counts_each_value_once(values: list[float], bounds: list[float]) -> None:
    """One that equals a bound is below it; cumulated it is what Prometheus would have."""
    found = profile.histogram(np.array(values), tuple(sorted(bounds)))
    for bound, count in zip(found.bounds, np.cumsum(found.counts)[:-1], strict=True):
        assert count == sum(value <= bound for value in values)
    assert sum(found.counts) == len(values)


@pytest.mark.parametrize("wrong", [{"bounds": [1, 2], "counts": [1, 2]}, {"bounds": [2, 1], "counts": [1, 2, 3]}])
def test_a_histogram_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    """Whoever reads a profile can rely on it."""
    with pytest.raises(ValidationError):
        Histogram.model_validate(wrong)


def test_a_tokenizer_that_knows_everything_has_no_unknown_tokens() -> None:
    """Nor does a task without labels predict any."""
    arrays = {"ids": np.arange(7), "lengths": np.array([3, 4]), "targets": np.array([0, 1])}
    rows = Rows(arrays, per_token=False, pad=0)
    found = profile.of(rows.groups(), rows, Said(), None)
    assert json.loads(found.model_dump_json())["unknown"]["counts"] == [2, *[0] * 7]
