"""The base model in the workspace: verified, and fetched once more when it's damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloze_api.card import Card
from cloze_api.finetune import FineTuneJobSpec
from cloze_api.manifest import (
    Limits,
    Lineage,
    Manifest,
    SpecialTokens,
    digest_files,
    tokenizer_fingerprint,
    write_manifest,
)
from cloze_api.progress import ExitCode
from cloze_api.task import Task
from cloze_trainer.base import fetch, open_base, open_encoder, open_tokenizer
from cloze_trainer.data import tokenizer
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.distillation.teacher import open_teacher
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.errors import BaseModelError
from cloze_trainer.run import Run, open_run

TOKENIZER = tokenizer.train(["a base model"], vocab_size=40, lowercase=True)
SIZE = tokenizer.size(TOKENIZER)
CONFIG = EncoderConfig(
    vocab_size=SIZE, layers=1, hidden_size=4, heads=1, intermediate_size=4, max_length=16, dropout=0.0
)


def artifact(
    folder: Path,
    *,
    text: str = TOKENIZER.to_str(),
    special: SpecialTokens = SPECIAL_IDS,
    limit: int = SIZE,
    max_length: int = 16,
) -> str:
    """Something with an artifact's files; returns its digest. text: of the tokenizer. limit: of the vocabulary."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(text)
    (folder / "model.safetensors").write_text("weights")
    (folder / "config.json").write_text(json.dumps(CONFIG.transformers(Task.FILL_MASK)))
    return write_manifest(
        folder,
        Manifest(
            name="small",
            task=Task.FILL_MASK,
            architecture="BertForMaskedLM",
            limits=Limits(max_length=max_length, vocab_size=limit),
            special_tokens=special,
            lowercase=True,
            tokenizer_fingerprint=tokenizer_fingerprint(json.loads(text)),
            inputs=["input_ids"],
            output="logits",
            card=Card(license="mit"),
            lineage=Lineage(job="x", job_uid="x", kind="PretrainJob", created="x", trainer_version="x"),
            files=digest_files(folder),
        ),
    )


def run_of(folder: Path) -> tuple[Run, FineTuneJobSpec]:
    job = {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "filter"},
        "spec": {
            "base": {"model": {"name": "small", "version": "1"}},
            "task": "sequence-classification",
            "dataset": {"train": "file:///a", "test": "file:///b"},
            "registry": {"name": "filter"},
        },
    }
    (folder / "job.json").write_text(json.dumps(job))
    run = open_run(folder / "job.json")
    assert isinstance(run.job.spec, FineTuneJobSpec)
    return Run(run.job, run.identity, folder / "workspace", folder, "http://127.0.0.1:1"), run.job.spec


def test_damaged_base_is_fetched_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that broke in the workspace costs a download; one that comes broken from the registry ends the run."""
    digest = artifact(tmp_path / "registry")
    fetched = []

    def download(uri: str, name: str, version: str, folder: Path) -> None:
        fetched.append(version)
        shutil.copytree(tmp_path / "registry", folder)

    monkeypatch.setattr("cloze_trainer.registry.download", download)
    run, spec = run_of(tmp_path)
    base = fetch(run, spec.base.model, open_base)
    assert (base.digest, base.license, fetched) == (digest, "mit", ["1"])
    fetch(run, spec.base.model, open_base)
    assert fetched == ["1"]
    (base.folder / "model.safetensors").write_text("rubbish")
    assert fetch(run, spec.base.model, open_base).digest == digest
    assert fetched == ["1", "1"]
    for folder in (base.folder, tmp_path / "registry"):
        (folder / "model.safetensors").write_text("rubbish")
    with pytest.raises(BaseModelError) as refusal:
        fetch(run, spec.base.model, open_base)
    assert refusal.value.reason == "BaseFileCorrupt"


def test_artifact_without_its_tokenizer_is_no_base(tmp_path: Path) -> None:
    """A manifest that doesn't list what it describes is the base's fault, not ours."""
    artifact(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").unlink()
    document = json.loads((tmp_path / "base" / "manifest.json").read_text())
    del document["files"]["tokenizer.json"]
    (tmp_path / "base" / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BaseModelError) as refusal:
        open_base(tmp_path / "base", "small/1", None)
    assert refusal.value.exit_code == ExitCode.BASE_MISMATCH


@pytest.mark.parametrize("opening", [open_base, open_encoder, open_tokenizer, open_teacher])
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"special": SPECIAL_IDS.model_copy(update={"cls": 3, "sep": 2})}, "empty text"),
        ({"special": SPECIAL_IDS.model_copy(update={"pad": SIZE - 1})}, "no special token with the pad id"),
        ({"special": SPECIAL_IDS.model_copy(update={"pad": SIZE + 1})}, "no special token with the pad id"),
        ({"special": SPECIAL_IDS.model_copy(update={"unk": 0})}, "unknown token"),
        ({"special": SPECIAL_IDS.model_copy(update={"mask": 3})}, "one token as sep and mask"),
        ({"limit": SIZE - 1}, f"ids up to {SIZE - 1}"),
        ({"text": "{}"}, "can't be read"),
    ],
)
def test_a_base_whose_tokenizer_is_another_is_refused(
    tmp_path: Path, opening: Callable[[Path, str, str | None], Any], given: dict[str, Any], told: str
) -> None:
    """As a server refuses it, before anything is trained, and for good: special ids of other tokens, ids beyond the
    vocabulary. So are tokenizers that are used alone, and teachers.
    """
    artifact(tmp_path / "good")
    opening(tmp_path / "good", "small/1", None)
    artifact(tmp_path / "base", **given)
    with pytest.raises(BaseModelError, match=told) as refusal:
        opening(tmp_path / "base", "small/1", None)
    assert (refusal.value.reason, refusal.value.exit_code) == ("BaseTokenizerUnsuitable", ExitCode.BASE_MISMATCH)


@pytest.mark.parametrize("opening", [open_base, open_encoder])
@pytest.mark.parametrize(("max_length", "limit"), [(17, SIZE), (16, SIZE + 1)])
def test_a_base_whose_limits_are_not_its_encoders_is_refused(
    tmp_path: Path, opening: Callable[[Path, str, str | None], Any], max_length: int, limit: int
) -> None:
    """A longer text, or another number of tokens, by the manifest than by the configuration; a shorter text is fine."""
    artifact(tmp_path / "odd", max_length=max_length, limit=limit)
    with pytest.raises(BaseModelError, match=f"{max_length} tokens of {limit} by .* and 16 of {SIZE} by") as refusal:
        opening(tmp_path / "odd", "small/1", None)
    assert (refusal.value.reason, refusal.value.exit_code) == ("BaseLimitsMismatch", ExitCode.BASE_MISMATCH)
    artifact(tmp_path / "shorter", max_length=8)
    assert opening(tmp_path / "shorter", "small/1", None).config.max_length == 16
