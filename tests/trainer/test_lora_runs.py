"""A whole run of everything that chooses among weights: small matrices, the best step, further seeds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from whole_runs import HAM, SPAM, Trainer, finetune

from cloze_api.manifest import verify
from cloze_api.progress import ExitCode
from cloze_api.task import Task

pytestmark = pytest.mark.timeout(300)


def test_small_matrices_of_the_best_step_are_merged_for_each_seed(tmp_path: Path, tiny: Any) -> None:
    """What is published is the first seed's best step as transformers loads it, with the figures that it has; a gate on
    how far the seeds differ refuses it.
    """
    tiny.save(tmp_path / "model", "bert", Task.FILL_MASK)
    job = finetune(
        tmp_path,
        base={"uri": f"file://{tmp_path}/model"},
        optimization={
            "epochs": 4,
            "batchSequences": 4,
            "learningRate": 2e-2,
            "lora": {"rank": 2, "alpha": 4},
            "earlyStopping": {"figure": "log_loss", "patience": 2},
        },
        evaluation={"seeds": 2, "calibrate": False, "gates": [{"figure": "seed_deviation_log_loss", "maximum": 1e-9}]},
    )
    # The other way round, so that what is learnt makes it worse and the first step is the best.
    other = {"spam": "ham", "ham": "spam"}
    rows = [{"text": f"{text} {number}", "label": other[label]} for number in range(3) for text, label in SPAM + HAM]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job["spec"]["dataset"]["validation"] = f"file://{tmp_path}/validation.jsonl"
    trainer = Trainer(tmp_path / "run", {})
    assert trainer.run(job) == ExitCode.GATE_FAILED, trainer.log
    assert "seed_deviation_log_loss is " in trainer.outcome["message"]
    found = verify(trainer.artifact).evaluation
    losses = [found["seed_0_log_loss"], found["seed_1_log_loss"]]
    assert found["log_loss"] == losses[0] != losses[1]
    assert (found["best_step"], found["last_step"]) == (8, 24)
    assert found["seed_deviation_log_loss"] == pytest.approx(np.std(losses, ddof=1))
    model = AutoModelForSequenceClassification.from_pretrained(trainer.artifact).eval()
    tokenizer = AutoTokenizer.from_pretrained(trainer.artifact)

    def log_loss(rows: list[tuple[str, str]]) -> float:
        truth_B = torch.tensor([model.config.label2id[label] for _, label in rows])
        with torch.no_grad():
            logits_BC = model(**tokenizer([text for text, _ in rows], return_tensors="pt", padding=True)).logits
        return float(torch.nn.functional.cross_entropy(logits_BC, truth_B))

    assert log_loss(SPAM + HAM) == pytest.approx(losses[0], abs=1e-4)
    kept = [(row["text"], row["label"]) for row in rows]
    assert log_loss(kept) == pytest.approx(found["validation_log_loss"], abs=1e-4)
