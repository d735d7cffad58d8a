"""False alarms and power of canary analysis as a table: hack/bench/canary_table.py (a quarter of an hour).

The rows of the error test alone are those of `tests/operator/test_canary_simulation.py`, with its seeds and rollouts.
"""

from collections.abc import Iterator

from canary_evidence import Fault, World, share_failed
from canary_rollouts import KINDS, Scenario, share_rolled_back

POWER = ((0.001, 0.01, 2000), (0.001, 0.02, 1000), (0.02, 0.04, 4000))
ALL = "all four checks with default settings, no difference"


def rows() -> Iterator[tuple[str, float]]:
    """What is simulated, and the share rolled back."""
    for kind in KINDS:
        for ratio in (0.001, 0.02):
            scenario = Scenario(stable=ratio, canary=ratio, requests=4000, kind=kind)
            what = f"no difference, {kind} errors, {ratio:.1%}, 4,000 canary requests, 1,667 rollouts"
            yield what, share_rolled_back(scenario, 1667, seed=3)
    for stable, canary, requests in POWER:
        scenario = Scenario(stable=stable, canary=canary, requests=requests)
        what = f"{100 * stable:g} % → {100 * canary:g} % within {requests:,} canary requests, 5,000 rollouts"
        yield what, share_rolled_back(scenario, 5000, seed=4)
    for kind in KINDS:
        yield (
            f"{ALL}, {kind} errors, 2,000 canary requests, 1,000 rollouts",
            share_failed(World(kind=kind), Fault(), 1000, seed=7),
        )
    for spread, times in ((0.4, "twice"), (0.7, "3.2 times")):
        what = f"p95 up by 30 % within 2,000 canary requests, p95 {times} the median within a class of length"
        yield f"{what}, 500 rollouts", share_failed(World(spread=spread), Fault(slower=1.3), 500, 8, "latency")
    for what, fault, check in (
        ("unknown tokens from 1 % to 3 %", Fault(unknown=0.03), "unknown-tokens"),
        ("seven of ten entities lost", Fault(lost=0.7), "predictions"),
    ):
        yield f"{what}, in texts with shares of their own, 500 rollouts", share_failed(World(), fault, 500, 6, check)


if __name__ == "__main__":
    print("| simulated, fixed seeds | share rolled back |\n| --- | --- |")
    for what, share in rows():
        print(f"| {what} | {share:.2%} |", flush=True)
