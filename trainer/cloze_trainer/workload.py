"""What a training loop trains: batches in chunks, their losses, and how well the model does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from cloze_trainer.clock import Clock
from cloze_trainer.encoders.attention import Texts
from cloze_trainer.gang import Gang

CHUNK_TOKENS: Final = 16_384
"""Tokens that go through the model at once, padding included, where memory holds as many."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Input tensors of one forward pass.

    targets: classes of what is predicted. weight: how many predictions it counts for; 0 for a stand-in of a rank
    without a share. tokens: real tokens. rows_B: which rows of the data these are, where that matters; all of them are
    in one row of the input where it has no padding.
    """

    inputs: tuple[Tensor | Texts | None, ...]
    targets: Tensor
    weight: int
    tokens: int
    rows_B: npt.NDArray[np.int64] | None = None

    @property
    def places(self) -> int:
        """Tokens and padding."""
        return self._ids.numel()

    @property
    def sequences(self) -> int:
        """Rows of the data."""
        return self._ids.shape[0] if self.rows_B is None else len(self.rows_B)

    @property
    def _ids(self) -> Tensor:
        assert isinstance(self.inputs[0], Tensor)
        return self.inputs[0]


class Workload(Protocol):
    """What is trained, on what. chunk_tokens: how many go through the model at once, if more than one sequence does."""

    chunk_tokens: int

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; about as many where the clock counts tokens."""

    @property
    def clock(self) -> Clock:
        """When the run is over."""

    def share(self, batch: int, rank: int, world: int, done: float) -> Sequence[Chunk]:
        """A rank's part of a global batch, of which there is no last; at least one chunk.

        done: how much of the training is.
        """

    def loss_sum(self, model: nn.Module, chunk: Chunk) -> Tensor:
        """Sum of the losses (nats) of a chunk's predictions."""

    def evaluate(
        self, model: nn.Module, gang: Gang, stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Figures over the evaluation data, the same on every rank; None when a rank was `stopped` meanwhile."""

    def evaluate_after(self, step: int) -> bool:
        """Whether to evaluate within the training once this many steps are done."""

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of training on a token."""
