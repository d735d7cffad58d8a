"""What is told of a base that has a head for the job's own task: it is left, and a new one is trained.

A number of a head means a class, and with other labels another one, so that none is taken over. Who fine-tunes a model
once more may expect it all the same.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cloze_api.task import LABEL_TASKS, Task
from cloze_trainer.base import BaseModel
from cloze_trainer.huggingface import CONFIG_FILE, HEADS

# Labels may be long, and outcomes are short.
_SHOWN: Final = 3


def find(base: BaseModel, task: Task, labels: Sequence[str]) -> dict[str, Any] | None:
    """Both heads' labels, and `told`, a sentence about them; None for a base without a head for the task.

    labels: of the job.
    """
    theirs = labels_of(base.folder, task)
    if theirs is None:
        return None
    if sorted(theirs) == sorted(labels):
        told = f"the head of {base.name} is left, and a new one{' for the same labels' if labels else ''} is trained"
    else:
        told = f"the head of {base.name} for {_named(theirs)} is left, and a new one for {_named(labels)} is trained"
    return {"told": told, "base": list(theirs), "trained": list(labels)}


def labels_of(folder: Path, task: Task) -> tuple[str, ...] | None:
    """Labels of the head for a task that a model's `config.json` describes, by class, none for a task without labels;
    None where there is no such head.
    """
    document = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    classes, named = document.get("architectures"), document.get("id2label")
    if task not in HEADS or not isinstance(classes, list):
        return None
    if not any(str(name).endswith(HEADS[task]) for name in classes):
        return None
    return tuple(map(str, named.values())) if task in LABEL_TASKS and isinstance(named, dict) else ()


def _named(labels: Sequence[str]) -> str:
    more = len(labels) - _SHOWN
    return f"{', '.join(labels[:_SHOWN]) or 'no labels'}{f' and {more} others' if more > 0 else ''}"
