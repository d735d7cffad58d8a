"""The power curve of canary analysis beside fixed thresholds, as a figure: hack/bench/canary_power.py FILE.svg

Each point is 1,000 simulated rollouts of up to 2,000 canary requests; see canary_rollouts.py. The baselines' thresholds
are those of a rollout tool that counts intervals above a fixed error ratio.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "cloze"

from canary_rollouts import KINDS, Scenario, crosses_threshold, rolled_back, rollout  # noqa: E402 - after the backend
from matplotlib import pyplot as plt  # noqa: E402

ROLLOUTS = 1000
RATIOS = (0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03)
JUDGES = {
    "sequential test": rolled_back,
    "fixed threshold 5 %, 3 intervals": crosses_threshold,
    "fixed threshold 2 %, 3 intervals": lambda intervals: crosses_threshold(intervals, limit=0.02),
}


def curve(kind: str) -> dict[str, list[float]]:
    """Share of rollouts that each judge rolls back, for each error ratio of the canary."""
    found: dict[str, list[float]] = {name: [] for name in JUDGES}
    for ratio in RATIOS:
        random = np.random.default_rng(11)
        scenario = Scenario(stable=0.001, canary=ratio, requests=2000, kind=kind)
        rollouts = [rollout(random, scenario) for _ in range(ROLLOUTS)]
        for name, judge in JUDGES.items():
            found[name].append(sum(map(judge, rollouts)) / ROLLOUTS)
        print(kind, f"{ratio:.3f}", *(f"{found[name][-1]:.3f}" for name in JUDGES), flush=True)
    return found


def main() -> None:
    """Simulate and draw."""
    figure, axes = plt.subplots(1, len(KINDS), figsize=(12, 3.6), sharey=True, layout="constrained")
    for ax, kind in zip(axes, KINDS, strict=True):
        for (name, shares), style in zip(curve(kind).items(), ("-o", "--s", ":^"), strict=True):
            ax.plot([100 * ratio for ratio in RATIOS], shares, style, label=name, markersize=4)
        ax.axvline(0.1, color="grey", linewidth=0.8)
        ax.set_title(f"{kind} errors")
        ax.set_xlabel("canary's error ratio, % (stable: 0.1 %)")
        ax.set_xscale("log")
        ax.set_xticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
        ax.minorticks_off()
    axes[0].set_ylabel("share rolled back")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(JUDGES), fontsize=9)
    figure.savefig(Path(sys.argv[1]), metadata={"Date": None})


if __name__ == "__main__":
    main()
