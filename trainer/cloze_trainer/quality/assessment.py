"""An artifact on labelled examples, as it would be served: its tokenizer and one of its graphs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from cloze_api.finetune import Truncation
from cloze_api.manifest import Manifest, SpecialTokens
from cloze_api.precision import Precision, graph_file
from cloze_api.profile import Profile
from cloze_api.task import Problem, Task
from cloze_trainer import tasks
from cloze_trainer.data import tokenizer
from cloze_trainer.data.examples import Row
from cloze_trainer.data.labelled import IGNORED, Labelled
from cloze_trainer.errors import InputError
from cloze_trainer.export import INPUTS
from cloze_trainer.quality import profile
from cloze_trainer.tasks import scoring
from cloze_trainer.tasks.kind import AnyKind, Line, Outputs, Reader, Said, Scored
from cloze_trainer.tasks.rows import Batch, Rows

_BATCH_TOKENS = 4096


def kind_of(manifest: Manifest) -> AnyKind:
    """The task of an artifact. Raises InputError for one that examples aren't labelled for."""
    kind = tasks.find(manifest.task, manifest.problem)
    if kind is None:
        message = f"{manifest.name} is for {manifest.task}: models that are fine-tuned for a task are judged so"
        raise InputError("TaskUnsuitable", message)
    return kind


def refuse_other(manifest: Manifest, kind: AnyKind, labels: Sequence[str]) -> None:
    """Raise InputError for an artifact that can't be compared with a model of this kind and these labels."""
    if (manifest.task, manifest.problem) != (kind.task, kind.problem):
        raise InputError(
            "TaskDiffers",
            f"{manifest.name} is for {manifest.task} ({manifest.problem}), not for {kind.task} ({kind.problem}): only "
            "models for the same task can be compared",
        )
    if _named(kind) and sorted(manifest.labels) != sorted(labels):
        raise InputError(
            "LabelsDiffer",
            f"{manifest.name} has the labels {', '.join(sorted(manifest.labels))}, not {', '.join(sorted(labels))}: "
            "only models with the same labels can be compared",
        )


def _named(kind: AnyKind) -> bool:
    """Whether labels are known by their names: a number has one output, and what it is called says nothing."""
    return kind.problem is not Problem.REGRESSION


def assess(
    folder: Path,
    manifest: Manifest,
    examples: Sequence[Line],
    labels: Sequence[str],
    truncation: Truncation = Truncation.RIGHT,
    *,
    precision: Precision = Precision.FP32,
) -> Scored:
    """The model's answers to the examples, with its classes in the order of `labels`, which `refuse_other` lets pass.

    truncation: of texts that are too long, in sequence classification. precision: of the graph, one that there is.

    Raises InputError when it isn't a model of such a task.
    """
    kind = kind_of(manifest)
    whole = truncation is Truncation.WINDOW
    reader = Reader(tokenizer.read(folder), manifest.special_tokens, manifest.limits.max_length, whole)
    part = kind.tokenize(examples, labels, reader)
    rows = Rows.of(part, per_token=kind.per_token, pad=manifest.special_tokens.pad)
    order = [manifest.labels.index(label) for label in labels] if _named(kind) else []
    found = _outputs(kind, folder, manifest, rows, precision)[:, order or slice(None)]
    slices = [example.slices for example in examples]
    scored: Scored = kind.scored(found, rows, kind.key(examples), slices)
    return scored


def profile_of(folder: Path, manifest: Manifest, examples: Sequence[Row]) -> Profile:
    """The reference profile of an artifact; examples need no labels for it."""
    special = manifest.special_tokens
    if manifest.task is Task.FILL_MASK:
        return _of_blanks(examples, special)
    kind = kind_of(manifest)
    targets = tuple(_blank(kind, manifest, row) if row.targets is None else row.targets for row in examples)
    lengths = np.array([len(row.ids) for row in examples], np.int64)
    part = Labelled(tuple(row.ids for row in examples), targets, lengths, 0, 0)
    rows, said = Rows.of(part, per_token=kind.per_token, pad=special.pad), Said()
    if manifest.labels and kind.problem is not Problem.REGRESSION:
        scored = kind.scored(_outputs(kind, folder, manifest, rows), rows, None, ())
        said = kind.said(scored, manifest.labels, manifest.calibration)
    return profile.of(kind.inputs(rows), rows, said, special.unk)


def _of_blanks(examples: Sequence[Row], special: SpecialTokens) -> Profile:
    """Of the texts as they were before some of their tokens were hidden; there are no labels to say."""
    hidden = ((row.ids, row.targets) for row in examples if row.targets is not None)
    ids = tuple(np.where(targets == IGNORED, given, targets) for given, targets in hidden)
    part = Labelled(ids, ids, np.array([len(row) for row in ids], np.int64), 0, 0)
    rows = Rows.of(part, per_token=True, pad=special.pad)
    return profile.of(rows.groups(), rows, Said(), special.unk)


def _blank(kind: AnyKind, manifest: Manifest, row: Row) -> npt.NDArray[np.int64]:
    """A target of the right form, which says nothing."""
    return np.zeros(len(row.ids) if kind.per_token else (1, max(1, len(manifest.labels))), np.int64)


def _outputs(
    kind: AnyKind, folder: Path, manifest: Manifest, rows: Rows, precision: Precision = Precision.FP32
) -> Outputs:
    """What a graph puts out for all rows' items, with the classes in the manifest's order."""
    session = onnxruntime.InferenceSession(str(folder / graph_file(precision)), providers=["CPUExecutionProvider"])

    def infer(batch: Batch) -> Any:
        given = dict(zip(INPUTS, (batch.ids_BT, batch.visible_BT.astype(np.int64), batch.segments_BT), strict=True))
        return session.run([manifest.output], {name: given[name] for name in manifest.inputs})[0]

    width = kind.width(manifest.labels, manifest.embedding.dimensions if manifest.embedding else 0)
    return scoring.outputs(rows, width, infer, at_once=_BATCH_TOKENS)
