"""A pretraining whose rows hold several texts, and what is learnt from a part of it."""

from pathlib import Path

import torch
from small_runs import run_of
from torch import Tensor

from cloze_api.pretrain import Architecture
from cloze_trainer.encoders.config import LOCAL_REACH
from cloze_trainer.model import TaskModel
from cloze_trainer.pretrain import Pretraining, prepare
from cloze_trainer.progress import ProgressFile
from cloze_trainer.workload import Chunk

LENGTH = 2 * LOCAL_REACH + 32


def workload_of(folder: Path, architecture: Architecture, device: str = "cpu") -> Pretraining:
    """Texts of which some are longer than local layers reach, and rows that hold several."""
    words = [f"word{number}" for number in range(160)]
    documents = [" ".join(words[number % 40 :][: 3 + 17 * (number % 8)]) for number in range(24)]
    run, spec = run_of(
        folder,
        [f"{text} {number}" for number, text in enumerate(documents)],
        tokenizer={"vocabSize": 200},
        model={"maxLength": LENGTH, "architecture": architecture, "dropout": 0, "layers": 4},
        evaluation={"heldOutFraction": 0.3},
    )
    return Pretraining(spec, prepare(run, spec, ProgressFile(None)), torch.device(device))


def learnt(workload: Pretraining, model: TaskModel, chunk: Chunk) -> tuple[Tensor, Tensor]:
    """Logits of what is predicted, and the gradient."""
    model.zero_grad()
    workload.loss_sum(model, chunk).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        logits = model(*chunk.inputs)
    return logits, torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
