"""How much of a figure depends on the seed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn
from tuning import Tuned

from cloze_api.evaluation import Gate
from cloze_api.task import Task
from cloze_trainer import seeds
from cloze_trainer.data.order import Order
from cloze_trainer.finetune import FineTuning
from cloze_trainer.model import build
from cloze_trainer.quality import gates, luck

BY_SEED = {3: {"accuracy": 0.9, "f1": 0.5}, 4: {"accuracy": 0.7, "f1": 0.5}, 5: {"accuracy": 0.8}}


def test_spread_is_over_all_seeds_or_isnt_told() -> None:
    """The sample's standard deviation, range and lowest; a figure that a seed doesn't have passes no gate."""
    found = luck.figures(BY_SEED, ["accuracy", "f1"])
    assert found == {
        "seed_3_accuracy": 0.9,
        "seed_4_accuracy": 0.7,
        "seed_5_accuracy": 0.8,
        "seed_3_f1": 0.5,
        "seed_4_f1": 0.5,
        "seed_deviation_accuracy": pytest.approx(0.1),
        "seed_range_accuracy": pytest.approx(0.2),
        "seed_least_accuracy": 0.7,
    }
    assert gates.bound(Gate(figure="seed_range_accuracy", maximum=0.21), found).passed
    assert not gates.bound(Gate(figure="seed_deviation_accuracy", maximum=0.09), found).passed
    assert not gates.bound(Gate(figure="seed_range_f1", maximum=1), found).passed


def test_what_has_a_gate_is_watched() -> None:
    """And the figure that stands for the task, which nobody has to ask for; every spread may have a gate."""
    asked = [Gate(figure="seed_least_f1", minimum=0), Gate(figure="recall", minimum=0)]
    assert luck.watched("accuracy", asked, ["recall", "log_loss", "f1", "accuracy"]) == ["accuracy", "f1", "recall"]
    spreads = {name for name in luck.figures(BY_SEED, ["accuracy"]) if not name[5].isdigit()}
    assert set(luck.figure_names(["accuracy"])) == spreads


class Alone(SimpleNamespace):
    """The only rank."""

    rank, world, leads = 0, 1, True

    def from_leader(self, value: Any = None) -> Any:
        return value

    def sum_array(self, values: Any) -> Any:
        return values


def test_each_further_seed_is_trained_once(tmp_path: Path) -> None:
    """From the seed after the job's own on, each in its own order from its own beginning; what an earlier attempt has
    finished isn't trained again, but for another job, and its checkpoints are gone.
    """
    rows = [{"text": text, "label": label} for text, label in [("yes indeed", "a"), ("not at all", "b")] * 4]
    tuned = Tuned(tmp_path, Task.SEQUENCE_CLASSIFICATION, rows, rows, evaluation={"seeds": 3}, optimization={"seed": 7})
    gang: Any = Alone()
    run: Any = SimpleNamespace(workspace=tmp_path, identity="uid")
    learnt: list[tuple[int, int]] = []

    def learn(workload: FineTuning, number: int) -> nn.Module:
        seed = workload.spec.optimization.seed
        learnt.append((seed, number))
        if len(learnt) == 2:
            raise KeyboardInterrupt
        seeds.checkpoints(run, seed).mkdir(parents=True, exist_ok=True)
        expected = Order(8, 32, seed, lengths=workload.train.lengths).step(0)[0]
        assert np.array_equal(np.concatenate([chunk.rows_B for chunk in workload.share(0, 0, 1, 0.0)]), expected)
        return build(workload.task, workload.config, 2)

    with pytest.raises(KeyboardInterrupt):
        seeds.further(run, tuned.workload, gang, learn)
    found = seeds.further(run, tuned.workload, gang, learn)
    assert learnt == [(8, 1), (9, 2), (9, 2)]
    assert list(found) == [8, 9]
    assert {"accuracy", "log_loss", "f1_a"} <= found[8].keys()
    assert seeds.further(run, tuned.workload, gang, learn) == found
    assert not list(tmp_path.glob("seeds/*/checkpoints"))
    run.identity = "another"
    seeds.further(run, tuned.workload, gang, learn)
    assert learnt[3:] == [(8, 1), (9, 2)]
    assert tuned.workload.spec.optimization.seed == 7
