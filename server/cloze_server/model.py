"""A model that is verified and loaded, and how it gets there."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from cloze_api.manifest import TOKENIZER_FILE, Calibration, Embedding, Manifest, SpecialTokens
from cloze_api.precision import Precision, graph_file, named
from cloze_api.task import Problem, Task
from cloze_api.vocabulary import misfit
from cloze_server.backend import Backend, OnnxBackend, OutOfMemoryError
from cloze_server.exits import ExitCode, FatalError
from cloze_server.faults import Faults
from cloze_server.logs import fields
from cloze_server.openvino import OpenVinoBackend
from cloze_server.providers import ANYWHERE, BY_OPENVINO, Placement, Provider
from cloze_server.tokenization import Frame, build_tokenizer, frame_of

_log = logging.getLogger(__name__)

LOCAL_VERSION = "local"
"""The version reported for an artifact that no registry has numbered."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What serving needs to know about a model, and what runs it.

    max_length: longest sequence in tokens, special tokens included. tokenizer: the text of `tokenizer.json`. frame: the
    special tokens that it puts around texts. problem: of sequence classification. embedding: what an embedding model
    gives; None for any other. calibration: how a classifier's probabilities are read. precision: of the graph. faults:
    what an echo model does wrong on purpose; None for any other. provider: where it runs.
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
    frame: Frame
    vocabulary: dict[str, int] = field(repr=False)
    backend: Backend = field(repr=False)
    problem: Problem = Problem.SINGLE_LABEL
    embedding: Embedding | None = None
    calibration: Calibration = field(default_factory=Calibration)
    precision: Precision = Precision.FP32
    faults: Faults | None = None
    provider: Provider = Provider.CPU


def identity(model: LoadedModel) -> str:
    """`name/version`, as a request may name a model."""
    return f"{model.name}/{model.version}"


def load_artifact(
    folder: Path,
    manifest: Manifest,
    *,
    version: str,
    digest: str,
    name: str,
    threads: int,
    precision: Precision = Precision.FP32,
    placement: Placement = ANYWHERE,
) -> LoadedModel:
    """Load a verified artifact.

    Raises FatalError: ARTIFACT_INVALID when it can't be run, CONFIGURATION when it hasn't the precision or can't run
    here.
    """
    started = time.monotonic()
    check_manifest(manifest)
    check_precision(precision, manifest)
    graph = folder / graph_file(precision)
    if not graph.is_file():
        raise _invalid("FileMissing", f"the artifact has no {graph.name}")
    serialized = (folder / TOKENIZER_FILE).read_text(encoding="utf-8")
    try:
        tokenizer = build_tokenizer(serialized)
        frame = frame_of(tokenizer)
    except ValueError as error:
        raise _invalid("TokenizerInvalid", str(error)) from error
    check_vocabulary(tokenizer, manifest)
    if manifest.task is Task.QUESTION_ANSWERING and frame.between is None:
        raise _invalid("TokenizerInvalid", "the tokenizer frames a pair of texts with other tokens than a text")
    backend = _backend(graph, manifest, threads, placement)
    check_graph(backend, manifest)
    _log.info(
        "model loaded",
        extra=fields(
            seconds=round(time.monotonic() - started, 3),
            architecture=manifest.architecture,
            precision=precision.value,
            provider=backend.provider,
        ),
    )
    return LoadedModel(
        name=name,
        version=version,
        digest=digest,
        task=manifest.task,
        architecture=manifest.architecture,
        labels=manifest.labels,
        max_length=manifest.limits.max_length,
        special_tokens=manifest.special_tokens,
        tokenizer=serialized,
        frame=frame,
        vocabulary=tokenizer.get_vocab(),
        backend=backend,
        problem=manifest.problem,
        embedding=manifest.embedding,
        calibration=manifest.calibration or Calibration(),
        precision=precision,
        provider=backend.provider,
    )


def _backend(graph: Path, manifest: Manifest, threads: int, placement: Placement) -> OnnxBackend | OpenVinoBackend:
    """What runs a graph where it is asked to. Raises FatalError."""
    inputs, output = manifest.inputs, manifest.output
    if placement.asked in BY_OPENVINO:
        provider = Provider(placement.asked)
        return OpenVinoBackend(graph, inputs=inputs, output=output, threads=threads, provider=provider)
    return OnnxBackend(graph, inputs=inputs, output=output, threads=threads, placement=placement)


