"""The same fine-tuning from further seeds, whose figures tell how much of a model's own is luck.

A seed decides the new head, the order of the examples and the dropout. The seeds after the job's own are trained from
one after another, once its own model is there, by the same ranks on the same examples: each gives what a job with that
seed would. Its figures are kept, and its model isn't.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from cloze_trainer.console import log
from cloze_trainer.files import write_json
from cloze_trainer.finetune import FineTuning
from cloze_trainer.gang import Gang
from cloze_trainer.run import Run

Figures = dict[str, float]
BySeed = dict[int, Figures]


def folder(run: Run, seed: int) -> Path:
    """Where a further seed's checkpoints and figures are."""
    return run.workspace / "seeds" / str(seed)


def further(run: Run, workload: FineTuning, gang: Gang, learn: Callable[[FineTuning, int], nn.Module]) -> BySeed:
    """The figures of each further seed that the spec asks for. All ranks call it.

    learn: trains a workload and returns its model; given which training of the run it is, counted from 0, of which the
    run's own was the first. Raises what it raises.
    """
    found: BySeed = {}
    first = workload.spec.optimization.seed
    for number in range(1, workload.spec.evaluation.seeds):
        seed = first + number
        mark = {"job": run.identity, "seed": seed, **asdict(workload.origin)}
        file = folder(run, seed) / "figures.json"
        kept = gang.from_leader(_read(file, mark) if gang.leads else None)
        if kept is None:
            other = workload.seeded(seed)
            kept = other.figures(other.score(learn(other, number), gang))
            if gang.leads:
                write_json(file, {**mark, "figures": kept})
                log("evaluated from another seed", seed=seed, **kept)
                # What is in a bucket stays: where the volume is the pod's own, it is all that a later pod has.
                shutil.rmtree(checkpoints(run, seed), ignore_errors=True)
        found[seed] = kept
    return found


def checkpoints(run: Run, seed: int) -> Path:
    """Where a further seed's checkpoints are staged, and stay unless a bucket has them."""
    return folder(run, seed) / "checkpoints"


def _read(file: Path, mark: dict[str, Any]) -> Figures | None:
    """What an earlier attempt has kept of the same training."""
    if not file.is_file():
        return None
    document = json.loads(file.read_text(encoding="utf-8"))
    return document.pop("figures") if document.items() >= mark.items() else None
