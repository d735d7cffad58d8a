"""Fine-tuning: an encoder and labelled examples to a model of a task, whichever it is."""

import difflib
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cloze_api.finetune import ClassWeights, FineTuneJobSpec
from cloze_api.segments import VALUES_MAX
from cloze_api.task import Task
from cloze_trainer import flops, tasks
from cloze_trainer.adoption import adopt_base
from cloze_trainer.base import BaseModel, fetch, open_base
from cloze_trainer.clock import Clock
from cloze_trainer.console import log
from cloze_trainer.data import leakage, tokenizer
from cloze_trainer.data.labelled import IGNORED
from cloze_trainer.data.order import Order
from cloze_trainer.data.remote import redacted
from cloze_trainer.distillation import beside
from cloze_trainer.errors import InputError
from cloze_trainer.files import is_complete, publish, write_json
from cloze_trainer.gang import Gang
from cloze_trainer.origin import Origin, digests, locate_all
from cloze_trainer.progress import ProgressFile
from cloze_trainer.quality import champion, gates, judgement, luck
from cloze_trainer.run import Run
from cloze_trainer.tasks import rows, scoring
from cloze_trainer.tasks.classification import balanced
from cloze_trainer.tasks.kind import Reader, Scored
from cloze_trainer.tasks.rows import Batch, Rows
from cloze_trainer.workload import CHUNK_TOKENS, Chunk

# Part of the data folder's key: raise it when the same input would give other arrays.
EDITION = 5
_META_FILE = "dataset.json"
_SLICES_FILE = "test-slices.json"
_KEY_FILE = "test-key.json"
_SEEN_FILE = "test-seen.json"


@dataclass(frozen=True, slots=True)
class PreparedDataset:
    """What rank 0 made of the base and the examples.

    sources: SHA-256 of each source, keyed by its URI without secrets.
    """

    folder: Path
    base: BaseModel
    sources: dict[str, str]


def prepare(run: Run, spec: FineTuneJobSpec, progress: ProgressFile) -> PreparedDataset:
    """Fetch the base, check and tokenize the examples into the workspace, once.

    Raises BaseModelError, InputError with file and line, or RegistryError.
    """
    progress.stage("data")
    base = adopt_base(run, spec.base, spec.task) if spec.base.uri else fetch(run, spec.base.model, open_base)
    max_length = spec.max_length or base.config.max_length
    if max_length > base.config.max_length:
        raise InputError(
            "MaxLengthTooLarge",
            f"spec.maxLength is {max_length}, the base model's limit is {base.config.max_length}: lower it",
        )
    train, test = locate_all(run)
    key = {"edition": EDITION, "sources": [train.digest, test.digest], "base": base.digest, "max_length": max_length}
    key |= {"task": spec.task, "problem": spec.problem, "labels": spec.labels}
    folder = run.workspace / "data" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
    if not is_complete(folder):
        # What can't be compared is told before the training. Not at each start: a run goes on while MLflow is away.
        champion.find(run, spec)
        _publish(folder, spec, train_paths=train.paths, test_paths=test.paths, base=base, max_length=max_length)
    meta = json.loads((folder / _META_FILE).read_text(encoding="utf-8"))
    log("examples prepared", **{name: value for name, value in meta.items() if name != "labels"})
    _check_gates(spec, meta, json.loads((folder / _SLICES_FILE).read_text(encoding="utf-8")))
    seen = leakage.Seen(**json.loads((folder / _SEEN_FILE).read_text(encoding="utf-8")))
    if seen.count:
        log("test examples seen in training", share=seen.share, what=seen.told())
    leakage.refuse(seen, spec.evaluation.max_seen_share)
    if meta["examples"] < spec.optimization.batch_sequences:
        raise InputError(
            "BatchTooLarge",
            f"{redacted(train.uri)} holds {meta['examples']} examples, fewer than optimization.batchSequences "
            f"({spec.optimization.batch_sequences}): lower it or add examples",
        )
    return PreparedDataset(folder, base, digests([train, test]))


def _check_gates(spec: FineTuneJobSpec, meta: Mapping[str, Any], slices: Sequence[Sequence[str]]) -> None:
    """Raise InputError for a gate on a figure that there won't be: known before anything is trained."""
    counted = [f"data_{name}" for name, value in meta.items() if isinstance(value, int | float)]
    counted += beside.figure_names(spec.task, meta["labels"]) if spec.distillation else []
    if spec.evaluation.seeds > 1:
        told, others = tasks.of(spec.task, spec.problem).figure_names(meta["labels"])
        counted += luck.figure_names([*told, *others])
    sliced = bool(judgement.counted_slices(slices, spec.evaluation.min_slice_examples))
    known = [*judgement.figure_names(spec.task, meta["labels"], sliced=sliced, problem=spec.problem), *counted]
    if missing := gates.unknown(spec.evaluation.gates, known):
        near = difflib.get_close_matches(missing[0], known, n=3) or known[:8]
        raise InputError(
            "GateFigureUnknown",
            f"spec.evaluation.gates names {missing[0]!r}, which the evaluation doesn't give: there are "
            f"{', '.join(near)} and others, see the reference",
        )


