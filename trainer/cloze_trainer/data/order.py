"""The global order of samples: a function of seed and position alone.

Position p of the run is position p mod N of epoch p div N, each epoch a permutation of all N samples. The global batch
of step s is the positions [s·B, (s + 1)·B), and rank r of W takes every W-th of them from the r-th on. What a step
trains on depends on neither the number of ranks nor on what happened before, so a resumed run sees every sample
exactly once, at any number of ranks.
"""

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
        permutation the samples are sorted by length, then the batches are shuffled.
    limit: number of positions in the whole run; the last batch ends there. Unlimited when None.
    """

    def __init__(
        self,
        samples: int,
        batch: int,
        seed: int,
        *,
        lengths: npt.NDArray[np.integer[Any]] | None = None,
        limit: int | None = None,
    ) -> None:
        assert samples > 0
        self.samples, self.batch, self.seed, self.limit = samples, batch, seed, limit
        self._lengths = lengths
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> Indices:
        random = generator(self.seed, _DOMAIN, epoch)
        order = random.permutation(self.samples).astype(np.int64)
        if self._lengths is None:
            return order
        parts = []
        for start in range(0, self.samples, self.batch * _WINDOW):
            window = order[start : start + self.batch * _WINDOW]
            window = window[np.argsort(self._lengths[window], kind="stable")]
            batches = [window[at : at + self.batch] for at in range(0, len(window), self.batch)]
            parts += [batches[place] for place in random.permutation(len(batches))]
        return np.concatenate(parts)

    def step(self, step: int) -> tuple[Indices, Indices]:
        """Sample indices of a step's global batch, and the epoch of each."""
        end = (step + 1) * self.batch
        positions = np.arange(step * self.batch, end if self.limit is None else min(end, self.limit))
        epochs, within = np.divmod(positions, self.samples)
        indices = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._epoch(int(epoch))[within[here]]
        return indices, epochs

    def share(self, step: int, rank: int, world: int) -> tuple[Indices, Indices]:
        """The part of a step's batch that a rank trains on: indices and epochs."""
        indices, epochs = self.step(step)
        return indices[rank::world], epochs[rank::world]
