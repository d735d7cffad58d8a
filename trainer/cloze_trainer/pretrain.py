"""Pretraining: raw text to a masked language model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloze_api.manifest import SpecialTokens
from cloze_api.pretrain import DEFAULT_STEPS, Masking, MaskingUnit, PretrainJobSpec
from cloze_api.pretrained import Pretrained
from cloze_api.task import Task
from cloze_trainer import evaluation, flops, limits, memory, tagging
from cloze_trainer.adoption import adopt_base, adopt_tokenizer
from cloze_trainer.audit import judging
from cloze_trainer.base import BaseModel, fetch, open_base, open_tokenizer
from cloze_trainer.clock import Clock
from cloze_trainer.console import log
from cloze_trainer.data import shards, tokenizer
from cloze_trainer.data.crew import affordable
from cloze_trainer.data.masking import EVALUATION_PROBABILITY, EVALUATION_SEED, Masked, Masker
from cloze_trainer.data.order import Indices, Order
from cloze_trainer.data.packing import Tokens, attended, spread_tokenizing, texts_of
from cloze_trainer.data.tokenizer import SPECIAL_IDS, PretrainedTokenizer
from cloze_trainer.data.unpadded import unpadded
from cloze_trainer.encoders.attention import Attention, Texts
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.errors import InputError
from cloze_trainer.gang import Gang
from cloze_trainer.origin import Origin, digests, find_all, named, need_all, remember
from cloze_trainer.progress import ProgressFile
from cloze_trainer.run import Run
from cloze_trainer.workload import CHUNK_TOKENS, Chunk


@dataclass(frozen=True, slots=True)
class PreparedCorpus:
    """What rank 0 made of the corpus. sources: SHA-256 of each source, keyed by its URI without secrets.

    base: what is continued from. tokenizer: the one that was taken, from the base or from elsewhere.
    """

    folder: Path
    sources: dict[str, str]
    base: BaseModel | None = None
    tokenizer: PretrainedTokenizer | None = None


def prepare(run: Run, spec: PretrainJobSpec, progress: ProgressFile) -> PreparedCorpus:
    """Clean, tokenize and pack the corpus into the workspace, once. Raises InputError with file and line."""
    progress.stage("data")
    # The other ranks of the pod wait meanwhile.
    processors = limits.cpus()
    spread_tokenizing(processors)
    # Before a base: what reads one tells the hub's library to fetch nothing from then on.
    sources = find_all(run)
    names = tagging.find(run, spec.cleaning.names) if spec.cleaning.names else None
    base = _base(run, spec.base) if spec.base else None
    taken = base or (_tokenizer(run, spec.tokenizer.reuse) if spec.tokenizer.reuse else None)
    length = base.config.max_length if base else spec.model.max_length
    prepared, reused = shards.prepare(
        spec,
        sources,
        run.data,
        progress,
        max_length=length,
        reused=taken,
        names=names,
        need=partial(need_all, run),
        processes=affordable(processors, limits.memory()),
        scratch=run.workspace / "data" if run.data_cache else None,
    )
    log("corpus prepared", reused=reused, **prepared.report)
    if len(prepared.train_NT) < spec.optimization.batch_sequences:
        raise InputError(
            "BatchTooLarge",
            f"the corpus packs into {len(prepared.train_NT)} sequences of {length} tokens, fewer than "
            f"optimization.batchSequences ({spec.optimization.batch_sequences}): lower it or add text",
        )
    held_out = evaluation_masker(prepared.vocab_size, taken.special_tokens if taken else SPECIAL_IDS)
    if not any(
        held_out.row(row_T.astype(np.int64), 0, number)[1].any() for number, row_T in enumerate(prepared.held_out_NT)
    ):
        raise InputError(
            "HeldOutTooSmall",
            f"none of the {prepared.report['tokens_held_out']} held-out tokens is masked for the evaluation: raise "
            "evaluation.heldOutFraction or add text",
        )
    special = taken.special_tokens if taken else SPECIAL_IDS
    judging.check(spec.evaluation, prepared.folder, special, length, prepared.report)
    if not taken and prepared.vocab_size < spec.tokenizer.vocab_size:
        log("vocabulary smaller than asked", asked=spec.tokenizer.vocab_size, got=prepared.vocab_size)
    # Not before: data that the run can't begin with are to be prepared again once their source is corrected.
    remember(run, [*zip(named(run), sources, strict=True), *([names.source] if names else [])])
    return PreparedCorpus(prepared.folder, digests(sources), base, taken)


def _base(run: Run, pretrained: Pretrained) -> BaseModel:
    return fetch(run, pretrained.model, open_base) if pretrained.model else adopt_base(run, pretrained)


def _tokenizer(run: Run, pretrained: Pretrained) -> PretrainedTokenizer:
    return fetch(run, pretrained.model, open_tokenizer) if pretrained.model else adopt_tokenizer(run, pretrained)


def evaluation_masker(vocab_size: int, special: SpecialTokens = SPECIAL_IDS) -> Masker:
    """The masks of the held-out documents: the same for every model with this vocabulary."""
    return Masker(
        vocab_size=vocab_size,
        probability=EVALUATION_PROBABILITY,
        mask_share=0.8,
        random_share=0.1,
        seed=EVALUATION_SEED,
        evaluation=True,
        special_tokens=special,
    )


def masking_probability(masking: Masking, share: float) -> float:
    """Which share of the tokens is hidden once this share of the training is done; more than 1 is as 1."""
    final = masking.probability if masking.final_probability is None else masking.final_probability
    return masking.probability + (final - masking.probability) * min(1.0, share)


# Of the data, by which it is told how long texts are.
_SAMPLED_TOKENS = 1 << 20


class Pretraining:
    """Masked language modelling over packed sequences.

    attention: of the training; evaluations are in fp32, with masks.
    """

    task = Task.FILL_MASK
    labels: tuple[str, ...] = ()
    chunk_tokens = CHUNK_TOKENS

    attention = Attention.MASKED

    def __init__(self, spec: PretrainJobSpec, prepared: PreparedCorpus, device: torch.device) -> None:
        self.spec, self._device = spec, device
        self.shards = shards.read(prepared.folder)
        self.tokenizer_folder = prepared.folder
        self.base, taken = prepared.base, prepared.tokenizer
        self.origin = Origin(data=prepared.folder.name, base=taken.digest if taken else None)
        self.lowercase = taken.lowercase if taken else spec.tokenizer.lowercase
        special: SpecialTokens = taken.special_tokens if taken else SPECIAL_IDS
        self.report = {key: float(value) for key, value in self.shards.report.items() if isinstance(value, int | float)}
        self.config = (
            self.base.config
            if self.base
            else EncoderConfig(
                architecture=spec.model.architecture,
                vocab_size=self.shards.vocab_size,
                layers=spec.model.layers,
                hidden_size=spec.model.hidden_size,
                heads=spec.model.heads,
                intermediate_size=spec.model.intermediate_size,
                max_length=spec.model.max_length,
                dropout=spec.model.dropout,
                special_tokens=special,
            )
        )
        seed, unit = spec.optimization.seed, spec.masking.unit
        warmup = spec.optimization.batch_warmup
        self._order = Order(
            len(self.shards.train_NT),
            spec.optimization.batch_sequences,
            seed,
            first=warmup.from_sequences if warmup else None,
            growing=warmup.steps if warmup else 0,
        )
        self._masker = Masker(
            vocab_size=self.shards.vocab_size,
            probability=spec.masking.probability,
            mask_share=spec.masking.mask_share,
            random_share=spec.masking.random_share,
            seed=seed,
            continuing_V=None if unit is MaskingUnit.TOKEN else tokenizer.continuing(tokenizer.read(prepared.folder)),
            spans=unit is MaskingUnit.SPAN,
            special_tokens=special,
        )
        self._evaluation_masker = evaluation_masker(self.shards.vocab_size, special)
        rows = self.shards.train_NT
        sampled = max(1, _SAMPLED_TOKENS // rows.shape[1])
        self._attended = attended(rows[:: -(-len(rows) // sampled)], special)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; as many as there may be where tokens are counted."""
        clock = self.clock
        if not clock.in_tokens:
            return clock.total
        real = self.config.max_length * (1 - self.report["padding_share"])
        return self._order.reaching(math.ceil(clock.total / real))

    @property
    def clock(self) -> Clock:
        """It counts tokens where the job does."""
        settings = self.spec.optimization
        if settings.max_tokens is not None:
            return Clock(settings.max_tokens, settings.warmup_tokens or 0, in_tokens=True)
        return Clock(settings.steps or DEFAULT_STEPS, settings.warmup_steps)

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of training on a token, which looks at its own text alone."""
        hidden = self.spec.masking.probability
        return flops.per_token(self.config, length=self._attended, wanted=hidden, vocabulary=True)

    @property
    def _rows(self) -> int:
        """Sequences that go through the model at once."""
        return max(1, self.chunk_tokens // self.config.max_length)

    def share(self, batch: int, rank: int, world: int, done: float) -> Sequence[Chunk]:
        """A rank's part of a global batch."""
        samples_B, epochs_B = self._order.share(batch, rank, world)
        rows, probability = self._rows, masking_probability(self.spec.masking, done)
        inputs = self._unpadded if self.attention is Attention.UNPADDED else self._padded
        return [
            self._chunk(
                *(self._masker, self.shards.train_NT, samples_B[at : at + rows], epochs_B[at : at + rows]),
                inputs=inputs,
                probability=probability,
            )
            for at in range(0, len(samples_B), rows)
        ]

    def _chunk(
        self,
        masker: Masker,
        corpus_NT: Tokens,
        samples_B: Indices,
        epochs_B: Tokens,
        *,
        inputs: Callable[[Tokens, Masked], tuple[Any, ...]],
        probability: float | None = None,
    ) -> Chunk:
        rows_BT = corpus_NT[samples_B]
        masked = masker.batch(rows_BT, epochs_B, samples_B, probability)
        return Chunk(
            inputs=inputs(rows_BT, masked),
            targets=self._moved(masked.targets_M),
            weight=len(masked.targets_M),
            tokens=int((rows_BT != self.config.special_tokens.pad).sum()),
            rows_B=samples_B,
        )

    def _padded(self, rows_BT: Tokens, masked: Masked) -> tuple[Any, ...]:
        """What the model reads of the rows."""
        texts_BT, places_BT = texts_of(rows_BT, self.config.special_tokens)
        moved = self._moved
        texts, real_BT = moved(texts_BT), rows_BT != self.config.special_tokens.pad
        # Where each row is one text, without a mask attention takes its fastest path.
        alone = bool(real_BT.all()) and int(texts_BT.max()) == 1
        return (
            moved(masked.input_ids_BT),
            # A text is looked at by itself only. Padding goes with the last one, and nobody looks at that.
            None if alone else (texts[:, :, None] == texts[:, None, :]) & moved(real_BT)[:, None, :],
            None,
            moved(masked.positions_M),
            None if alone else moved(places_BT),
        )

    def _unpadded(self, rows_BT: Tokens, masked: Masked) -> tuple[Any, ...]:
        """The same, of all their texts in one row."""
        special, moved = self.config.special_tokens, self._moved
        _, places_BT = texts_of(rows_BT, special)
        flat = unpadded(rows_BT, masked.input_ids_BT, places_BT, masked.positions_M, special)
        return (
            moved(flat.ids_N)[None],
            Texts(moved(flat.bounds), flat.longest),
            None,
            moved(flat.positions_M),
            moved(flat.places_N)[None],
        )

    def _moved(self, values: npt.NDArray[np.integer[Any]]) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    def loss_sum(self, model: nn.Module, chunk: Chunk) -> Tensor:
        """Summed cross-entropy (nats) of the hidden tokens."""
        logits_MV = model(*chunk.inputs).float()
        return functional.cross_entropy(logits_MV, chunk.targets, reduction="sum")

    def evaluate_after(self, step: int) -> bool:
        """Whether the spec asks for an evaluation once this many steps are done."""
        every = self.spec.evaluation.every_steps
        return every is not None and step % every == 0

    def evaluate(
        self, model: nn.Module, gang: Gang, stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """`masked_loss`, `masked_accuracy`, `perplexity` on the held-out documents, with the same masks each time; None
        when a rank was `stopped` meanwhile.
        """
        model.eval()
        held_out_NT = self.shards.held_out_NT
        loss = hits = count = 0.0

        def measure(samples_B: Indices) -> tuple[float, float, int]:
            places = (held_out_NT, samples_B, np.zeros_like(samples_B))
            chunk = self._chunk(self._evaluation_masker, *places, inputs=self._padded)
            logits_MV = model(*chunk.inputs)
            return (
                float(functional.cross_entropy(logits_MV, chunk.targets, reduction="sum")),
                float((logits_MV.argmax(-1) == chunk.targets).sum()),
                chunk.weight,
            )

        rows = self._rows
        with torch.inference_mode():
            for at in range(gang.rank * rows, len(held_out_NT), gang.world * rows):
                if stopped():
                    break
                for part in memory.in_parts(np.arange(at, min(at + rows, len(held_out_NT))), measure):
                    loss, hits, count = loss + part[0], hits + part[1], count + part[2]
        loss, hits, count, left = gang.sum(loss, hits, count, stopped())
        if left:
            return None
        assert count, "the corpus was refused otherwise"
        return evaluation.masked(loss, hits, count)
