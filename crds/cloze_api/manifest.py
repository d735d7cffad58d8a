"""The artifact: a folder with `manifest.json`, the only thing that trainer, registry, server and monitor share.

The digest of an artifact is the SHA-256 of the bytes of its `manifest.json`, which in turn holds the SHA-256 of every
other file. Verifying the one verifies all. A signature of the manifest lies beside it, listed nowhere: it may be added,
or be made anew with another key, without making another artifact.
"""

import hashlib
import json
import math
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cloze_api.card import Card
from cloze_api.names import TAG_LABELS, TAG_PRECISIONS, TAG_SCHEMA, TAG_TASK, TAG_TOKENIZER
from cloze_api.precision import Measured, Precision, graph_file, named
from cloze_api.schema import ModelName, distinct
from cloze_api.task import Problem, Task

MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "model.sig"
SCHEMA_VERSION = 1
IMPORT_KIND = "Import"
"""`Lineage.kind` of what was imported rather than trained."""

TOKENIZER_FILE = "tokenizer.json"
ONNX_FILE = graph_file(Precision.FP32)
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
    unk: int | None = None
    """None for a tokenizer that has a token for everything."""
    cls: int
    sep: int
    mask: int | None = None
    """None for a model that fills no masks."""

    @property
    def alike(self) -> list[str]:
        """Roles whose id another one has, too: a padding that is a separator, say, can't be told from one."""
        named = self.model_dump(exclude_none=True)
        counts = Counter(named.values())
        return [role for role, number in named.items() if counts[number] > 1]


class Embedding(_Part):
    """What an embedding model gives; pooling and normalisation are in its graph."""

    dimensions: Annotated[int, Field(ge=1)]
    pooling: Literal["mean", "cls"]
    """Mean over the tokens, or the first token."""
    normalized: bool
    """Whether vectors have length 1."""
    matryoshka: list[Annotated[int, Field(ge=1)]] = []
    """Numbers of leading dimensions that the model was trained to be cut to."""


_Share = Annotated[float, Field(ge=0, le=1)]


class Calibration(_Part):
    """How the probabilities of a classifier are read (Guo et al., arXiv:1706.04599)."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Logits are divided by it before softmax."""
    thresholds: _Share | dict[str, _Share] = {}
    """A label with a lower probability is answered as abstained: one bound for all labels, or for those named here as
    replies name them. 1 says that no prediction is sure enough."""

    def threshold(self, label: str, default: float = 0.0) -> float:
        """The bound of a label; `default` without one. Infinite instead of 1, which probabilities are rounded to."""
        bound = self.thresholds.get(label, default) if isinstance(self.thresholds, dict) else self.thresholds
        return bound if bound < 1 else math.inf


class Lineage(_Part):
    """Where the artifact comes from."""

    job: str
    """`namespace/name` of the resource, or the file's name outside Kubernetes; what was imported, as it was named."""
    job_uid: str
    kind: str
    base: str | None = None
    """`name/version` of the base model."""
    base_digest: str | None = None
    teacher: str | None = Field(default=None, exclude_if=lambda teacher: teacher is None)
    """`name/version` of the model that it was distilled from; left out without one, as `Manifest.embedding`."""
    teacher_digest: str | None = Field(default=None, exclude_if=lambda digest: digest is None)
    data: dict[str, str] = {}
    """SHA-256 of each data source, keyed by its URI: of the file's content, or, of a folder or a pattern, over its
    files, each of which is also there by its own URI. Of an import, of the folder's files by their names."""
    created: str
    """RFC 3339, UTC."""
    trainer_version: str


def _inside(path: str) -> str:
    if not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("a file's path leads out of the folder")
    return path


class Manifest(_Part):
    """`manifest.json`. Unknown fields are refused: a newer schema has a higher `schema_version`."""

    schema_version: int = SCHEMA_VERSION
    name: ModelName
    task: Task
    architecture: str
    labels: Annotated[list[str], AfterValidator(distinct)] = []
    """Label names by class id, each once; empty for tasks without classes."""
    problem: Problem = Field(default=Problem.SINGLE_LABEL, exclude_if=lambda problem: problem is Problem.SINGLE_LABEL)
    """What sequence classification answers; left out where that is one label, as `embedding`."""
    embedding: Embedding | None = Field(default=None, exclude_if=lambda embedding: embedding is None)
    """For the task embedding alone, and left out for others: an older server refuses fields that it doesn't know."""
    calibration: Calibration | None = Field(default=None, exclude_if=lambda calibration: calibration is None)
    """For classifiers of texts and of words that have one; left out for others, as `embedding`."""
    limits: Limits
    special_tokens: SpecialTokens
    lowercase: bool
    tokenizer_fingerprint: str
    """SHA-256 of the canonical form of `tokenizer.json`: see `tokenizer_fingerprint`. Empty for an echo model."""
    inputs: list[str]
    """Names of the ONNX graph's inputs, each int64 of shape (batch, length)."""
    output: str
    """Name of the ONNX graph's output: logits, (batch, length, classes) or (batch, classes); for question answering
    (batch, length, 2), of the answer's start and end; for an embedding (batch, dimensions)."""
    precisions: dict[Literal[Precision.INT8, Precision.FP16], Measured] = Field(
        default={}, exclude_if=lambda precisions: not precisions
    )
    """What the artifact's graph is in besides fp32; left out where there is none, as `embedding`."""
    evaluation: dict[str, float] = {}
    card: Card | None = Field(default=None, exclude_if=lambda card: card is None)
    """What people state of it; left out where nobody does, as `embedding`."""
    lineage: Lineage
    files: dict[Annotated[str, AfterValidator(_inside)], str]
    """SHA-256 (hex) of each file, keyed by its path relative to the folder; neither the manifest nor its signature is
    among them."""


