"""Small jobs, opened in this process."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cloze_api.finetune import FineTuneJobSpec
from cloze_api.pretrain import PretrainJobSpec
from cloze_trainer.run import Run, open_run

_NUMBERS = itertools.count()


def run_of(folder: Path, texts: Sequence[str], **spec: Any) -> tuple[Run, PretrainJobSpec]:
    """A pretraining on the texts, with its workspace in the folder. spec: what differs."""
    (folder / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    given = {
        "corpus": [{"uri": f"file://{folder}/text.txt"}],
        "optimization": {"batchSequences": 2},
        "evaluation": {"heldOutFraction": 0.3},
        "registry": {"name": "small"},
    }
    run = _opened(folder, "PretrainJob", given | spec)
    assert isinstance(run.job.spec, PretrainJobSpec)
    return run, run.job.spec


def finetune_of(folder: Path, examples: Mapping[str, Sequence[Any]], **spec: Any) -> tuple[Run, FineTuneJobSpec]:
    """A fine-tuning of the model in `folder/model`. examples: of `train`, `test` and, if need be, `validation`."""
    for name, rows in examples.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = {
        "base": {"uri": f"file://{folder}/model"},
        "task": "sequence-classification",
        "dataset": {name: f"file://{folder}/{name}.jsonl" for name in examples},
        "optimization": {"batchSequences": 2},
        "registry": {"name": "small"},
    }
    run = _opened(folder, "FineTuneJob", given | spec)
    assert isinstance(run.job.spec, FineTuneJobSpec)
    return run, run.job.spec


def _opened(folder: Path, kind: str, spec: dict[str, Any]) -> Run:
    """Each is a run of its own, which remembers nothing of those before it in the same workspace."""
    job = {"apiVersion": "cloze.dev/v1alpha1", "kind": kind, "metadata": {"name": "small"}, "spec": spec}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    workspace = folder / "workspace"
    workspace.mkdir(exist_ok=True)
    return Run(open_run(folder / "job.json").job, f"uid-{next(_NUMBERS)}", workspace, folder, None)
