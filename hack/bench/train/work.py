"""What both train on: the demo's corpus as our preparation leaves it, and the job that says how."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
BATCH = 32
MAX_LENGTH = 128
LEARNING_RATE = 5e-4
SEED = 1


@dataclass(frozen=True)
class Sizes:
    """Layers, width and vocabulary of the model; heads are 64 wide, the feed-forward blocks four times as wide."""

    layers: int
    width: int
    vocab: int

    @property
    def name(self) -> str:
        """As the command line has them."""
        return f"{self.layers}x{self.width}, vocabulary {self.vocab:,}"


def corpus() -> Path:
    """The demo's file, fetched when it is missing."""
    command = [sys.executable, str(ROOT / "hack" / "demo"), "data"]
    folder = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]
    return Path(folder) / "corpus.jsonl"


def job(
    sizes: Sizes, *, steps: int, warmup: int, threads: int, file: Path, batch: int = BATCH, max_length: int = MAX_LENGTH
) -> dict[str, Any]:
    """A PretrainJob. Its checkpoints are not what is measured here."""
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": "bench"},
        "spec": {
            "corpus": [{"uri": file.as_uri(), "format": "jsonl"}],
            "tokenizer": {"vocabSize": sizes.vocab},
            "model": {
                "layers": sizes.layers,
                "hiddenSize": sizes.width,
                "heads": sizes.width // 64,
                "intermediateSize": 4 * sizes.width,
                "maxLength": max_length,
            },
            "optimization": {
                "steps": steps,
                "batchSequences": batch,
                "learningRate": LEARNING_RATE,
                "warmupSteps": warmup,
                "seed": SEED,
            },
            "topology": {"threadsPerProcess": threads},
            "checkpoint": {"everySteps": 1_000_000},
            "registry": {"name": "bench"},
        },
    }


def write_documents(text_file: Path, spec: Any, sources: Any) -> None:
    """The training documents after cleaning, one JSON object a line: what the shards were made from."""
    import numpy as np  # noqa: PLC0415 - the command line does without

    from cloze_trainer.data import cleaning, splitting  # noqa: PLC0415
    from cloze_trainer.data.documents import documents  # noqa: PLC0415
    from cloze_trainer.data.lines import BrokenLines  # noqa: PLC0415
    from cloze_trainer.data.spool import Chosen, Spool  # noqa: PLC0415

    found = (
        text
        for corpus, source in zip(spec.corpus, sources, strict=True)
        for text in documents(corpus, source.paths, BrokenLines(0))
    )
    with Spool(text_file.parent) as spool, text_file.open("w", encoding="utf-8") as lines:
        cleaned = cleaning.clean(found, spec.cleaning, spool)
        chosen = splitting.split(cleaned.kept, cleaned.digests, spec.evaluation.held_out_fraction)
        train = splitting.part(spool, *chosen).train
        lines.writelines(json.dumps({"text": text}) + "\n" for text in Chosen(spool, np.flatnonzero(train)))
