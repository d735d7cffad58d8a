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