def file_sha256(path: Path, heard: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a file's bytes, as hex. heard: told of the bytes of each part of it that is read."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            if heard is not None:
                heard(len(chunk))
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Mapping[str, Any]) -> str:
    """SHA-256 over a tokenizer's canonical JSON: vocabulary, normaliser, pre-tokenizer, special tokens.

    Truncation and padding are left out: the server sets its own, and they don't change which ids a text gets. How long
    an input may be is among the manifest's limits, which the server tries on the graph, and the trainer holds to a
    base's `config.json`.
    """
    parts = {key: value for key, value in tokenizer.items() if key not in ("truncation", "padding")}
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def version_tags(manifest: Manifest) -> dict[str, str]:
    """What a registered version tells of its artifact before anything is loaded: enough to see whether it fits another.

    A label schema is told by its digest, since the order of labels is part of it.
    """
    labels = json.dumps(manifest.labels, ensure_ascii=False) if manifest.labels else ""
    return {
        TAG_TASK: manifest.task.value,
        TAG_SCHEMA: str(manifest.schema_version),
        TAG_TOKENIZER: manifest.tokenizer_fingerprint,
        TAG_LABELS: hashlib.sha256(labels.encode()).hexdigest() if labels else "",
        TAG_PRECISIONS: named(manifest.precisions),
    }


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Write `manifest.json` and return the artifact's digest, `sha256:<hex>`."""
    data = (json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    (folder / MANIFEST_FILE).write_bytes(data)
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but manifest and signature, keyed by its path in the folder. Raises ArtifactError."""
    return {name: file_sha256(folder / name) for name in _files(folder)}


def _files(folder: Path) -> list[str]:
    """Relative paths of all files but the manifest and its signature.

    Raises ArtifactError for what is neither a file nor a folder: a link may lead to what nobody has verified, or be
    changed after it was.
    """
    names = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            names.append(name)
        elif not stat.S_ISDIR(mode):
            raise ArtifactError("FileNotRegular", f"{name} is a link or a special file: put the file itself there")
    return [name for name in names if name not in (MANIFEST_FILE, SIGNATURE_FILE)]


def verify(folder: Path, expected_digest: str | None = None) -> Manifest:
    """Check an artifact and return its manifest. Raises ArtifactError: see `verify_with_digest`."""
    return verify_with_digest(folder, expected_digest)[0]


def verify_with_digest(folder: Path, expected_digest: str | None = None) -> tuple[Manifest, str]:
    """Check an artifact; its manifest and digest.

    Raises ArtifactError with reason ManifestMissing, ManifestInvalid, SchemaVersionUnknown, DigestMismatch,
    FileNotRegular, FileMissing, FileUnlisted, FileCorrupt, TokenizerInvalid or TokenizerMismatch.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ArtifactError("ManifestMissing", f"{folder} has no {MANIFEST_FILE}: it isn't a Cloze artifact")
    data = path.read_bytes()
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    if expected_digest is not None and digest != expected_digest:
        raise ArtifactError("DigestMismatch", f"the artifact's digest is {digest}, expected {expected_digest}")
    manifest = _read_manifest(data)
    present = set(_files(folder))
    for name, expected in manifest.files.items():
        if name not in present:
            raise ArtifactError("FileMissing", f"{name} is listed in {MANIFEST_FILE} but missing")
        if file_sha256(folder / name) != expected:
            raise ArtifactError("FileCorrupt", f"{name} doesn't have the SHA-256 listed in {MANIFEST_FILE}")
    if unlisted := sorted(present - manifest.files.keys()):
        raise ArtifactError("FileUnlisted", f"{unlisted[0]} isn't listed in {MANIFEST_FILE}")
    if manifest.task is not Task.ECHO:
        _verify_tokenizer(folder, manifest)
    return manifest, digest


def _verify_tokenizer(folder: Path, manifest: Manifest) -> None:
    if TOKENIZER_FILE not in manifest.files:
        raise ArtifactError("FileMissing", f"the artifact has no {TOKENIZER_FILE}")
    try:
        tokenizer = _json_object((folder / TOKENIZER_FILE).read_bytes())
    except ValueError as error:
        raise ArtifactError("TokenizerInvalid", f"{TOKENIZER_FILE} can't be read: {error}") from error
    if tokenizer_fingerprint(tokenizer) != manifest.tokenizer_fingerprint:
        raise ArtifactError("TokenizerMismatch", f"{TOKENIZER_FILE} doesn't have the fingerprint in {MANIFEST_FILE}")


def _read_manifest(data: bytes) -> Manifest:
    try:
        document = _json_object(data)
    except ValueError as error:
        raise ArtifactError("ManifestInvalid", f"{MANIFEST_FILE} can't be read: {error}") from error
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            "SchemaVersionUnknown",
            f"{MANIFEST_FILE} has schema version {version}, this program reads {SCHEMA_VERSION}: upgrade it",
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError("ManifestInvalid", f"{MANIFEST_FILE} is wrong at {where}: {first['msg']}") from error


def _json_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object in UTF-8. Raises ValueError."""
    try:
        document = json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("it isn't a JSON object")  # noqa: TRY004 - wrong content, as any other
    return document
