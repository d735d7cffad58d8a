"""The manifest as a file that servers of other releases read."""

import json
from pathlib import Path

from cloze_api.manifest import Limits, Lineage, Manifest, SpecialTokens, write_manifest
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


def test_an_older_server_reads_what_it_can_serve(tmp_path: Path) -> None:
    """Fields that came later are left out where they say nothing."""
    lineage = Lineage(job="a/b", job_uid="u", kind="PretrainJob", created="2026-01-01T00:00:00Z", trainer_version="1")
    manifest = Manifest(
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
    )
    write_manifest(tmp_path, manifest)
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert set(written) == FIRST
    assert set(written["special_tokens"]) == {"pad", "unk", "cls", "sep", "mask"}
    assert Manifest.model_validate(written) == manifest
