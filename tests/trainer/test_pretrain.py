"""What is told before the first step, not after the last."""

import json
from pathlib import Path

import pytest

from cloze_api.pretrain import PretrainJobSpec
from cloze_trainer.errors import InputError
from cloze_trainer.pretrain import prepare
from cloze_trainer.progress import ProgressFile
from cloze_trainer.run import Run, open_run


def prepared(folder: Path, held_out: float) -> None:
    texts = [f"word{number} and" for number in range(120)]
    (folder / "text.txt").write_text("\n\n".join(texts))
    job = {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": "small"},
        "spec": {
            "corpus": [{"uri": f"file://{folder}/text.txt"}],
            "tokenizer": {"vocabSize": 200},
            "model": {"maxLength": 16},
            "optimization": {"batchSequences": 2},
            "evaluation": {"heldOutFraction": held_out},
            "registry": {"name": "small"},
        },
    }
    (folder / "job.json").write_text(json.dumps(job))
    run = open_run(folder / "job.json")
    assert isinstance(run.job.spec, PretrainJobSpec)
    prepare(Run(run.job, run.identity, folder, folder, None), run.job.spec, ProgressFile(None))


def test_held_out_text_without_a_masked_token_is_refused_before_the_training(tmp_path: Path) -> None:
    """The evaluation's masks are known from the start: hours of training don't end in nothing to measure."""
    with pytest.raises(InputError, match="heldOutFraction") as refusal:
        prepared(tmp_path, 0.001)
    assert refusal.value.reason == "HeldOutTooSmall"
    prepared(tmp_path, 0.3)
