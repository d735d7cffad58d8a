"""Every reason for which an artifact is refused, on artifacts that were broken in one place."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.processors import BertProcessing

from cloze_api.manifest import (
    MANIFEST_FILE,
    ONNX_FILE,
    TOKENIZER_FILE,
    ArtifactError,
    Calibration,
    Limits,
    Lineage,
    Manifest,
    digest_files,
    tokenizer_fingerprint,
    verify,
    verify_with_digest,
    write_manifest,
)
from cloze_api.task import Task
from cloze_server.dummy import dummy_model
from cloze_server.exits import ExitCode, FatalError
from cloze_server.model import LoadedModel, load_artifact

MAX_LENGTH = 12
LABELS = ["O", "B-PER", "I-PER"]
DUMMY = dummy_model(Task.TOKEN_CLASSIFICATION)
SIZE = len(DUMMY.vocabulary)

Change = Callable[[Path], None]


def write_graph(path: Path, *, classes: int, tokens: int, positions: int, output: str, inputs: tuple[str, ...]) -> None:
    """A graph that adds a row for each token to a row for each position; it knows so many of either."""
    rows = np.random.default_rng(0).normal(size=(tokens + positions, classes)).astype(np.float32)
    nodes = [
        helper.make_node("CumSum", ["attention_mask", "axis"], ["counted"]),
        helper.make_node("Sub", ["counted", "one"], ["position_ids"]),
        helper.make_node("Gather", ["tokens", "input_ids"], ["token_rows"]),
        helper.make_node("Gather", ["positions", "position_ids"], ["position_rows"]),
        helper.make_node("Add", ["token_rows", "position_rows"], [output]),
    ]
    constants = {
        "tokens": rows[:tokens],
        "positions": rows[tokens:],
        "axis": np.array(1, np.int64),
        "one": np.array(1, np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "rows",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", "length", classes])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)


def graph(
    *,
    classes: int = len(LABELS),
    tokens: int = SIZE,
    positions: int = MAX_LENGTH,
    output: str = "logits",
    inputs: tuple[str, ...] = ("input_ids", "attention_mask"),
) -> Change:
    """Another graph."""
    return lambda folder: write_graph(
        folder / ONNX_FILE, classes=classes, tokens=tokens, positions=positions, output=output, inputs=inputs
    )


def write(name: str, content: bytes) -> Change:
    """Another file."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def tokenizer(**parts: Any) -> Change:
    """Other parts of the tokenizer's document."""

    def change(folder: Path) -> None:
        document = json.loads((folder / TOKENIZER_FILE).read_text())
        (folder / TOKENIZER_FILE).write_text(json.dumps(document | parts))

    return change


def framed_the_other_way(folder: Path) -> None:
    """[SEP] … [CLS]."""
    special = DUMMY.special_tokens
    changed = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    changed.post_processor = BertProcessing(("[CLS]", special.cls), ("[SEP]", special.sep))
    changed.save(str(folder / TOKENIZER_FILE))


def artifact(folder: Path, change: Change = lambda _: None, **fields: Any) -> Path:
    """A sound artifact but for one change of its files, and for these fields of the manifest."""
    folder.mkdir()
    (folder / TOKENIZER_FILE).write_text(DUMMY.tokenizer)
    graph()(folder)
    change(folder)
    manifest = Manifest(
        name="tags",
        task=Task.TOKEN_CLASSIFICATION,
        architecture="rows",
        labels=LABELS,
        limits=Limits(max_length=MAX_LENGTH, vocab_size=SIZE),
        special_tokens=DUMMY.special_tokens,
        lowercase=True,
        tokenizer_fingerprint="",
        inputs=["input_ids", "attention_mask"],
        output="logits",
        lineage=Lineage(job="test", job_uid="", kind="test", created="2025-01-01T00:00:00Z", trainer_version="0"),
        files=digest_files(folder),
    )
    try:
        document = json.loads((folder / TOKENIZER_FILE).read_bytes())
        manifest = manifest.model_copy(update={"tokenizer_fingerprint": tokenizer_fingerprint(document)})
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    write_manifest(folder, manifest.model_copy(update=fields))
    return folder


