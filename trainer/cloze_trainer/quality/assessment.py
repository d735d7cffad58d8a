"""An artifact on labelled examples, as it would be served: its tokenizer and its fp32 graph."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from cloze_api.manifest import ONNX_FILE, Manifest
from cloze_api.task import Task
from cloze_trainer.data import labelled, tokenizer
from cloze_trainer.data.labelled import IGNORED, Example
from cloze_trainer.errors import InputError
from cloze_trainer.export import INPUTS
from cloze_trainer.quality.scores import Scores

CLASSIFIERS = (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION)
_BATCH_TOKENS = 4096


def assess(folder: Path, manifest: Manifest, examples: Sequence[Example], labels: Sequence[str]) -> Scores:
    """The model's logits of what the examples ask for, with its classes in the order of `labels`.

    Raises InputError when it isn't a classifier with just these labels.
    """
    if manifest.task not in CLASSIFIERS:
        raise InputError("TaskUnsuitable", f"{manifest.name} is for {manifest.task}: classifiers alone are judged so")
    if sorted(manifest.labels) != sorted(labels):
        raise InputError(
            "LabelsDiffer",
            f"{manifest.name} has the labels {', '.join(sorted(manifest.labels))}, and the examples "
            f"{', '.join(sorted(labels))}: only models with the same labels can be compared",
        )
    tokens = labelled.tokenize(
        examples,
        labels,
        tokenizer.read(folder),
        task=manifest.task,
        max_length=manifest.limits.max_length,
        special=manifest.special_tokens,
    )
    order = [manifest.labels.index(label) for label in labels]
    session = onnxruntime.InferenceSession(str(folder / ONNX_FILE), providers=["CPUExecutionProvider"])
    per_token = manifest.task is Task.TOKEN_CLASSIFICATION
    logits: list[np.ndarray] = [np.zeros((0, len(labels)), np.float32)] * len(examples)
    by_length = np.argsort(tokens.lengths, kind="stable")
    rows = max(1, _BATCH_TOKENS // int(tokens.lengths.max()))
    for at in range(0, len(by_length), rows):
        chosen = by_length[at : at + rows]
        ids_BT = labelled.pad([tokens.ids[sample] for sample in chosen], manifest.special_tokens.pad)
        mask_BT = labelled.pad([np.ones_like(tokens.ids[sample]) for sample in chosen], 0)
        given = dict(zip(INPUTS, (ids_BT, mask_BT, np.zeros_like(ids_BT)), strict=True))
        output = session.run([manifest.output], {name: given[name] for name in manifest.inputs})[0][..., order]
        for row, sample in enumerate(chosen):
            if per_token:
                scored = tokens.targets[sample] != IGNORED
                logits[sample] = output[row, : len(scored)][scored]
            else:
                logits[sample] = output[row : row + 1]
    targets = [target[target != IGNORED] for target in tokens.targets]
    return Scores(
        np.concatenate(logits),
        np.concatenate(targets),
        np.repeat(np.arange(len(examples)), [len(target) for target in targets]),
        len(examples),
        [example.slices for example in examples],
    )
