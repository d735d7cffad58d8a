"""Fine-tuning: an encoder and labelled examples to a classifier of texts or of words."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloze_api.finetune import FineTuneJobSpec
from cloze_api.segments import VALUES_MAX
from cloze_api.task import Task
from cloze_trainer import evaluation, flops
from cloze_trainer.base import BaseModel, fetch, open_base
from cloze_trainer.clock import Clock
from cloze_trainer.console import log
from cloze_trainer.data import labelled, tokenizer
from cloze_trainer.data.duplicates import near_duplicate_groups
from cloze_trainer.data.examples import Row
from cloze_trainer.data.labelled import IGNORED, Labelled
from cloze_trainer.data.order import Order
from cloze_trainer.data.remote import redacted
from cloze_trainer.distillation import beside
from cloze_trainer.errors import InputError
from cloze_trainer.files import is_complete, publish, write_json
from cloze_trainer.gang import Gang
from cloze_trainer.origin import Origin, digests, locate_all
from cloze_trainer.progress import ProgressFile
from cloze_trainer.quality import champion, gates, judgement
from cloze_trainer.quality.scores import Scores
from cloze_trainer.run import Run
from cloze_trainer.workload import CHUNK_TOKENS, Chunk

# Part of the data folder's key: raise it when the same input would give other arrays.
EDITION = 4
_META_FILE = "dataset.json"
_SLICES_FILE = "test-slices.json"


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
    base = fetch(run, spec.base.model, open_base)
    max_length = spec.max_length or base.config.max_length
    if max_length > base.config.max_length:
        raise InputError(
            "MaxLengthTooLarge",
            f"spec.maxLength is {max_length}, the base model's limit is {base.config.max_length}: lower it",
        )
    train, test = locate_all(run)
    key = {"edition": EDITION, "sources": [train.digest, test.digest], "base": base.digest, "max_length": max_length}
    key |= {"task": spec.task, "labels": spec.labels}
    folder = run.workspace / "data" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
    if not is_complete(folder):
        # What can't be compared is told before the training. Not at each start: a run goes on while MLflow is away.
        champion.find(run, spec)
        _publish(folder, spec, train_paths=train.paths, test_paths=test.paths, base=base, max_length=max_length)
    meta = json.loads((folder / _META_FILE).read_text(encoding="utf-8"))
    log("examples prepared", **{name: value for name, value in meta.items() if name != "labels"})
    _check_gates(spec, meta, json.loads((folder / _SLICES_FILE).read_text(encoding="utf-8")))
    if meta["test_seen_share"]:
        log("test texts seen in training", share=meta["test_seen_share"], why="they are, or are nearly, training texts")
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
    sliced = bool(judgement.counted_slices(slices, spec.evaluation.min_slice_examples))
    known = [*judgement.figure_names(spec.task, meta["labels"], sliced=sliced), *counted]
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
    train, test = labelled.read(train_paths, spec.task), labelled.read(test_paths, spec.task)
    labels = labelled.schema(train, test, spec.labels)
    model = tokenizer.read(base.folder)
    parts = {
        name: labelled.tokenize(
            examples, labels, model, task=spec.task, max_length=max_length, special=base.special_tokens
        )
        for name, examples in (("train", train), ("test", test))
    }
    tokens = int(parts["train"].lengths.sum())
    slices = [example.slices for example in test]
    if (count := len({each for own in slices for each in own})) > VALUES_MAX:
        raise InputError(
            "SlicesTooMany",
            f"the metadata of the test examples has {count} different values, at most {VALUES_MAX} are told apart: "
            "leave out what isn't a group of examples",
        )
    with publish(folder) as staging:
        for name, part in parts.items():
            _save(staging, name, part)
        write_json(staging / _SLICES_FILE, slices)
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
                "test_seen_share": seen_share(
                    [" ".join(example.words) for example in train], [" ".join(example.words) for example in test]
                ),
            },
        )


def seen_share(train: Sequence[str], test: Sequence[str]) -> float:
    """Share of the test texts that are training texts, or nearly: what is scored on them is memory, not skill."""
    groups = near_duplicate_groups([*train, *test])
    trained = set(groups[: len(train)])
    return sum(group in trained for group in groups[len(train) :]) / max(1, len(test))


def _save(folder: Path, name: str, part: Labelled) -> None:
    np.save(folder / f"{name}-ids.npy", np.concatenate(part.ids).astype(np.int32))
    np.save(folder / f"{name}-lengths.npy", part.lengths)
    np.save(folder / f"{name}-targets.npy", np.concatenate(part.targets).astype(np.int32))


class Examples:
    """Tokenized examples, memory-mapped. lengths: tokens of each."""

    def __init__(self, folder: Path, name: str, *, per_token: bool, pad: int) -> None:
        self._ids = np.load(folder / f"{name}-ids.npy", mmap_mode="r")
        self._targets = np.load(folder / f"{name}-targets.npy", mmap_mode="r")
        self.lengths: npt.NDArray[np.int64] = np.load(folder / f"{name}-lengths.npy")
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._per_token, self._pad = per_token, pad

    def __len__(self) -> int:
        return len(self.lengths)

    def items(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """What is scored: where each example's items begin, and the end of the last one's; the class of each."""
        if not self._per_token:
            return np.arange(len(self) + 1), self._targets.astype(np.int64)
        scored = np.asarray(self._targets) != IGNORED
        return np.concatenate([[0], np.cumsum(scored)])[self._starts], self._targets[scored].astype(np.int64)

    def rows(self, most: int) -> list[Row]:
        """At most so many examples, from all over the file."""
        found = []
        for sample in np.linspace(0, len(self) - 1, min(most, len(self))).astype(np.int64):
            span = slice(self._starts[sample], self._starts[sample + 1])
            ids = self._ids[span].astype(np.int64)
            targets = self._targets[span if self._per_token else slice(sample, sample + 1)].astype(np.int64)
            found.append(Row(ids, np.zeros_like(ids), targets))
        return found

    def batch(self, samples_B: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Padded ids (B, T) and targets, (B, T) or (B,)."""
        spans = [slice(self._starts[sample], self._starts[sample + 1]) for sample in samples_B]
        ids_BT = labelled.pad([self._ids[span].astype(np.int64) for span in spans], self._pad)
        if not self._per_token:
            return ids_BT, self._targets[samples_B].astype(np.int64)
        return ids_BT, labelled.pad([self._targets[span].astype(np.int64) for span in spans], IGNORED)


