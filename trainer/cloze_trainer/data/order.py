"""The global order of samples: a function of seed and position alone.

Each epoch is a permutation of all N samples. Samples of one length are a stream: the global batch of step s is the
positions [s·B, (s + 1)·B), or where batches grow as many as they are by then, position p being place p mod N of epoch
p div N. Samples of different lengths are batched
with their like, so an epoch is ceil(N / B) steps of its own, the last of them short. Rank r of W takes every W-th
sample of a batch from the r-th on. What a step trains on depends on neither the number of ranks nor on what happened
before, so a resumed run sees every sample exactly once, at any number of ranks.
"""

from copy import copy
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

# Names the stream of random numbers, apart from masking's.
_DOMAIN = 1
# Batches among which samples of similar length are put together.
_WINDOW = 32


def generator(seed: int, domain: int, *counters: int) -> np.random.Generator:
    """A generator that is a function of its arguments alone (Philox, Salmon et al. 2011). At most three counters."""
    counter = [0, *counters, *(0 for _ in range(3 - len(counters)))]
    bits = np.random.Philox(key=np.array([seed, domain], dtype=np.uint64), counter=np.array(counter, dtype=np.uint64))
    return np.random.Generator(bits)


class Order:
    """Order of `samples` in global batches of `batch`.

    lengths: when given, batches hold samples of similar length: within windows of 32 batches of an epoch's
        permutation the samples are sorted by length, then the batches are shuffled. What is left over for the short
        batch is drawn before the sorting, so that no length is preferred in it. Without, no batch is ever short.
    first, growing: size of the first batch, and over how many steps it grows evenly to the full one; without lengths.
    """

    def __init__(
        self,
        samples: int,
        batch: int,
        seed: int,
        *,
        lengths: npt.NDArray[np.integer[Any]] | None = None,
        first: int | None = None,
        growing: int = 0,
    ) -> None:
        assert samples > 0
        assert lengths is None or not growing
        first = batch if first is None else first
        self._starts = np.concatenate([[0], np.cumsum(first + (batch - first) * np.arange(growing) // max(1, growing))])
        self.samples, self.batch, self.seed = samples, batch, seed
        self._lengths = lengths
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def seeded(self, seed: int) -> "Order":
        """The same samples in batches of the same sizes, in another order."""
        other = copy(self)
        other.seed = seed
        other._epoch = lru_cache(maxsize=2)(other._permutation)
        return other

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, rounded up: with lengths the epoch ends with the last of them."""
        return -(-self.samples // self.batch)

    def start(self, step: int) -> int:
        """Position in the stream at which a step's batch begins."""
        growing = len(self._starts) - 1
        return int(self._starts[min(step, growing)]) + max(0, step - growing) * self.batch

    def reaching(self, position: int) -> int:
        """Steps until the stream has been read up to a position."""
        grown = int(self._starts[-1])
        if position <= grown:
            return int(np.searchsorted(self._starts, position))
        return len(self._starts) - 1 - (grown - position) // self.batch

    def _permutation(self, epoch: int) -> Indices:
        random = generator(self.seed, _DOMAIN, epoch)
        order = random.permutation(self.samples).astype(np.int64)
        if self._lengths is None:
            return order
        whole = self.samples - self.samples % self.batch
        parts = []
        for start in range(0, whole, self.batch * _WINDOW):
            window = order[start : min(start + self.batch * _WINDOW, whole)]
            window = window[np.argsort(self._lengths[window], kind="stable")]
            batches = window.reshape(-1, self.batch)
            parts.append(batches[random.permutation(len(batches))].reshape(-1))
        return np.concatenate([*parts, order[whole:]])

    def step(self, step: int) -> tuple[Indices, Indices]:
        """Sample indices of a step's global batch, and the epoch of each."""
        if self._lengths is not None:
            epoch, within_epoch = divmod(step, self.steps_per_epoch)
            start = within_epoch * self.batch
            indices = self._epoch(epoch)[start : start + self.batch]
            return indices, np.full(len(indices), epoch)
        epochs, within = np.divmod(np.arange(self.start(step), self.start(step + 1)), self.samples)
        indices = np.empty(len(epochs), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._epoch(int(epoch))[within[here]]
        return indices, epochs

    def share(self, step: int, rank: int, world: int) -> tuple[Indices, Indices]:
        """The part of a step's batch that a rank trains on: indices and epochs."""
        indices, epochs = self.step(step)
        return indices[rank::world], epochs[rank::world]
