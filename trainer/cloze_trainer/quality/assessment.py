"""An artifact on labelled examples, as it would be served: its tokenizer and its fp32 graph."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from cloze_api.finetune import Truncation
from cloze_api.manifest import ONNX_FILE, Manifest
from cloze_trainer import tasks
from cloze_trainer.data import tokenizer
from cloze_trainer.errors import InputError
from cloze_trainer.export import INPUTS
from cloze_trainer.tasks import scoring
from cloze_trainer.tasks.kind import AnyKind, Line, Reader, Scored
from cloze_trainer.tasks.rows import Batch, Rows

_BATCH_TOKENS = 4096


def kind_of(manifest: Manifest) -> AnyKind:
    """The task of an artifact. Raises InputError for one that examples aren't labelled for."""
    kind = tasks.find(manifest.task, manifest.problem)
    if kind is None:
        message = f"{manifest.name} is for {manifest.task}: models that are fine-tuned for a task are judged so"
        raise InputError("TaskUnsuitable", message)
    return kind


def assess(
    folder: Path,
    manifest: Manifest,
    examples: Sequence[Line],
    labels: Sequence[str],
    truncation: Truncation = Truncation.RIGHT,
) -> Scored:
    """The model's answers to the examples, with its classes in the order of `labels`.

    truncation: of texts that are too long, in sequence classification.

    Raises InputError when it isn't a model of such a task with just these labels.
    """
    kind = kind_of(manifest)
    if sorted(manifest.labels) != sorted(labels):
        raise InputError(
            "LabelsDiffer",
            f"{manifest.name} has the labels {', '.join(sorted(manifest.labels))}, and the examples "
            f"{', '.join(sorted(labels))}: only models with the same labels can be compared",
        )
    whole = truncation is Truncation.WINDOW
    reader = Reader(tokenizer.read(folder), manifest.special_tokens, manifest.limits.max_length, whole)
    part = kind.tokenize(examples, labels, reader)
    rows = Rows.of(part, per_token=kind.per_token, pad=manifest.special_tokens.pad)
    order = [manifest.labels.index(label) for label in labels] or slice(None)
    session = onnxruntime.InferenceSession(str(folder / ONNX_FILE), providers=["CPUExecutionProvider"])

    def infer(batch: Batch) -> Any:
        given = dict(zip(INPUTS, (batch.ids_BT, batch.visible_BT.astype(np.int64), batch.segments_BT), strict=True))
        return session.run([manifest.output], {name: given[name] for name in manifest.inputs})[0][..., order]

    width = kind.width(labels, manifest.embedding.dimensions if manifest.embedding else 0)
    found = scoring.outputs(rows, width, infer, at_once=_BATCH_TOKENS)
    slices = [example.slices for example in examples]
    scored: Scored = kind.scored(found, rows, kind.key(examples), slices)
    return scored
