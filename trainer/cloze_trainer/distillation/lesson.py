"""A fine-tuning whose model also learns from a teacher.

The teacher's logits of all examples are computed once and lie beside the prepared examples, so that each step depends
on what it did before, whoever goes on, and no second model is in memory for them. What else a teacher tells, the
relations within a layer, is too much to keep: it is computed with each step.

Dimensions: N items (texts, or words), C classes, B sequences.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloze_api.distillation import Distillation
from cloze_api.pretrain import PretrainJobSpec
from cloze_trainer import flops, latency
from cloze_trainer.clock import Clock
from cloze_trainer.console import log
from cloze_trainer.data.labelled import IGNORED
from cloze_trainer.distillation import beside, teacher
from cloze_trainer.distillation.relation import RelationLoss
from cloze_trainer.distillation.teacher import Teacher
from cloze_trainer.export import OUTPUT
from cloze_trainer.files import is_complete, publish
from cloze_trainer.finetune import FineTuning
from cloze_trainer.gang import Gang
from cloze_trainer.model import TaskModel
from cloze_trainer.origin import Origin
from cloze_trainer.pretrain import Pretraining
from cloze_trainer.run import Run
from cloze_trainer.tasks.kind import Scored
from cloze_trainer.tasks.rows import Rows
from cloze_trainer.workload import Chunk

# Part of the key of the teacher's logits: raise it when the same teacher would give other ones.
_EDITION = 1


class Said(nn.Module):
    """A model that has answered already."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self._logits = logits

    def forward(self, *_: Tensor | None) -> Tensor:
        """The answer."""
        return self._logits


class SoftTargets:
    """The teacher's logits of the items of examples, memory-mapped."""

    def __init__(self, file: Path, rows: Rows) -> None:
        self._logits_NC = np.load(file, mmap_mode="r")
        self._starts = rows.items()[0]

    def of(self, rows_B: npt.NDArray[np.int64]) -> Tensor:
        """Logits (N, C) of the items of these rows, one row after the other."""
        spans = [self._logits_NC[self._starts[row] : self._starts[row + 1]] for row in rows_B]
        return torch.from_numpy(np.concatenate(spans))


