"""What both fine-tune, on what, and for how long: mails told from spam, and words of Brown by part of speech."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import CACHE
from workload import data

LEARNING_RATE = 1e-4
BATCH = 16


@dataclass(frozen=True)
class Task:
    """A task. files: begin of the demo's files' names. figure: by which both are judged. length: of texts, in tokens.
    examples: to train on; 0 for all.
    """

    name: str
    kind: str
    files: str
    figure: str
    length: int
    examples: int


TASKS = {
    "spam": Task("spam", "sequence-classification", "spam", "f1", 128, 0),
    "pos": Task("pos", "token-classification", "pos", "accuracy", 64, 10_000),
}


def files(task: Task, examples: int | None, tests: int) -> tuple[Path, Path]:
    """Training and test examples; as many of each, from all over their file (0: all)."""
    folder = CACHE / "tasks"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for part, most in (("train", task.examples if examples is None else examples), ("test", tests)):
        lines = data(f"{task.files}-{part}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        kept = lines[:: max(1, len(lines) // most)][:most] if most else lines
        path = folder / f"{task.files}-{part}-{len(kept)}.jsonl"
        path.write_text("".join(kept), encoding="utf-8")
        found.append(path)
    return found[0], found[1]


def job(
    task: Task,
    base: Path,
    train: Path,
    test: Path,
    *,
    epochs: int,
    seed: int,
    threads: int,
    batch: int = BATCH,
    rate: float = LEARNING_RATE,
    lora: int = 0,
    **spec: Any,
) -> dict[str, Any]:
    """A FineTuneJob. base: an encoder in Hugging Face's format. lora: rank of small matrices (0: all weights)."""
    steps = epochs * -(-sum(1 for _ in train.open(encoding="utf-8")) // batch)
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": f"bench-{task.name}"},
        "spec": {
            "base": {"uri": base.as_uri()},
            "task": task.kind,
            "dataset": {"train": train.as_uri(), "test": test.as_uri()},
            "maxLength": task.length,
            "optimization": {
                "epochs": epochs,
                "batchSequences": batch,
                "learningRate": rate,
                "warmupSteps": steps // 10,
                "seed": seed,
                # As the peer's optimizer has them.
                "beta2": 0.999,
                "epsilon": 1e-8,
                **({"lora": {"rank": lora}} if lora else {}),
            },
            "export": {"precisions": ["int8"], "maxAccuracyLoss": 1},
            "topology": {"threadsPerProcess": threads},
            "checkpoint": {"everySteps": 1_000_000},
            "registry": {"name": f"bench-{task.name}"},
            **spec,
        },
    }


def true_labels(task: Task, test: Path) -> list[list[str]]:
    """The labels of each test example."""
    rows = [json.loads(line) for line in test.open(encoding="utf-8")]
    return [row["labels"] if task.kind == "token-classification" else [row["label"]] for row in rows]