def load(folder: Path) -> LoadedModel:
    """As the server does it."""
    manifest, digest = verify_with_digest(folder)
    return load_artifact(folder, manifest, version="1", digest=digest, name=manifest.name, threads=1)


def test_the_sound_artifact_is_accepted(tmp_path: Path) -> None:
    """Else the refusals below would prove nothing."""
    folder = artifact(tmp_path / "sound")
    manifest, digest = verify_with_digest(folder)
    assert verify(folder, digest) == manifest
    model = load(folder)
    assert (model.name, model.digest, model.labels, model.max_length) == ("tags", digest, LABELS, MAX_LENGTH)


def manifest_document(**parts: Any) -> Change:
    """Rewrite the manifest after it was written."""

    def change(folder: Path) -> None:
        document = json.loads((folder / MANIFEST_FILE).read_text())
        (folder / MANIFEST_FILE).write_text(json.dumps(document | parts))

    return change


@pytest.mark.parametrize(
    ("afterwards", "reason", "said"),
    [
        (lambda folder: (folder / MANIFEST_FILE).unlink(), "ManifestMissing", MANIFEST_FILE),
        (write(MANIFEST_FILE, b"{"), "ManifestInvalid", "can't be read"),
        (write(MANIFEST_FILE, b"\xff"), "ManifestInvalid", "can't be read"),
        (write(MANIFEST_FILE, b"[]"), "ManifestInvalid", "object"),
        (write(MANIFEST_FILE, b"[" * 100_000), "ManifestInvalid", "deeply"),
        (manifest_document(schema_version=2), "SchemaVersionUnknown", "upgrade"),
        (manifest_document(surprise=1), "ManifestInvalid", "surprise"),
        (manifest_document(name="a/b"), "ManifestInvalid", "name"),
        (manifest_document(name="x\r\nset-cookie: y"), "ManifestInvalid", "name"),
        (manifest_document(name=""), "ManifestInvalid", "name"),
        (manifest_document(files={"../escape": "0" * 64}), "ManifestInvalid", "leads out"),
        (manifest_document(files={"/etc/passwd": "0" * 64}), "ManifestInvalid", "leads out"),
        (manifest_document(task="poetry"), "ManifestInvalid", "task"),
        (manifest_document(tokenizer_fingerprint="0" * 64), "TokenizerMismatch", "fingerprint"),
        (lambda folder: (folder / ONNX_FILE).unlink(), "FileMissing", ONNX_FILE),
        (write(ONNX_FILE, b"other"), "FileCorrupt", ONNX_FILE),
        (write("more.txt", b"x"), "FileUnlisted", "more.txt"),
        (lambda folder: (folder / "link").symlink_to(folder / ONNX_FILE), "FileNotRegular", "link"),
        (lambda folder: (folder / "folder").symlink_to("/etc"), "FileNotRegular", "folder"),
        (lambda folder: os.mkfifo(folder / "pipe"), "FileNotRegular", "pipe"),
    ],
)
def test_what_was_changed_afterwards_is_refused(tmp_path: Path, afterwards: Change, reason: str, said: str) -> None:
    """By verifying, before anything of it is used."""
    folder = artifact(tmp_path / "changed")
    afterwards(folder)
    with pytest.raises(ArtifactError, match=said) as error:
        verify(folder)
    assert error.value.reason == reason


def test_a_listed_file_behind_a_link_is_refused(tmp_path: Path) -> None:
    """Though its bytes are right: they could be others a moment later."""
    folder = artifact(tmp_path / "linked")
    (folder / ONNX_FILE).rename(tmp_path / "elsewhere")
    (folder / ONNX_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError) as error:
        verify(folder)
    assert error.value.reason == "FileNotRegular"
    with pytest.raises(ArtifactError):
        digest_files(folder)