def _publish(
    folder: Path,
    spec: FineTuneJobSpec,
    *,
    train_paths: Sequence[Path],
    test_paths: Sequence[Path],
    base: BaseModel,
    max_length: int,
) -> None:
    kind = tasks.of(spec.task, spec.problem)
    train, test = kind.read(train_paths), kind.read(test_paths)
    labels = kind.labels(train, test, spec.labels)
    reader = Reader(tokenizer.read(base.folder), base.special_tokens, max_length)
    parts = {name: kind.tokenize(examples, labels, reader) for name, examples in (("train", train), ("test", test))}
    tokens = int(parts["train"].lengths.sum())
    slices = [example.slices for example in test]
    if (count := len({each for own in slices for each in own})) > VALUES_MAX:
        raise InputError(
            "SlicesTooMany",
            f"the metadata of the test examples has {count} different values, at most {VALUES_MAX} are told apart: "
            "leave out what isn't a group of examples",
        )
    seen = leakage.find(*([(each.place, each.text) for each in examples] for examples in (train, test)))
    with publish(folder) as staging:
        for name, part in parts.items():
            rows.save(staging, name, part)
        write_json(staging / _SLICES_FILE, slices)
        write_json(staging / _KEY_FILE, kind.key(test))
        write_json(staging / _SEEN_FILE, asdict(seen))
        write_json(
            staging / _META_FILE,
            {
                "labels": labels,
                "max_length": max_length,
                "examples": len(train),
                "examples_test": len(test),
                "tokens": tokens,
                "truncated": parts["train"].truncated,
                "truncated_test": parts["test"].truncated,
                "unknown_share": parts["train"].unknown / max(1, tokens),
                "test_seen_share": seen.share,
            },
        )


def _stand_in(chunk: Chunk) -> Chunk:
    """What a rank without a share goes through: it weighs nothing."""
    return replace(chunk, targets=torch.full_like(chunk.targets, IGNORED), weight=0, tokens=0)


