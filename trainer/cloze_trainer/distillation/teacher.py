"""The registered classifier that a student learns from: found once, verified, and held to what the student is."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cloze_api.manifest import (
    MANIFEST_FILE,
    ONNX_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Manifest,
    file_sha256,
    tokenizer_fingerprint,
)
from cloze_api.names import ENV_TEACHER_DIGEST
from cloze_api.pretrain import Architecture
from cloze_api.pretrained import PretrainedVersion
from cloze_api.task import Problem, Task
from cloze_trainer.base import BaseModel, check_tokenizer, fetch, read_config, verified
from cloze_trainer.console import log
from cloze_trainer.data import word_blanks
from cloze_trainer.data.tokenizer import PretrainedTokenizer
from cloze_trainer.encoders import names
from cloze_trainer.encoders.config import GLOBAL_EVERY, EncoderConfig
from cloze_trainer.errors import BaseModelError, InputError
from cloze_trainer.export import INPUTS, TOLERANCE, apart, own_graph
from cloze_trainer.files import write_json
from cloze_trainer.model import TaskModel, build
from cloze_trainer.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher(PretrainedTokenizer):
    """A verified artifact. digest: of its manifest."""

    manifest: Manifest


def open_teacher(folder: Path, name: str, expected_digest: str | None) -> Teacher:
    """Verify an artifact as a teacher. Raises BaseModelError."""
    manifest = verified(folder, name, expected_digest)
    check_tokenizer(folder, name, manifest)
    return Teacher(
        folder=folder,
        name=name,
        digest=f"sha256:{file_sha256(folder / MANIFEST_FILE)}",
        special_tokens=manifest.special_tokens,
        lowercase=manifest.lowercase,
        manifest=manifest,
    )


def find(run: Run, asked: PretrainedVersion) -> Teacher:
    """The teacher's artifact in the workspace. An alias is resolved once, and the run keeps to what it found.

    Raises InputError, BaseModelError with a reason of its own, or RegistryError.
    """
    pinned = run.workspace / "teacher.json"
    mark = {"job": run.identity, "name": asked.name, "version": asked.version or "", "alias": asked.alias or ""}
    try:
        if asked.alias is not None:
            asked = PretrainedVersion(name=asked.name, version=_resolved(run, pinned, mark))
        return fetch(run, asked, open_teacher, expected_from=ENV_TEACHER_DIGEST)
    except BaseModelError as error:
        reason = f"Teacher{error.reason.removeprefix('Base')}"
        raise BaseModelError(reason, f"spec.distillation.teacher: {error.message}") from error


def _resolved(run: Run, pinned: Path, mark: dict[str, str]) -> str:
    if pinned.is_file():
        found = json.loads(pinned.read_text(encoding="utf-8"))
        if found["asked"] == mark:
            return str(found["version"])
    if run.tracking_uri is None:
        raise InputError("RegistryUnset", "spec.distillation.teacher is in MLflow: set MLFLOW_TRACKING_URI")
    from cloze_trainer import registry  # noqa: PLC0415 - MLflow takes seconds to import

    version = registry.version_of_alias(run.tracking_uri, mark["name"], mark["alias"])
    write_json(pinned, {"asked": mark, "version": version})
    log("teacher found", model=mark["name"], alias=mark["alias"], version=version)
    return version


def check(
    teacher: Teacher, task: Task, problem: Problem, labels: Sequence[str], *, base: BaseModel, max_length: int
) -> None:
    """Raise BaseModelError or InputError where the teacher's answers aren't about what the student is asked.

    Tokenizers must have one fingerprint, so that both read the same tokens, cut the same texts in the same place, and
    find the same words in them.
    """
    manifest = teacher.manifest
    # A multi-label model has labels, too, but its logits are no distribution over them.
    if (manifest.task, manifest.problem) != (task, problem):
        raise BaseModelError(
            "TeacherTaskDiffers",
            f"the teacher {teacher.name} is for {manifest.task} ({manifest.problem}), not for {task} ({problem}): name "
            "one that answers what the student is asked",
        )
    if sorted(manifest.labels) != sorted(labels):
        raise InputError(
            "TeacherLabelsDiffer",
            f"the teacher {teacher.name} has the labels {', '.join(sorted(manifest.labels))}, and the student "
            f"{', '.join(sorted(labels))}: they must be the same, in any order; train the teacher on these labels",
        )
    own, theirs = _fingerprint(base, task), manifest.tokenizer_fingerprint
    if task is Task.TOKEN_CLASSIFICATION:
        # It may come from elsewhere, and read words without blanks.
        theirs = _fingerprint(teacher, task)
    if theirs != own:
        raise BaseModelError(
            "TeacherTokenizerDiffers",
            f"the tokenizer of the teacher {teacher.name} has the fingerprint {theirs[:12]}, "
            f"and that of the student's base {base.name} {own[:12]}: they must be equal, as the teacher answers for "
            "the student's tokens; name a base with the teacher's tokenizer, as spec.tokenizer.reuse of a PretrainJob "
            "makes one",
        )
    if manifest.limits.max_length < max_length:
        raise InputError(
            "TeacherTooShort",
            f"the teacher {teacher.name} reads {manifest.limits.max_length} tokens at most, and the student "
            f"{max_length}: set spec.maxLength to {manifest.limits.max_length}",
        )


def _fingerprint(tokenizer: PretrainedTokenizer, task: Task) -> str:
    """Of the tokenizer that a task's examples are read with, when it is made of this one."""
    document = json.loads((tokenizer.folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
    return tokenizer_fingerprint(word_blanks.with_blanks(document) if task is Task.TOKEN_CLASSIFICATION else document)


def encoder(teacher: Teacher) -> EncoderConfig:
    """The encoder that torch can run. Raises BaseModelError."""
    needed = "spec.distillation.relation and spec.distillation.layers need a teacher that a FineTuneJob has registered"
    if WEIGHTS_FILE not in teacher.manifest.files:
        message = f"the teacher {teacher.name} has a graph, but no weights: {needed}"
        raise BaseModelError("TeacherWeightsMissing", message)
    try:
        return read_config(teacher.folder, teacher)
    except BaseModelError as error:
        message = f"the teacher {teacher.name} is of an architecture that isn't trained here: {needed}"
        raise BaseModelError("TeacherArchitectureUnknown", message) from error


def load(teacher: Teacher, labels: Sequence[str], device: torch.device, *, inside: bool = False) -> nn.Module:
    """The teacher for inference, its classes in the order of the student's labels.

    Its graph where it isn't of an architecture that is trained here; inside: raise BaseModelError then, as it is to be
    listened to within.
    """
    order = [teacher.manifest.labels.index(label) for label in labels]
    try:
        model = load_weights(teacher, encoder(teacher), order)
    except BaseModelError as error:
        if inside:
            raise
        log("teacher runs as a graph", why=error.reason)
        return Graph(teacher.folder / ONNX_FILE, teacher.manifest, order)
    return model.requires_grad_(requires_grad=False).to(device).eval()


def load_weights(teacher: Teacher, config: EncoderConfig, order: Sequence[int]) -> TaskModel:
    """The teacher as one of our models. order: which of its classes is each of the model's. Raises BaseModelError."""
    model, manifest = build(teacher.manifest.task, config, len(order)), teacher.manifest
    stored = load_file(teacher.folder / WEIGHTS_FILE)
    try:
        own = {name: stored[names.theirs(name, config.architecture, model.task)] for name in model.state_dict()}
        model.load_state_dict(own)
    except (KeyError, RuntimeError) as error:
        raise BaseModelError(
            "TeacherArchitectureMismatch", f"the weights of the teacher {teacher.name} aren't those of its config.json"
        ) from error
    # Imported heads may be of other kinds, with the same tensors: another pooling, another activation.
    graph = replace(own_graph(model.task, config), output=manifest.output)
    if set(manifest.inputs) != set(graph.inputs) or apart(model, graph, teacher.folder / ONNX_FILE) > TOLERANCE:
        raise BaseModelError(
            "TeacherArchitectureUnknown",
            f"the teacher {teacher.name} answers otherwise than a {config.architecture} of these weights would that is "
            "trained here: only its graph can be used, without spec.distillation.relation and spec.distillation.layers",
        )
    model.load_state_dict(own | {name: own[name][list(order)] for name in ("classifier.weight", "classifier.bias")})
    return model


def size(teacher: Teacher, model: nn.Module) -> int:
    """How many weights a loaded teacher has."""
    if not isinstance(model, Graph):
        return sum(parameter.numel() for parameter in model.parameters())
    return sum(math.prod(tensor.dims) for tensor in onnx.load(teacher.folder / ONNX_FILE).graph.initializer)


class Graph(nn.Module):
    """An artifact's graph in the place of a model. Logits (B, C) or (B, T, C), with classes in the given order."""

    def __init__(self, path: Path, manifest: Manifest, order: Sequence[int]) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs, self._output, self._order = manifest.inputs, manifest.output, list(order)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """See the class."""
        ids = ids_BT.cpu().numpy()
        mask = np.ones_like(ids) if mask_BT is None else mask_BT.cpu().numpy().astype(np.int64)
        given = dict(zip(INPUTS, (ids, mask, np.zeros_like(ids)), strict=True))
        output: Any = self._session.run([self._output], {name: given[name] for name in self._inputs})[0]
        return torch.from_numpy(output[..., self._order]).to(ids_BT.device)


def fitting(config: EncoderConfig, student: EncoderConfig, layers: Sequence[int], name: str) -> EncoderConfig:
    """The student with these layers of the teacher's. Raises InputError where it can't have them."""
    if beyond := [number for number in layers if number >= config.layers]:
        raise InputError(
            "TeacherLayersUnknown",
            f"spec.distillation.layers names layer {beyond[0]}, and the teacher {name} has {config.layers}, counted "
            "from 0",
        )
    fewer = replace(student, layers=len(layers))
    if fewer != replace(config, layers=len(layers), dropout=student.dropout):
        raise InputError(
            "TeacherSizesDiffer",
            f"spec.distillation.layers begins the student as layers of the teacher {name}, whose architecture and "
            "sizes differ from those of spec.base: name the base that the teacher was fine-tuned from, or remove "
            "the layers",
        )
    alike = ((number % GLOBAL_EVERY == 0) == (place % GLOBAL_EVERY == 0) for place, number in enumerate(layers))
    if config.architecture is Architecture.MODERNBERT and (layers[0] or not all(alike)):
        raise InputError(
            "TeacherLayersUnfit",
            "spec.distillation.layers of a ModernBERT must begin with 0 and have a layer that looks everywhere in "
            "every third place, as in 0, 4, 5, 6, 10, 11: those are the layers 0, 3, 6 and so on of the teacher's",
        )
    return fewer