def test_another_digest_is_refused(tmp_path: Path) -> None:
    """Both are in the message."""
    folder = artifact(tmp_path / "other")
    with pytest.raises(ArtifactError, match=f"{verify_with_digest(folder)[1]}.*{'a' * 64}") as error:
        verify(folder, "sha256:" + "a" * 64)
    assert error.value.reason == "DigestMismatch"


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        (lambda folder: (folder / TOKENIZER_FILE).unlink(), "FileMissing", TOKENIZER_FILE),
        (write(TOKENIZER_FILE, b"{"), "TokenizerInvalid", "can't be read"),
        (write(TOKENIZER_FILE, b"[]"), "TokenizerInvalid", "object"),
        (write(TOKENIZER_FILE, b"[" * 100_000), "TokenizerInvalid", "deeply"),
    ],
)
def test_a_tokenizer_that_is_none_is_refused_by_verifying(
    tmp_path: Path, change: Change, reason: str, said: str
) -> None:
    """Also when the manifest lists it just so."""
    with pytest.raises(ArtifactError, match=said) as error:
        verify(artifact(tmp_path / "odd", change))
    assert error.value.reason == reason


SPECIAL = DUMMY.special_tokens


@pytest.mark.parametrize(
    ("change", "fields", "reason", "said"),
    [
        (None, {"labels": []}, "LabelsMissing", "labels"),
        (None, {"labels": ["O", "B-PER"]}, "GraphInvalid", "shape"),
        (None, {"calibration": Calibration(thresholds={"B-PRE": 0.5})}, "CalibrationInvalid", "B-PRE"),
        (lambda folder: (folder / ONNX_FILE).unlink(), {}, "FileMissing", ONNX_FILE),
        (write(ONNX_FILE, b"no graph"), {}, "GraphInvalid", "can't be run"),
        (graph(output="scores"), {}, "GraphInvalid", "no output 'logits'"),
        (None, {"inputs": ["input_ids"]}, "GraphInvalid", "inputs"),
        (None, {"task": Task.SEQUENCE_CLASSIFICATION}, "GraphInvalid", "shape"),
        (graph(positions=MAX_LENGTH - 1), {}, "GraphInvalid", f"{MAX_LENGTH} tokens"),
        (graph(tokens=SIZE - 1), {}, "GraphInvalid", "fails"),
        (None, {"limits": Limits(max_length=MAX_LENGTH, vocab_size=SIZE + 1)}, "GraphInvalid", "fails"),
        (None, {"limits": Limits(max_length=MAX_LENGTH, vocab_size=SIZE - 1)}, "VocabularyInvalid", "limit"),
        (tokenizer(model={"type": "Poetry"}), {}, "TokenizerInvalid", "not a tokenizer"),
        (framed_the_other_way, {}, "TokenizerInvalid", "empty text"),
        *(
            (None, {"special_tokens": SPECIAL.model_copy(update={role: wrong})}, "SpecialTokensInvalid", role)
            for role in ("pad", "unk", "cls", "sep", "mask")
            for wrong in (-1, SIZE + 5, DUMMY.vocabulary["a"])
        ),
        (None, {"special_tokens": SPECIAL.model_copy(update={"unk": SPECIAL.pad})}, "SpecialTokensInvalid", "unknown"),
        (None, {"special_tokens": SPECIAL.model_copy(update={"mask": SPECIAL.pad})}, "SpecialTokensInvalid", "one id"),
        (None, {"special_tokens": SPECIAL.model_copy(update={"cls": SPECIAL.sep})}, "TokenizerInvalid", "empty text"),
    ],
)
def test_what_cannot_be_run_is_refused_by_loading(
    tmp_path: Path, change: Change | None, fields: dict[str, Any], reason: str, said: str
) -> None:
    """An artifact that is what it claims, and yet of no use; final, with a reason for the operator."""
    folder = artifact(tmp_path / "useless", change or (lambda _: None), **fields)
    with pytest.raises(FatalError, match=said) as error:
        load(folder)
    assert (error.value.code, error.value.reason) == (ExitCode.ARTIFACT_INVALID, reason)
