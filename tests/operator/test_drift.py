"""Drift is what an apply would change, and nothing else."""

from typing import Any

import pytest

from cloze_api.quantity import quantity
from cloze_operator.decide.drift import has_drifted

WANTED: dict[str, Any] = {"spec": {"ports": [{"port": 80}], "cpu": "1000m", "empty": {}, "image": "a:1"}}


@pytest.mark.parametrize(
    ("live", "drifted"),
    [
        (None, True),
        ({"spec": {"ports": [{"port": 80, "protocol": "TCP"}], "cpu": "1", "image": "a:1", "more": 1}}, False),
        ({"spec": {"ports": [{"port": 81}], "cpu": "1", "image": "a:1"}}, True),
        ({"spec": {"ports": [{"port": 80}, {"port": 81}], "cpu": "1", "image": "a:1"}}, True),
        ({"spec": {"ports": [{"port": 80}], "cpu": "2", "image": "a:1"}}, True),
        ({"spec": {"ports": [{"port": 80}], "cpu": "1"}}, True),
    ],
)
def test_defaults_and_spellings_are_no_drift(live: Any, *, drifted: bool) -> None:
    """Fields that the API server adds, and quantities that it respells, are as wanted."""
    assert has_drifted(live, WANTED) == drifted


@pytest.mark.parametrize(
    ("one", "other"), [("1000m", "1"), ("10000", "10k"), ("1024Mi", "1Gi"), ("0.5", "500m"), ("1e3", None), (3, None)]
)
def test_quantities(one: object, other: object) -> None:
    """Quantities are compared by value; other things aren't quantities."""
    assert quantity(one) == quantity(other)
