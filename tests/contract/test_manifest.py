"""The manifest as a file that servers of other releases read."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cloze_api.manifest import (
    ArtifactError,
    Limits,
    Lineage,
    Manifest,
    SpecialTokens,
    verify,
    version_tags,
    write_manifest,
)
from cloze_api.names import TAG_PRECISIONS
from cloze_api.precision import Measured, Precision, graph_file
from cloze_api.task import Task

#: Fields of the first release, whose server refuses all others.
FIRST = {
    "schema_version",
    "name",
    "task",
    "architecture",
    "labels",
    "limits",
    "special_tokens",
    "lowercase",
    "tokenizer_fingerprint",
    "inputs",
    "output",
    "evaluation",
    "lineage",
    "files",
}


def example(**more: Any) -> Manifest:
    """A manifest."""
    lineage = Lineage(job="a/b", job_uid="u", kind="PretrainJob", created="2026-01-01T00:00:00Z", trainer_version="1")
    return Manifest(
        name="spam",
        task=Task.SEQUENCE_CLASSIFICATION,
        architecture="bert",
        labels=["ham", "spam"],
        limits=Limits(max_length=128, vocab_size=100),
        special_tokens=SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4),
        lowercase=True,
        tokenizer_fingerprint="f",
        inputs=["input_ids"],
        output="logits",
        lineage=lineage,
        files={},
        **more,
    )


def test_an_older_server_reads_what_it_can_serve(tmp_path: Path) -> None:
    """Fields that came later are left out where they say nothing."""
    manifest = example()
    write_manifest(tmp_path, manifest)
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert set(written) == FIRST
    assert set(written["special_tokens"]) == {"pad", "unk", "cls", "sep", "mask"}
    assert Manifest.model_validate(written) == manifest


def test_precisions_are_told_where_there_are_some_besides_fp32(tmp_path: Path) -> None:
    """With what was measured of each; the registry's tags name all. fp32 is always there, so that nothing is of it."""
    measured = Measured(difference=0.02, metric="accuracy", fp32=0.96, value=0.958, examples=1000)
    manifest = example(precisions={Precision.INT8: measured})
    write_manifest(tmp_path, manifest)
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written["precisions"]["int8"]["value"] == 0.958
    assert Manifest.model_validate(written) == manifest
    assert version_tags(manifest)[TAG_PRECISIONS] == "fp32, int8"
    assert version_tags(example())[TAG_PRECISIONS] == "fp32"
    with pytest.raises(ValidationError, match="fp32"):
        Manifest.model_validate({**written, "precisions": {"fp32": measured.model_dump()}})


def test_each_precision_has_a_file_of_its_own() -> None:
    """fp32's is where it always was."""
    assert [graph_file(each) for each in Precision] == ["model.onnx", "model_int8.onnx", "model_fp16.onnx"]


def test_no_two_classes_have_one_name(tmp_path: Path) -> None:
    """Replies, gates and thresholds name labels: nobody could tell which of two is meant."""
    write_manifest(tmp_path, example())
    written = json.loads((tmp_path / "manifest.json").read_text())
    with pytest.raises(ValidationError, match="spam: named more than once"):
        Manifest.model_validate({**written, "labels": ["spam", "ham", "spam"]})
    (tmp_path / "manifest.json").write_text(json.dumps({**written, "labels": ["spam", "ham", "spam"]}))
    with pytest.raises(ArtifactError, match="wrong at labels") as refused:
        verify(tmp_path)
    assert refused.value.reason == "ManifestInvalid"
