"""Fine-tuning: an encoder and labelled examples to a model of a task, whichever it is."""

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cloze_api.evaluation import Evaluation
from cloze_api.finetune import ClassWeights, FineTuneJobSpec
from cloze_api.profile import Profile
from cloze_api.task import Task
from cloze_trainer import flops, selection, tasks
from cloze_trainer.clock import Clock
from cloze_trainer.data.labelled import IGNORED
from cloze_trainer.data.order import Order
from cloze_trainer.errors import InputError
from cloze_trainer.gang import Gang
from cloze_trainer.origin import Origin
from cloze_trainer.preparation import PreparedDataset
from cloze_trainer.quality import luck, profile
from cloze_trainer.selection import Selection
from cloze_trainer.tasks import scoring
from cloze_trainer.tasks.classification import balanced
from cloze_trainer.tasks.kind import Said, Scored
from cloze_trainer.tasks.rows import Batch, Rows
from cloze_trainer.workload import CHUNK_TOKENS, Chunk

# Figures while a model is trained, by its probabilities as they are.
_UNCALIBRATED = Evaluation(calibrate=False)


def _stand_in(chunk: Chunk) -> Chunk:
    """What a rank without a share goes through: it weighs nothing."""
    return replace(chunk, targets=torch.full_like(chunk.targets, IGNORED), weight=0, tokens=0)


class FineTuning:
    """Training for a task on its examples. train, test: these as rows. slices: of each test example."""

    chunk_tokens = CHUNK_TOKENS

    def __init__(self, spec: FineTuneJobSpec, prepared: PreparedDataset, device: torch.device) -> None:
        self.spec, self._device = spec, device
        self.task: Task = spec.task
        self._kind = tasks.of(spec.task, spec.problem)
        self.problem = spec.problem
        self.base = prepared.base
        self.config = prepared.base.config
        self.tokenizer_folder = prepared.folder
        self.origin = Origin(data=prepared.folder.name, base=prepared.base.digest)
        self.lowercase = prepared.base.lowercase
        early = spec.optimization.early_stopping
        self.selection = Selection(early, self._kind.main) if early else None
        # What models are scored on: in the end, and while they are trained.
        parts = ("train", "test", *(["validation"] if early else []))
        self._examples = examples = prepared.open(parts, per_token=self._kind.per_token)
        self.labels, self.max_length, self.report = examples.labels, examples.max_length, examples.report
        self.train, self.test = examples.rows["train"], examples.rows["test"]
        self.slices, self.validation = examples.slices, examples.rows.get("validation")
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
        # Of tokens, most of which are in the longer texts.
        lengths = self.train.lengths.astype(np.float64)
        wanted = len(lengths) / lengths.sum() if self.task is Task.SEQUENCE_CLASSIFICATION else 1.0
        whole = flops.per_token(self.config, length=float((lengths**2).sum() / lengths.sum()), wanted=wanted)
        # Without the gradients of weights that stay as they are.
        return whole if self.spec.optimization.lora is None else whole * 2 / 3

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
        """Whether an epoch ended with this step, or the steps between evaluations."""
        early = self.spec.optimization.early_stopping
        return step % ((early and early.every_steps) or self._order.steps_per_epoch) == 0

    def evaluate(
        self, model: nn.Module, gang: Gang, stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """The task's figures on the validation examples, as `validation_…`; without any on the test examples. None when
        a rank was `stopped` meanwhile.
        """
        rows = self.test if self.validation is None else self.validation
        outputs_NK = self.outputs(model, rows, gang, stopped)
        if any(gang.sum(stopped())):
            return None
        if self.validation is None:
            scores = self.scores_of(outputs_NK)
            further: Mapping[str, float] = self._kind.details(scores, self.labels)
        else:
            scores = self._kind.scored(outputs_NK, rows, self._examples.keys["validation"], ())
            further = self._kind.further(scores, self.labels, _UNCALIBRATED).figures
        prefix = "" if self.validation is None else selection.PREFIX
        return {f"{prefix}{name}": value for name, value in {**self._main_figures(scores), **further}.items()}

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
        scored: Scored = self._kind.scored(outputs_NK, self.test, self._examples.keys["test"], self.slices)
        return scored

    def profile(self, said: Said) -> Profile:
        """The test examples, and what was said of them."""
        return profile.of(self._kind.inputs(self.test), self.test, said, self.config.special_tokens.unk)

    def outputs(
        self, model: nn.Module, rows: Rows, gang: Gang, stopped: Callable[[], bool] = lambda: False
    ) -> npt.NDArray[np.float32]:
        """A model's outputs (N, K) of the rows' items, in their order; all ranks share the work.

        stopped: whether a rank leaves what is missing of its share at 0.
        """
        model.eval()

        def infer(batch: Batch) -> npt.NDArray[np.float32]:
            output: npt.NDArray[np.float32] = model(*self._chunk(batch).inputs).float().cpu().numpy()
            return output

        width = self._kind.width(self.labels, self.config.hidden_size)
        with torch.inference_mode():
            share = {"rank": gang.rank, "world": gang.world}
            own_NK = scoring.outputs(rows, width, infer, at_once=self.chunk_tokens, **share, stopped=stopped)
        found: npt.NDArray[np.float32] = gang.sum_array(torch.from_numpy(own_NK)).numpy()
        return found
