"""A model that is verified, loaded and warmed, and how it gets there."""

import logging
import string
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from cloze_api.manifest import ONNX_FILE, TOKENIZER_FILE, Manifest, SpecialTokens
from cloze_api.task import Task
from cloze_server.backend import Backend, DummyBackend, OnnxBackend
from cloze_server.exits import ExitCode, FatalError
from cloze_server.logs import fields

_log = logging.getLogger(__name__)

LOCAL_VERSION = "local"
"""The version reported for an artifact that no registry has numbered."""

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WARM_UP_LENGTHS = (8, 32, 128, 512)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What serving needs to know about a model, and what runs it.

    max_length: longest sequence in tokens, special tokens included. tokenizer: the text of `tokenizer.json`.
    """

    name: str
    version: str
    digest: str
    task: Task
    architecture: str
    labels: list[str]
    max_length: int
    special_tokens: SpecialTokens
    tokenizer: str = field(repr=False)
    vocabulary: dict[str, int] = field(repr=False)
    backend: Backend = field(repr=False)


def load_artifact(
    folder: Path, manifest: Manifest, *, version: str, digest: str, name: str, threads: int
) -> LoadedModel:
    """Load a verified artifact and warm it up. Raises FatalError (ARTIFACT_INVALID) when it can't be run."""
    started = time.monotonic()
    if manifest.task is not Task.FILL_MASK and not manifest.labels:
        raise FatalError(ExitCode.ARTIFACT_INVALID, "LabelsMissing", f"the manifest of a {manifest.task} has no labels")
    serialized = (folder / TOKENIZER_FILE).read_text(encoding="utf-8")
    backend = OnnxBackend(folder / ONNX_FILE, inputs=manifest.inputs, output=manifest.output, threads=threads)
    model = LoadedModel(
        name=name,
        version=version,
        digest=digest,
        task=manifest.task,
        architecture=manifest.architecture,
        labels=manifest.labels,
        max_length=manifest.limits.max_length,
        special_tokens=manifest.special_tokens,
        tokenizer=serialized,
        vocabulary=Tokenizer.from_str(serialized).get_vocab(),
        backend=backend,
    )
    loaded = time.monotonic()
    warm_up(model, classes=len(manifest.labels) or manifest.limits.vocab_size)
    _log.info(
        "model loaded",
        extra=fields(
            load_seconds=round(loaded - started, 3),
            warm_up_seconds=round(time.monotonic() - loaded, 3),
            architecture=manifest.architecture,
        ),
    )
    return model


def warm_up(model: LoadedModel, *, classes: int) -> None:
    """Run a few lengths, so that the first requests don't pay for memory; also proves the graph's output shape.

    Raises FatalError (ARTIFACT_INVALID) when a run fails or has another shape.
    """
    special = model.special_tokens
    lengths = {min(length, model.max_length) for length in (*_WARM_UP_LENGTHS, model.max_length)}
    for length in sorted(lengths):
        ids_BL = np.full((1, length), special.unk, np.int64)  # noqa: N806 - B batch, L length
        ids_BL[0, 0] = special.cls
        ids_BL[0, -1] = special.sep
        expected = (1, classes) if model.task is Task.SEQUENCE_CLASSIFICATION else (1, length, classes)
        try:
            shape = model.backend.infer(ids_BL, np.ones_like(ids_BL)).shape
        except Exception as error:  # the runtime's exceptions share no base class
            message = f"the graph fails on a sequence of {length} tokens: {error}"
            raise FatalError(ExitCode.ARTIFACT_INVALID, "GraphInvalid", message) from error
        if shape != expected:
            message = f"the graph's output has the shape {shape} for {length} tokens, expected {expected}"
            raise FatalError(ExitCode.ARTIFACT_INVALID, "GraphInvalid", message)


def dummy_model(task: Task, seconds: float = 0.0) -> LoadedModel:
    """A model without weights: spells words in letters, answers with a hash. `seconds` is the time of a batch."""
    pieces = [*_SPECIAL, *string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces += [f"##{character}" for character in string.ascii_lowercase + string.digits]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens(list(_SPECIAL))
    special = SpecialTokens(**{name.strip("[]").lower(): vocabulary[name] for name in _SPECIAL})
    tokenizer.post_processor = BertProcessing(("[SEP]", special.sep), ("[CLS]", special.cls))
    labels = {
        Task.FILL_MASK: [],
        Task.SEQUENCE_CLASSIFICATION: [f"label-{index}" for index in range(8)],
        Task.TOKEN_CLASSIFICATION: ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    }[task]
    return LoadedModel(
        name="dummy",
        version=LOCAL_VERSION,
        digest="sha256:" + "0" * 64,
        task=task,
        architecture="dummy",
        labels=labels,
        max_length=128,
        special_tokens=special,
        tokenizer=tokenizer.to_str(),
        vocabulary=vocabulary,
        backend=DummyBackend(
            classes=len(labels) or len(vocabulary),
            per_token=task is not Task.SEQUENCE_CLASSIFICATION,
            seconds=seconds,
        ),
    )


Loader = Callable[[], LoadedModel]
"""Gets a model ready; runs in a thread of its own. Raises FatalError."""