class FineTuning:
    """Classification of texts or of words."""

    chunk_tokens = CHUNK_TOKENS

    def __init__(self, spec: FineTuneJobSpec, prepared: PreparedDataset, device: torch.device) -> None:
        self.spec, self._device = spec, device
        self.task: Task = spec.task
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
        per_token = self.task is Task.TOKEN_CLASSIFICATION
        self._pad = self.base.special_tokens.pad
        self.train, self.test = (
            Examples(prepared.folder, name, per_token=per_token, pad=self._pad) for name in ("train", "test")
        )
        optimization = spec.optimization
        self._order = Order(
            len(self.train), optimization.batch_sequences, optimization.seed, lengths=self.train.lengths
        )

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
        samples_B, _ = self._order.share(batch, rank, world)
        if not len(samples_B):
            samples_B, _ = self._order.step(batch)
            chunk = self._chunk(self.train, samples_B[:1])
            return [Chunk(chunk.inputs, torch.full_like(chunk.targets, IGNORED), weight=0, tokens=0)]
        rows = max(1, self.chunk_tokens // int(self.train.lengths[samples_B].max()))
        return [self._chunk(self.train, samples_B[at : at + rows]) for at in range(0, len(samples_B), rows)]

    def chunk(self, samples_B: npt.NDArray[np.int64]) -> Chunk:
        """Training examples in one pass."""
        return self._chunk(self.train, samples_B)

    def _chunk(self, examples: Examples, samples_B: npt.NDArray[np.int64]) -> Chunk:
        ids_BT, targets = examples.batch(samples_B)
        visible_BT = ids_BT != self._pad
        full = bool(visible_BT.all())
        return Chunk(
            inputs=(
                torch.from_numpy(ids_BT).to(self._device),
                None if full else torch.from_numpy(visible_BT).to(self._device),
            ),
            targets=torch.from_numpy(targets).to(self._device),
            weight=int((targets != IGNORED).sum()),
            tokens=int(visible_BT.sum()),
            samples_B=samples_B,
        )

    def loss_sum(self, model: nn.Module, chunk: Chunk) -> Tensor:
        """Summed cross-entropy (nats) of the examples' or the words' classes."""
        logits = model(*chunk.inputs).float()
        return functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), chunk.targets.reshape(-1), reduction="sum", ignore_index=IGNORED
        )

    def evaluate_after(self, step: int) -> bool:
        """Whether an epoch ended with this step."""
        return step % self._order.steps_per_epoch == 0

    def evaluate(self, model: nn.Module, gang: Gang) -> dict[str, float]:
        """`accuracy`, `macro_f1`, `f1_<label>` and, with two labels, `f1` on the test examples, or on their words."""
        scores = self.score(model, gang)
        counts_CC = evaluation.confusion(scores.truth_N, scores.predicted, len(self.labels))
        return evaluation.classification(counts_CC, self.labels)

    def score(self, model: nn.Module, gang: Gang) -> Scores:
        """The model's logits of the test examples, or of their words; of all ranks' shares on each of them.

        A word beyond the length limit isn't predicted and doesn't count; `truncated_test` says how many texts were cut.
        """
        return self.scores_of(self.logits(model, self.test, gang).numpy())

    def scores_of(self, logits_NC: npt.NDArray[np.float32]) -> Scores:
        """Any model's logits of the test examples' items, with what is known of those."""
        starts, truth_N = self.test.items()
        return Scores(
            logits_NC=logits_NC,
            truth_N=truth_N,
            example_N=np.repeat(np.arange(len(self.test)), np.diff(starts)),
            examples=len(self.test),
            slices=self._slices,
        )

    def logits(self, model: nn.Module, examples: Examples, gang: Gang) -> Tensor:
        """A model's logits (N, C) of the items of examples, in their order; all ranks share the work."""
        model.eval()
        starts, truth_N = examples.items()
        logits_NC = torch.zeros(len(truth_N), len(self.labels))
        by_length = np.argsort(examples.lengths, kind="stable")
        rows = max(1, self.chunk_tokens // int(examples.lengths.max()))
        with torch.inference_mode():
            for at in range(gang.rank * rows, len(by_length), gang.world * rows):
                samples_B = by_length[at : at + rows]
                chunk = self._chunk(examples, samples_B)
                output = model(*chunk.inputs).float().reshape(-1, len(self.labels))
                scored = output[chunk.targets.reshape(-1) != IGNORED].cpu()
                places = np.concatenate([np.arange(starts[sample], starts[sample + 1]) for sample in samples_B])
                logits_NC[torch.from_numpy(places)] = scored
        return gang.sum_array(logits_NC)
