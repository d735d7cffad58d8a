"""False alarms and power of canary analysis, over simulated rollouts with fixed seeds."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "hack" / "bench"))

from canary_evidence import Fault, World, share_failed
from canary_rollouts import KINDS, Scenario, share_rolled_back

FAULTS = {
    "from 0.1 % to 1 % within 2,000": Scenario(stable=0.001, canary=0.01, requests=2000),
    "from 0.1 % to 2 % within 1,000": Scenario(stable=0.001, canary=0.02, requests=1000),
    "from 2 % to 4 % within 4,000": Scenario(stable=0.02, canary=0.04, requests=4000),
}

#: What is wrong, and the check that has to find it.
OTHER_FAULTS = {
    "p95 up by 30 %": (Fault(slower=1.3), "latency"),
    "unknown tokens from 1 % to 3 %": (Fault(unknown=0.03), "unknown-tokens"),
    "seven of ten entities lost": (Fault(lost=0.7), "predictions"),
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


@pytest.mark.parametrize("kind", KINDS)
def test_all_checks_together_let_a_good_canary_through(kind: str) -> None:
    """With the settings of a ModelDeployment that says nothing about them."""
    assert share_failed(World(kind=kind), Fault(), 40, seed=5) <= 0.03


@pytest.mark.parametrize("fault", OTHER_FAULTS)
def test_a_fault_is_found_by_its_check(fault: str) -> None:
    assert share_failed(World(), OTHER_FAULTS[fault][0], 20, seed=6, check=OTHER_FAULTS[fault][1]) >= 0.95


@pytest.mark.full
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("kind", KINDS)
def test_all_checks_together_keep_the_bound(kind: str) -> None:
    """More than 10,000 rollouts over the three kinds of errors."""
    assert share_failed(World(kind=kind), Fault(), 3340, seed=7) <= 0.01


@pytest.mark.full
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("spread", [0.4, 0.7])
def test_95_of_100_canaries_with_a_p95_up_by_30_percent_are_found(spread: float) -> None:
    """Within 2,000 canary requests, also where the p95 is three times the median."""
    assert share_failed(World(spread=spread), Fault(slower=1.3), 2000, seed=8, check="latency") >= 0.95


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
