"""False alarms and power of the error test, over simulated rollouts with fixed seeds."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "hack" / "bench"))

from canary_rollouts import KINDS, Scenario, share_rolled_back

FAULTS = {
    "from 0.1 % to 1 % within 2,000": Scenario(stable=0.001, canary=0.01, requests=2000),
    "from 0.1 % to 2 % within 1,000": Scenario(stable=0.001, canary=0.02, requests=1000),
    "from 2 % to 4 % within 4,000": Scenario(stable=0.02, canary=0.04, requests=4000),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_canary_is_let_through(kind: str) -> None:
    """A sample of what the long suite does with 10,000 rollouts."""
    for ratio in (0.001, 0.02):
        assert share_rolled_back(Scenario(stable=ratio, canary=ratio, requests=2000, kind=kind), 100, seed=1) <= 0.02


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str) -> None:
    """Likewise a sample."""
    assert share_rolled_back(FAULTS[fault], 100, seed=2) >= 0.97


@pytest.mark.full
@pytest.mark.timeout(2400)
def test_of_10000_good_canaries_at_most_one_in_a_hundred_is_rolled_back() -> None:
    """Independent, bursty and clustered errors, rare and frequent: each kind keeps the bound by itself."""
    for kind in KINDS:
        for ratio in (0.001, 0.02):
            scenario = Scenario(stable=ratio, canary=ratio, requests=4000, kind=kind)
            assert share_rolled_back(scenario, 1667, seed=3) <= 0.01, (kind, ratio)


@pytest.mark.full
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("fault", FAULTS)
def test_99_of_100_faults_are_found(fault: str) -> None:
    assert share_rolled_back(FAULTS[fault], 5000, seed=4) >= 0.99
