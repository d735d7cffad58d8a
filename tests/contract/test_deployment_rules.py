"""Rules of a ModelDeployment that relate its fields."""

from typing import Any

import pytest
from pydantic import ValidationError

from cloze_api.deployment import ModelDeploymentSpec

MODEL = {"name": "spam", "version": "3"}


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"drainSeconds": 30},
        {"drainSeconds": 10, "runtime": {"timeoutSeconds": 10}},
        {"drainSeconds": 600, "runtime": {"timeoutSeconds": 600}},
    ],
)
def test_a_drain_as_long_as_the_timeout_is_accepted(spec: dict[str, Any]) -> None:
    """Whatever was accepted is answered, at the latest with a timeout."""
    ModelDeploymentSpec.model_validate({"model": MODEL, **spec})


@pytest.mark.parametrize("spec", [{"drainSeconds": 10}, {"runtime": {"timeoutSeconds": 31}}])
def test_a_drain_shorter_than_the_timeout_is_refused(spec: dict[str, Any]) -> None:
    """It would cut off requests that are still in time."""
    with pytest.raises(ValidationError, match=r"spec\.drainSeconds is smaller than spec\.runtime\.timeoutSeconds"):
        ModelDeploymentSpec.model_validate({"model": MODEL, **spec})


@pytest.mark.parametrize(
    ("threads", "limit"),
    [(None, "1"), (1, "100m"), (2, "2"), (2, "1500m"), (2, 2), (256, None), (None, None), (3, "2.5")],
)
def test_as_many_threads_as_the_cpu_limit_allows_are_accepted(threads: int | None, limit: Any) -> None:
    """A part of a CPU counts as one, as the server counts."""
    spec = {"runtime": {"threads": threads}, "resources": {"limits": {"cpu": limit} if limit else {}}}
    ModelDeploymentSpec.model_validate({"model": MODEL, **spec})


@pytest.mark.parametrize(("threads", "limit"), [(2, "1"), (2, "1000m"), (2, "500m"), (3, 2), (9, "8")])
def test_more_threads_than_the_cpu_limit_allows_are_refused(threads: int, limit: Any) -> None:
    """They would be throttled together; the message says what to do."""
    spec = {"runtime": {"threads": threads}, "resources": {"limits": {"cpu": limit}}}
    with pytest.raises(ValidationError, match=r"spec\.runtime\.threads is larger than spec\.resources\.limits\.cpu"):
        ModelDeploymentSpec.model_validate({"model": MODEL, **spec})


def test_a_queue_holds_a_batch_that_is_asked_for() -> None:
    """Without one, the server takes one that fits."""
    ModelDeploymentSpec.model_validate({"model": MODEL, "runtime": {"maxQueueTokens": 16}})
    ModelDeploymentSpec.model_validate({"model": MODEL, "runtime": {"maxQueueTokens": 64, "maxBatchTokens": 64}})
    with pytest.raises(ValidationError, match=r"maxQueueTokens is smaller than spec\.runtime\.maxBatchTokens"):
        ModelDeploymentSpec.model_validate({"model": MODEL, "runtime": {"maxQueueTokens": 63, "maxBatchTokens": 64}})


@pytest.mark.parametrize(
    "spec",
    [
        {"runtime": {"replyCache": {"size": "64Mi"}}, "resources": {"limits": {"memory": "1Gi"}}},
        {"runtime": {"limits": {"maxInputs": 1024, "maxCharacters": 1000, "maxBodyBytes": 33_554_432}}},
        {"requestMetadata": {"language": ["de", "en"], "channel": ["mail"]}},
        {"requestMetadata": {f"key{number}": ["a", "b", "c", "d", "e", "f"] for number in range(8)}},
        {"access": {"apiKeys": {"name": "spam-keys", "key": "keys"}, "corsOrigins": ["https://app.example", "*"]}},
        {"tracing": {"endpoint": "http://collector.monitoring:4318", "sampleRatio": 1}},
        {"feedback": {"url": "https://labels.example/in", "token": {"name": "labels", "key": "token"}}},
        {"model": {**MODEL, "fallback": {"name": "spam-large", "version": "1"}}},
        {"model": {**MODEL, "fallback": {"name": "spam", "version": "1"}}},
        {"model": {"name": "spam", "follow": {}, "fallback": {"name": "spam-large", "version": "1"}}},
    ],
)
def test_serving_options_are_accepted(spec: dict[str, Any]) -> None:
    """As the how-to shows them, and at their bounds."""
    ModelDeploymentSpec.model_validate({"model": MODEL, **spec})


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"runtime": {"replyCache": {"size": "1000"}}}, "between 1Mi and 1Ti"),
        ({"runtime": {"replyCache": {"size": "2Ti"}}}, "between 1Mi and 1Ti"),
        (
            {"runtime": {"replyCache": {"size": "1Gi"}}, "resources": {"limits": {"memory": "1024Mi"}}},
            "leaves nothing of spec.resources.limits.memory",
        ),
        ({"runtime": {"limits": {"maxInputs": 1025}}}, "1024"),
        ({"requestMetadata": {"Language": ["de"]}}, "small letters, digits and underscores"),
        ({"requestMetadata": {"language": ["de", "de"]}}, "twice under one key"),
        ({"requestMetadata": {"language": ["de,en"]}}, "pattern"),
        ({"requestMetadata": {"language": []}}, "at least 1"),
        ({"requestMetadata": {f"key{number}": ["a"] for number in range(9)}}, "at most 8"),
        (
            {"requestMetadata": {key: [str(number) for number in range(26)] for key in ("one", "two")}},
            "more than 50 values over all keys",
        ),
        ({"access": {"corsOrigins": ["app.example"]}}, "pattern"),
        ({"access": {"apiKeys": {"name": "Keys", "key": "keys"}}}, "pattern"),
        ({"tracing": {"endpoint": "collector:4318"}}, "pattern"),
        ({"tracing": {"endpoint": "http://collector:4318", "sampleRatio": 0}}, "greater than 0"),
        ({"feedback": {"url": "labels.example"}}, "pattern"),
        ({"model": {**MODEL, "fallback": MODEL}}, "the model itself"),
        ({"model": {"name": "spam", "follow": {}, "fallback": MODEL}}, "could become it by following"),
    ],
)
def test_serving_options_that_make_no_sense_are_refused(spec: dict[str, Any], said: str) -> None:
    """Before a pod finds out, in a sentence that says what to do."""
    with pytest.raises(ValidationError, match=said):
        ModelDeploymentSpec.model_validate({"model": MODEL, **spec})