class Distilling:
    """A Workload: the given one's batches, with the teacher's answers beside the labels."""

    def __init__(
        self,
        inner: FineTuning,
        asked: Distillation,
        teacher: Teacher,
        soft: SoftTargets,
        *,
        relation: RelationLoss | None = None,
        relation_flops: float = 0.0,
    ) -> None:
        self.inner, self.teacher = inner, teacher
        self._asked, self._soft, self._relation, self._relation_flops = asked, soft, relation, relation_flops
        self._taught: tuple[Scored, int] | None = None

    def of(self, inner: FineTuning) -> "Distilling":
        """The same lesson for another training on the same examples."""
        other = copy(self)
        other.inner = inner
        return other

    @property
    def chunk_tokens(self) -> int:
        """As the inner one's."""
        return self.inner.chunk_tokens

    @chunk_tokens.setter
    def chunk_tokens(self, tokens: int) -> None:
        self.inner.chunk_tokens = tokens

    @property
    def total_steps(self) -> int:
        """As the inner one's."""
        return self.inner.total_steps

    @property
    def clock(self) -> Clock:
        """As the inner one's."""
        return self.inner.clock

    @property
    def flops_per_token(self) -> float:
        """The student's training, and the teacher's pass where it goes along."""
        return self.inner.flops_per_token + self._relation_flops

    def share(self, batch: int, rank: int, world: int, done: float) -> Sequence[Chunk]:
        """As the inner one's."""
        return self.inner.share(batch, rank, world, done)

    def evaluate(
        self, model: nn.Module, gang: Gang, stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """As the inner one's."""
        return self.inner.evaluate(model, gang, stopped)

    def evaluate_after(self, step: int) -> bool:
        """As the inner one's."""
        return self.inner.evaluate_after(step)

    def loss_sum(self, model: nn.Module, chunk: Chunk) -> Tensor:
        """The labels' loss and the teacher's (nats), mixed by weight, and the relations' for each item."""
        listening: AbstractContextManager[Any] = self._relation.hearing(model) if self._relation else nullcontext()
        with listening as heard:
            logits = model(*chunk.inputs).float()
        share = self._asked.weight
        loss = (1 - share) * self.inner.loss_sum(Said(logits), chunk)
        counted = chunk.targets != IGNORED
        if share:
            loss = loss + share * self._soft_loss(logits[counted], chunk)
        if self._relation is not None:
            items_B = counted.reshape(len(counted), -1).sum(-1)
            loss = loss + self._relation.weight * (items_B * self._relation.losses(heard, chunk.inputs)).sum()
        return loss

    def _soft_loss(self, own_NC: Tensor, chunk: Chunk) -> Tensor:
        """T²·KL of the answers at temperature T, whose gradients are of the labels' size (arXiv:1503.02531)."""
        if not len(own_NC):
            # A stand-in has a gradient, too: of zeros.
            return own_NC.sum()
        assert chunk.rows_B is not None, "a chunk that counts says which rows it holds"
        theirs_NC = self._soft.of(chunk.rows_B).to(own_NC.device)
        heat = self._asked.temperature
        own, theirs = (functional.log_softmax(logits / heat, dim=-1) for logits in (own_NC, theirs_NC))
        return heat**2 * functional.kl_div(own, theirs, reduction="sum", log_target=True)

    def start(self, model: TaskModel) -> None:
        """Begin as layers of the teacher's, where that is asked for. Raises BaseModelError."""
        if not self._asked.layers:
            return
        order = [self.teacher.manifest.labels.index(label) for label in self.inner.labels]
        given = teacher.load_weights(self.teacher, teacher.encoder(self.teacher), order).state_dict()
        prefix = "encoder.layers."
        own = {}
        for name in model.state_dict():
            place, _, rest = name.removeprefix(prefix).partition(".")
            theirs = f"{prefix}{self._asked.layers[int(place)]}.{rest}" if name.startswith(prefix) else name
            own[name] = given[theirs]
        model.load_state_dict(own)

    def keep(self, scores: Scored, size: int) -> None:
        """Remember what the teacher answers on the test examples, and how many weights it has."""
        self._taught = scores, size

    @property
    def about(self) -> Mapping[str, Any]:
        """Which model the teacher is."""
        return {"model": self.teacher.name, "digest": self.teacher.digest}

    def figures(self, model: nn.Module, scores: Scored) -> dict[str, float]:
        """The teacher's figures, and the student's beside them. Of rank 0."""
        assert self._taught is not None, "the teacher has answered before the training"
        taught, size = self._taught
        own = sum(parameter.numel() for parameter in model.parameters())
        return beside.figures(scores, taught, self.inner.labels, task=self.inner.task, sizes=(own, size))

    def latencies(self, student: Path) -> dict[str, float]:
        """What both take for a text. student: the folder of its artifact."""
        folder, manifest = self.teacher.folder, self.teacher.manifest
        asked = {student: [*self.inner.config.inputs, OUTPUT], folder: [*manifest.inputs, manifest.output]}
        return beside.latencies(student, folder, self.inner.test.spread(latency.TEXTS), asked)


def begin(run: Run, workload: FineTuning | Pretraining, gang: Gang) -> Distilling | None:
    """What is learnt from the teacher; None where there is none. All ranks call it, before the model is built.

    Raises InputError and BaseModelError where the teacher isn't fit, RegistryError.
    """
    spec = run.job.spec
    if isinstance(spec, PretrainJobSpec) or isinstance(workload, Pretraining) or spec.distillation is None:
        return None
    asked = spec.distillation
    found: Teacher = gang.from_leader(_fit(run, asked, workload) if gang.leads else None)
    if asked.layers:
        workload.config = teacher.fitting(teacher.encoder(found), workload.config, asked.layers, found.name)
    inside = asked.relation is not None or bool(asked.layers)
    relation, extra, model = None, 0.0, teacher.load(found, workload.labels, gang.device, inside=inside)
    if asked.relation is not None:
        config = teacher.encoder(found)
        relation = RelationLoss(asked.relation, model, config, workload.config)
        # Forward alone.
        extra = flops.per_token(config, length=float(workload.train.lengths.mean())) / 3
    key = [_EDITION, workload.origin.data, found.digest, list(workload.labels)]
    folder = run.workspace / "data" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
    _answer(folder, workload, model, gang)
    workload.origin = Origin(data=folder.name, base=workload.origin.base)
    soft = SoftTargets(folder / "train.npy", workload.train)
    lesson = Distilling(workload, asked, found, soft, relation=relation, relation_flops=extra)
    lesson.keep(workload.scores_of(np.load(folder / "test.npy")), teacher.size(found, model))
    return lesson


def _fit(run: Run, asked: Distillation, workload: FineTuning) -> Teacher:
    found = teacher.find(run, asked.teacher.model)
    teacher.check(
        *(found, workload.task, workload.problem, workload.labels), base=workload.base, max_length=workload.max_length
    )
    return found


def _answer(folder: Path, workload: FineTuning, model: nn.Module, gang: Gang) -> None:
    """Have the teacher answer all examples, once; the ranks share the work."""
    if gang.from_leader(is_complete(folder) if gang.leads else None):
        return
    logits = {name: workload.outputs(model, getattr(workload, name), gang) for name in ("train", "test")}
    if gang.leads:
        with publish(folder) as staging:
            for name, logits_NC in logits.items():
                np.save(staging / f"{name}.npy", logits_NC)
        log("teacher answered", items=len(logits["train"]))
    gang.from_leader()
