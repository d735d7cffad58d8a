"""The artifact: a folder with `manifest.json`, the only thing that trainer, registry, server and monitor share.

The digest of an artifact is the SHA-256 of the bytes of its `manifest.json`, which in turn holds the SHA-256 of every
other file. Verifying the one verifies all.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cloze_api.task import Task

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION = 1

TOKENIZER_FILE = "tokenizer.json"
ONNX_FILE = "model.onnx"
WEIGHTS_FILE = "model.safetensors"

_CHUNK = 1 << 20


class ArtifactError(Exception):
    """The folder is not the artifact it claims to be. `reason` is CamelCase and fits a condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Part):
    """Bounds of an input."""

    max_length: Annotated[int, Field(ge=1)]
    """Longest sequence in tokens, special tokens included."""
    vocab_size: Annotated[int, Field(ge=1)]


class SpecialTokens(_Part):
    """Ids that the server needs, as in the tokenizer."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


class Lineage(_Part):
    """Where the artifact comes from."""

    job: str
    """`namespace/name` of the resource, or the file's name outside Kubernetes."""
    job_uid: str
    kind: str
    base: str | None = None
    """`name/version` of the base model."""
    base_digest: str | None = None
    data: dict[str, str] = {}
    """SHA-256 of each data source, keyed by its URI."""
    created: str
    """RFC 3339, UTC."""
    trainer_version: str


class Manifest(_Part):
    """`manifest.json`. Unknown fields are refused: a newer schema has a higher `schema_version`."""

    schema_version: int = SCHEMA_VERSION
    name: str
    task: Task
    architecture: str
    labels: list[str] = []
    """Label names by class id; empty for fill-mask."""
    limits: Limits
    special_tokens: SpecialTokens
    lowercase: bool
    tokenizer_fingerprint: str
    """SHA-256 of the canonical form of `tokenizer.json`: see `tokenizer_fingerprint`."""
    inputs: list[str]
    """Names of the ONNX graph's inputs, each int64 of shape (batch, length)."""
    output: str
    """Name of the ONNX graph's output: logits, (batch, length, classes) or (batch, classes)."""
    evaluation: dict[str, float] = {}
    lineage: Lineage
    files: dict[str, str]
    """SHA-256 (hex) of each file, keyed by its path relative to the folder; the manifest itself is not among them."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Mapping[str, Any]) -> str:
    """SHA-256 over a tokenizer's canonical JSON: vocabulary, normaliser, pre-tokenizer, special tokens.

    Truncation and padding are left out: the server sets its own, and they don't change which ids a text gets.
    """
    parts = {key: value for key, value in tokenizer.items() if key not in ("truncation", "padding")}
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Write `manifest.json` and return the artifact's digest, `sha256:<hex>`."""
    data = (json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    (folder / MANIFEST_FILE).write_bytes(data)
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below the folder but the manifest, keyed by relative path."""
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST_FILE
    }


def verify(folder: Path, expected_digest: str | None = None) -> Manifest:
    """Check an artifact and return its manifest.

    Raises ArtifactError with reason ManifestMissing, ManifestInvalid, SchemaVersionUnknown, DigestMismatch,
    FileMissing, FileUnlisted, FileCorrupt or TokenizerMismatch.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ArtifactError("ManifestMissing", f"{folder} has no {MANIFEST_FILE}: it isn't a Cloze artifact")
    data = path.read_bytes()
    actual = "sha256:" + hashlib.sha256(data).hexdigest()
    if expected_digest is not None and actual != expected_digest:
        raise ArtifactError("DigestMismatch", f"the artifact's digest is {actual}, expected {expected_digest}")
    try:
        document = json.loads(data)
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                "SchemaVersionUnknown",
                f"{MANIFEST_FILE} has schema version {version}, this program reads {SCHEMA_VERSION}: upgrade it",
            )
        manifest = Manifest.model_validate(document)
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise ArtifactError("ManifestInvalid", f"{MANIFEST_FILE} can't be read: {error}") from error
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST_FILE}
    for name, expected in manifest.files.items():
        if name not in present:
            raise ArtifactError("FileMissing", f"{name} is listed in {MANIFEST_FILE} but missing")
        if file_sha256(folder / name) != expected:
            raise ArtifactError("FileCorrupt", f"{name} doesn't have the SHA-256 listed in {MANIFEST_FILE}")
    if unlisted := sorted(present - manifest.files.keys()):
        raise ArtifactError("FileUnlisted", f"{unlisted[0]} isn't listed in {MANIFEST_FILE}")
    tokenizer = json.loads((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
    if tokenizer_fingerprint(tokenizer) != manifest.tokenizer_fingerprint:
        raise ArtifactError("TokenizerMismatch", f"{TOKENIZER_FILE} doesn't have the fingerprint in {MANIFEST_FILE}")
    return manifest