def check_precision(precision: Precision, manifest: Manifest) -> None:
    """Whether the artifact has a graph in this precision. Raises FatalError (CONFIGURATION)."""
    if precision is not Precision.FP32 and precision not in manifest.precisions:
        message = (
            f"the artifact of {manifest.name} has the precisions {named(manifest.precisions)}, not {precision}: serve "
            "one that it has, or make an artifact with this one (cloze-train import --precision, or a FineTuneJob's "
            "spec.export.precisions)"
        )
        raise FatalError(ExitCode.CONFIGURATION, "PrecisionMissing", message)


def check_manifest(manifest: Manifest) -> None:
    """Whether the manifest says what its task needs. Raises FatalError (ARTIFACT_INVALID)."""
    if manifest.task in (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION) and not manifest.labels:
        raise _invalid("LabelsMissing", f"the manifest of a {manifest.task} has no labels")
    # As replies name them: labels, and entities without the prefix.
    known = {*manifest.labels, *(label[2:] for label in manifest.labels if label[1:2] == "-")}
    thresholds = manifest.calibration.thresholds if manifest.calibration else {}
    if isinstance(thresholds, dict) and (strange := sorted(thresholds.keys() - known)):
        raise _invalid("CalibrationInvalid", f"the manifest has a threshold for {strange[0]!r}, which is no label")
    if manifest.task is Task.FILL_MASK and manifest.special_tokens.mask is None:
        raise _invalid("SpecialTokensInvalid", "the manifest of a fill-mask model has no mask token")
    if manifest.task is Task.EMBEDDING and manifest.embedding is None:
        raise _invalid("EmbeddingMissing", "the manifest of an embedding model doesn't say what it gives")


def check_vocabulary(tokenizer: Tokenizer, manifest: Manifest) -> None:
    """Whether the manifest speaks of this tokenizer. Raises FatalError (ARTIFACT_INVALID)."""
    if found := misfit(tokenizer, manifest.special_tokens, manifest.limits.vocab_size):
        raise _invalid(found.reason, f"the tokenizer {found.told}")


def check_graph(backend: Backend, manifest: Manifest) -> None:
    """Run the shortest and the longest sequence, with every special token and the highest id that may come.

    Raises FatalError: ARTIFACT_INVALID when a run fails or its output has another shape than the manifest says,
    CONFIGURATION when there is not enough memory.
    """
    special, limits = manifest.special_tokens, manifest.limits
    ids = [*special.model_dump(exclude_none=True).values(), limits.vocab_size - 1]
    for length in sorted({min(len(ids) + 1, limits.max_length), limits.max_length}):
        ids_BL = np.full((1, length), special.sep, np.int64)  # noqa: N806 - B batch, L length
        ids_BL[0, : len(ids)] = ids[:length]
        ones_BL = np.ones_like(ids_BL)  # noqa: N806
        expected = output_shape(manifest, length)
        try:
            segments_BL = ones_BL if manifest.task is Task.QUESTION_ANSWERING else None  # noqa: N806
            shape = backend.infer(ids_BL, ones_BL, segments_BL).shape
        except OutOfMemoryError as error:
            raise memory_too_small(length) from error
        except Exception as error:  # the runtime's exceptions share no base class
            raise _invalid("GraphInvalid", f"the graph fails on a sequence of {length} tokens: {error}") from error
        if shape != expected:
            message = f"the graph's output has the shape {shape} for {length} tokens, expected {expected}"
            raise _invalid("GraphInvalid", message)


def output_shape(manifest: Manifest, length: int) -> tuple[int, ...]:
    """Shape of the graph's output for one sequence."""
    match manifest.task:
        case Task.SEQUENCE_CLASSIFICATION:
            return (1, len(manifest.labels))
        case Task.TOKEN_CLASSIFICATION:
            return (1, length, len(manifest.labels))
        case Task.QUESTION_ANSWERING:
            return (1, length, 2)
        case Task.EMBEDDING:
            assert manifest.embedding is not None
            return (1, manifest.embedding.dimensions)
        case _:
            return (1, length, manifest.limits.vocab_size)


def memory_too_small(length: int) -> FatalError:
    """The error that there is not enough memory for one sequence of so many tokens."""
    message = (
        f"there is not enough memory for a sequence of {length} tokens, which the model takes: give the pod or the GPU "
        "more (spec.resources.limits.memory, --device-memory-bytes), or fewer models to the process"
    )
    return FatalError(ExitCode.CONFIGURATION, "MemoryTooSmall", message)


def _invalid(reason: str, message: str) -> FatalError:
    return FatalError(ExitCode.ARTIFACT_INVALID, reason, message)


Loader = Callable[[], LoadedModel]
"""Gets a model ready; runs in a thread of its own. Raises FatalError."""