class FineTuning:
    """Training for a task on its examples. train, test: these as rows."""

    chunk_tokens = CHUNK_TOKENS

    def __init__(self, spec: FineTuneJobSpec, prepared: PreparedDataset, device: torch.device) -> None:
        self.spec, self._device = spec, device
        self.task: Task = spec.task
        self._kind = tasks.of(spec.task, spec.problem)
        self.problem = spec.problem
        self.base = prepared.base
        self.config = prepared.base.config
        self.tokenizer_folder = prepared.base.folder
        self.origin = Origin(data=prepared.folder.name, base=prepared.base.digest)
        self.lowercase = prepared.base.lowercase
        meta: dict[str, Any] = json.loads((prepared.folder / _META_FILE).read_text(encoding="utf-8"))
        self.labels: tuple[str, ...] = tuple(meta["labels"])
        self.max_length: int = meta["max_length"]
        self.report = {key: float(value) for key, value in meta.items() if isinstance(value, int | float)}
        self._slices: list[list[str]] = json.loads((prepared.folder / _SLICES_FILE).read_text(encoding="utf-8"))
        self._key = json.loads((prepared.folder / _KEY_FILE).read_text(encoding="utf-8"))
        pad = self.base.special_tokens.pad
        self.train, self.test = (
            Rows.load(prepared.folder, name, per_token=self._kind.per_token, pad=pad) for name in ("train", "test")
        )
        optimization, lengths = spec.optimization, self.train.lengths
        self._weights_C: Tensor | None = None
        if optimization.class_weights is ClassWeights.BALANCED:
            weights_C = balanced(self.train.items()[1], len(self.labels))
            self._weights_C = torch.from_numpy(weights_C).to(device)
        self._groups = self.train.groups() if self._kind.block else []
        if self._groups:
            # Examples are in order then, and not their rows.
            lengths = np.array([lengths[own.start : own.stop].sum() for own in self._groups])
        self._order = Order(len(lengths), optimization.batch_sequences, optimization.seed, lengths=lengths)

    def seeded(self, seed: int) -> "FineTuning":
        """The same training from another seed."""
        other = copy(self)
        optimization = self.spec.optimization.model_copy(update={"seed": seed})
        other.spec = self.spec.model_copy(update={"optimization": optimization})
        other._order = self._order.seeded(seed)
        return other

    @property
    def total_steps(self) -> int:
        """Steps of all epochs; the last of each may have a smaller batch."""
        return self.spec.optimization.epochs * self._order.steps_per_epoch

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of training on a token; the head's are nothing beside it."""
        return flops.per_token(self.config, length=float(self.train.lengths.mean()), predicted=0.0)

    @property
    def clock(self) -> Clock:
        """It counts steps."""
        return Clock(self.total_steps, self.spec.optimization.warmup_steps)

    def share(self, batch: int, rank: int, world: int, done: float) -> Sequence[Chunk]:  # noqa: ARG002 - no matter here
        """A rank's part of a global batch; a stand-in of weight 0 when the last batch has none for it."""
        if self._kind.block:
            return self._blocks(batch, rank, world, self._kind.block)
        samples_B, _ = self._order.share(batch, rank, world)
        if not len(samples_B):
            samples_B, _ = self._order.step(batch)
            return [_stand_in(self.chunk(samples_B[:1]))]
        size = max(1, self.chunk_tokens // int(self.train.lengths[samples_B].max()))
        return [self.chunk(samples_B[at : at + size]) for at in range(0, len(samples_B), size)]

    def chunk(self, rows_B: npt.NDArray[np.int64]) -> Chunk:
        """Training rows in one pass."""
        return replace(self._chunk(self.train.batch(rows_B)), rows_B=rows_B)

    def _blocks(self, batch: int, rank: int, world: int, most: int) -> Sequence[Chunk]:
        """A rank's blocks of a global batch, of at most so many examples: the same ones for any number of ranks.

        The first rows of all examples come first, then the second ones, and so on.
        """
        samples_B, _ = self._order.step(batch)
        # Evenly: an example that is left alone would have nothing to be told apart from.
        blocks = np.array_split(samples_B, -(-len(samples_B) // most))
        chunks = []
        for block in blocks[rank::world] or [samples_B[:1]]:
            groups = [self._groups[sample] for sample in block]
            rows = [own[place] for place in range(max(map(len, groups))) for own in groups if place < len(own)]
            chunk = self._chunk(self.train.batch(np.array(rows)))
            if self.chunk_tokens != CHUNK_TOKENS and chunk.places > self.chunk_tokens:
                raise InputError(
                    "BlockTooLarge",
                    f"{len(block)} examples of {chunk.places} tokens, which are trained on together, don't fit into "
                    f"rank {rank}'s memory: lower maxLength or optimization.batchSequences, or set "
                    "optimization.activationCheckpointing",
                )
            chunks.append(replace(chunk, weight=len(block)))
        return chunks if len(blocks) > rank else [_stand_in(chunks[0])]

    def _chunk(self, batch: Batch) -> Chunk:
        full, paired = bool(batch.visible_BT.all()), bool(batch.segments_BT.any())
        inputs = (
            torch.from_numpy(batch.ids_BT).to(self._device),
            None if full else torch.from_numpy(batch.visible_BT).to(self._device),
            *([torch.from_numpy(batch.segments_BT).to(self._device)] if paired else []),
        )
        return Chunk(
            inputs=inputs[: len(self.config.inputs)],
            targets=torch.from_numpy(batch.targets).to(self._device),
            weight=self._kind.weight(batch),
            tokens=int(batch.visible_BT.sum()),
        )

    def loss_sum(self, model: nn.Module, chunk: Chunk) -> Tensor:
        """Sum of the task's losses (nats)."""
        return self._kind.loss_sum(model(*chunk.inputs).float(), chunk, self._weights_C)

    def evaluate_after(self, step: int) -> bool:
        """Whether an epoch ended with this step."""
        return step % self._order.steps_per_epoch == 0

    def evaluate(self, model: nn.Module, gang: Gang) -> dict[str, float]:
        """The task's figures on the test examples, without their intervals."""
        scores = self.score(model, gang)
        return {**self._main_figures(scores), **self._kind.details(scores, self.labels)}

    def figures(self, scores: Scored) -> dict[str, float]:
        """All figures of a model's answers by themselves, without their intervals."""
        further = self._kind.further(scores, self.labels, self.spec.evaluation)
        return {**self._main_figures(scores), **further.figures}

    def _main_figures(self, scores: Scored) -> dict[str, float]:
        return {name: found.figure for name, found in self._kind.statistics(scores, self.labels).items()}

    def watched(self, figures: Collection[str]) -> list[str]:
        """Those of these figures of which it is told how much the seed decides."""
        return luck.watched(self._kind.main_of(figures), self.spec.evaluation.gates, figures)

    def score(self, model: nn.Module, gang: Gang) -> Scored:
        """The model's answers to the test examples; of all ranks' shares on each of them.

        `truncated_test` says how many texts were cut.
        """
        return self.scores_of(self.outputs(model, self.test, gang))

    def scores_of(self, outputs_NK: npt.NDArray[np.float32]) -> Scored:
        """What any model's outputs of the test rows' items come to."""
        scored: Scored = self._kind.scored(outputs_NK, self.test, self._key, self._slices)
        return scored

    def outputs(self, model: nn.Module, rows: Rows, gang: Gang) -> npt.NDArray[np.float32]:
        """A model's outputs (N, K) of the rows' items, in their order; all ranks share the work."""
        model.eval()

        def infer(batch: Batch) -> npt.NDArray[np.float32]:
            output: npt.NDArray[np.float32] = model(*self._chunk(batch).inputs).float().cpu().numpy()
            return output

        width = self._kind.width(self.labels, self.config.hidden_size)
        with torch.inference_mode():
            own_NK = scoring.outputs(rows, width, infer, at_once=self.chunk_tokens, rank=gang.rank, world=gang.world)
        found: npt.NDArray[np.float32] = gang.sum_array(torch.from_numpy(own_NK)).numpy()
        return found
