"""Small pretraining jobs, opened in this process."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloze_api.pretrain import PretrainJobSpec
from cloze_trainer.run import Run, open_run


def run_of(folder: Path, texts: Sequence[str], **spec: Any) -> tuple[Run, PretrainJobSpec]:
    """A job on the texts, with its workspace in the folder. spec: what differs."""
    (folder / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    job = {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": "small"},
        "spec": {
            "corpus": [{"uri": f"file://{folder}/text.txt"}],
            "optimization": {"batchSequences": 2},
            "evaluation": {"heldOutFraction": 0.3},
            "registry": {"name": "small"},
            **spec,
        },
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    run = open_run(folder / "job.json")
    assert isinstance(run.job.spec, PretrainJobSpec)
    workspace = folder / "workspace"
    workspace.mkdir(exist_ok=True)
    return Run(run.job, "uid", workspace, folder, None), run.job.spec
